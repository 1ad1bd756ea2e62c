//! Who may receive: one transfer a group, and so many a node.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use crate::ids::GroupId;
use crate::snapshot_store::ContentId;
use crate::transport::{ProgressCell, SnapshotRefusal, TransferPhase, TransferProgress};

/// How long an offer waits for an earlier attempt to let go of its file.
const SEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// A later leader, and a later attempt of the same one, takes the place of an earlier: the earlier one's sender has given
/// up, and the network has not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Precedence {
    pub(super) term: u64,
    pub(super) attempt: u64,
}

/// What whoever opens the file gives to whoever waits for it. The file is let go of before the seat.
pub(super) type Opened<F> = Result<(F, Seat<F>), SnapshotRefusal>;

/// The transfers that run, each into an `F`. Clones are the same.
pub(super) struct Seats<F> {
    seats_max: usize,
    taken: Arc<Mutex<BTreeMap<GroupId, Taken<F>>>>,
    freed: Arc<Notify>,
    /// The node stops.
    closed: Arc<AtomicBool>,
}

struct Taken<F> {
    of: Precedence,
    content: ContentId,
    /// A later attempt at the same content takes this place and gets the same file: opening can mean to read all of it,
    /// and is not begun anew because a sender had no patience.
    waits: Option<Waits<F>>,
    /// A later attempt wants the seat. Never taken back: whoever has the seat then gets no further.
    superseded: watch::Sender<bool>,
}

/// Who waits while the file is opened.
struct Waits<F> {
    to: oneshot::Sender<Opened<F>>,
    /// Its sender's, who has no other sign that something is done.
    deciding: ProgressCell,
}

/// The right to receive.
pub(super) struct Claim<F> {
    /// The file, once it is open.
    pub(super) opened: oneshot::Receiver<Opened<F>>,
    /// For whoever opens it. `None`: somebody does already.
    pub(super) seat: Option<Seat<F>>,
}

impl<F> Clone for Seats<F> {
    fn clone(&self) -> Self {
        Self {
            seats_max: self.seats_max,
            taken: self.taken.clone(),
            freed: self.freed.clone(),
            closed: self.closed.clone(),
        }
    }
}

impl<F> Seats<F> {
    pub(super) fn new(seats_max: usize) -> Self {
        Self { seats_max, taken: Arc::default(), freed: Arc::default(), closed: Arc::default() }
    }

    /// Waits a while for an earlier attempt to let go. `None`: the group or the node is busy. `deciding` is told how far
    /// the file is that is being opened.
    pub(super) async fn claim(
        &self,
        group: GroupId,
        of: Precedence,
        content: ContentId,
        deciding: &ProgressCell,
    ) -> Option<Claim<F>> {
        let claiming = async {
            loop {
                let freed = self.freed.notified();
                match self.try_claim(group, of, content, deciding) {
                    Err(Later) => freed.await,
                    Ok(claimed) => return claimed,
                }
            }
        };
        tokio::time::timeout(SEAT_TIMEOUT, claiming).await.ok().flatten()
    }

    fn try_claim(
        &self,
        group: GroupId,
        of: Precedence,
        content: ContentId,
        deciding: &ProgressCell,
    ) -> Result<Option<Claim<F>>, Later> {
        let mut all = self.lock();
        let room = all.len() < self.seats_max;
        let (to, opened) = oneshot::channel();
        let waits = Waits { to, deciding: deciding.clone() };
        match all.entry(group) {
            Entry::Vacant(_) if !room => Ok(None),
            Entry::Vacant(free) => {
                let (superseded, ends) = watch::channel(false);
                free.insert(Taken { of, content, waits: Some(waits), superseded });
                let seat = Seat { group, seats: self.clone(), superseded: ends };
                Ok(Some(Claim { opened, seat: Some(seat) }))
            }
            Entry::Occupied(mut taken) if taken.get().of < of => {
                let taken = taken.get_mut();
                let ends = *taken.superseded.borrow();
                match taken.waits.take_if(|_| taken.content == content && !ends) {
                    Some(earlier) => {
                        (taken.of, taken.waits) = (of, Some(waits));
                        let _ = earlier.to.send(Err(SnapshotRefusal::Superseded));
                        Ok(Some(Claim { opened, seat: None }))
                    }
                    None => {
                        taken.superseded.send_replace(true);
                        Err(Later)
                    }
                }
            }
            Entry::Occupied(_) => Ok(None),
        }
    }

    /// Whoever opens a file is to stop.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Taken<F>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An earlier attempt has to let go first.
struct Later;

/// Freed when it is dropped, which is after the file was let go of.
pub(super) struct Seat<F> {
    group: GroupId,
    seats: Seats<F>,
    superseded: watch::Receiver<bool>,
}

impl<F> Seat<F> {
    /// Ready once a later attempt wants the seat.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + Send + use<F> {
        let mut superseded = self.superseded.clone();
        async move {
            let _ = superseded.wait_for(|superseded| *superseded).await;
        }
    }

    /// So many bytes of the file that is opened were read again, which whoever waits for it is told. Whether to go on.
    pub(super) fn goes_on(&self, read: u64) -> bool {
        if let Some(waits) = self.seats.lock().get(&self.group).and_then(|taken| taken.waits.as_ref()) {
            waits.deciding.advance(TransferProgress { acked: read, phase: TransferPhase::Verifying });
        }
        self.ends().is_none()
    }

    /// Why there is to be an end, if there is.
    pub(super) fn ends(&self) -> Option<SnapshotRefusal> {
        if self.seats.closed.load(Ordering::Relaxed) {
            return Some(SnapshotRefusal::NotTaken { detail: "the node stops".into() });
        }
        self.superseded.borrow().then_some(SnapshotRefusal::Superseded)
    }

    /// The file is open, or cannot be. If nobody waits any more it is let go of, and then the seat.
    pub(super) fn hand_over(self, file: Result<F, SnapshotRefusal>) {
        let waits = self.seats.lock().get_mut(&self.group).and_then(|taken| taken.waits.take());
        match waits {
            Some(waits) => drop(waits.to.send(file.map(|file| (file, self)))),
            None => drop(file),
        }
    }
}

impl<F> Drop for Seat<F> {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.group);
        self.seats.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: ContentId = ContentId([7; 16]);

    fn deciding() -> ProgressCell {
        ProgressCell::new(0)
    }

    fn attempt(attempt: u64) -> Precedence {
        Precedence { term: 1, attempt }
    }

    /// The notice that a seat is free came before the seat was: whoever waited for it at the cap of the node was told
    /// that the node is busy.
    #[tokio::test]
    async fn whoever_waits_for_the_last_seat_of_a_node_gets_it() {
        let seats = Seats::<()>::new(1);
        let group = GroupId::DEFAULT;
        let first = seats.claim(group, attempt(1), CONTENT, &deciding()).await.expect("it is free");
        let seat = first.seat.expect("nobody has it");
        seat.hand_over(Ok(()));
        let Ok((_, seat)) = first.opened.await.expect("it was handed over") else { panic!("refused") };
        let superseded = seat.superseded();
        let cell = deciding();
        let (second, ()) = tokio::join!(seats.claim(group, attempt(2), CONTENT, &cell), async {
            superseded.await;
            drop(seat);
        });
        assert!(second.expect("it waited for it").seat.is_some());
    }

    #[tokio::test]
    async fn beyond_its_seats_a_node_is_busy_at_once() {
        let seats = Seats::<()>::new(1);
        let _first =
            seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.expect("it is free");
        assert!(seats.claim(GroupId::new(9), attempt(2), CONTENT, &deciding()).await.is_none());
        assert!(
            seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.is_none(),
            "no later one"
        );
    }

    #[tokio::test]
    async fn a_file_that_nobody_waits_for_any_more_frees_its_seat() {
        let seats = Seats::<()>::new(1);
        let Claim { opened, seat } =
            seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.expect("free");
        drop(opened);
        seat.expect("nobody has it").hand_over(Ok(()));
        assert!(seats.claim(GroupId::new(9), attempt(2), CONTENT, &deciding()).await.is_some());
    }

    #[tokio::test]
    async fn a_later_attempt_at_the_same_content_gets_the_file_that_is_being_opened() {
        let seats = Seats::<()>::new(2);
        let earlier = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.expect("free");
        let later =
            seats.claim(GroupId::DEFAULT, attempt(2), CONTENT, &deciding()).await.expect("it takes over");
        assert!(later.seat.is_none());
        assert!(matches!(earlier.opened.await, Ok(Err(SnapshotRefusal::Superseded))));
        earlier.seat.expect("its own").hand_over(Ok(()));
        assert!(matches!(later.opened.await, Ok(Ok(_))));
    }

    /// It waited for a file that somebody else had begun to open, heard nothing of it, and gave up a reader that went on.
    #[tokio::test]
    async fn a_later_attempt_hears_how_far_the_file_is_that_an_earlier_one_began_to_open() {
        let seats = Seats::<()>::new(1);
        let (earlier, later) = (deciding(), deciding());
        let first = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &earlier).await.expect("free");
        let seat = first.seat.expect("its own");
        assert!(seat.goes_on(5));
        assert!(seats.claim(GroupId::DEFAULT, attempt(2), CONTENT, &later).await.is_some());
        assert!(seat.goes_on(7));
        assert_eq!((earlier.now().acked, later.now().acked), (5, 7));
        assert_eq!(later.now().phase, TransferPhase::Verifying);
    }

    /// The wish of an attempt that had given up stayed behind: the one that came in the place of both, and had nobody
    /// behind it, was told that a later one had taken its place.
    #[tokio::test(start_paused = true)]
    async fn a_seat_that_is_to_be_freed_is_not_taken_over() {
        const OTHER: ContentId = ContentId([8; 16]);
        let seats = Seats::<()>::new(1);
        let first = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.expect("free");
        let seat = first.seat.expect("its own");
        assert!(seats.claim(GroupId::DEFAULT, attempt(2), OTHER, &deciding()).await.is_none(), "it waits");
        assert!(!seat.goes_on(1), "whoever opens a file that is of no use any more stops");
        let cell = deciding();
        let (third, ()) = tokio::join!(seats.claim(GroupId::DEFAULT, attempt(3), CONTENT, &cell), async {
            tokio::task::yield_now().await;
            let why = seat.ends().expect("it is to end");
            seat.hand_over(Err(why));
        });
        assert!(matches!(first.opened.await, Ok(Err(SnapshotRefusal::Superseded))));
        let seat = third.expect("it waited").seat.expect("its own");
        assert!(seat.goes_on(1), "nobody wants its seat");
    }

    #[tokio::test]
    async fn when_the_node_stops_whoever_opens_a_file_does() {
        let seats = Seats::<()>::new(1);
        let first = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT, &deciding()).await.expect("free");
        let seat = first.seat.expect("its own");
        assert!(seat.goes_on(1) && seat.ends().is_none());
        seats.close();
        assert!(!seat.goes_on(2));
        assert!(matches!(seat.ends(), Some(SnapshotRefusal::NotTaken { .. })));
    }
}
