//! Who may receive: one transfer a group, and so many a node.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::ids::GroupId;
use crate::snapshot_store::ContentId;
use crate::transport::SnapshotRefusal;

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
}

struct Taken<F> {
    of: Precedence,
    content: ContentId,
    /// Who waits while the file is opened. A later attempt at the same content takes this place and gets the same file:
    /// opening can mean to read all of it, and is not begun anew because a sender had no patience.
    waits: Option<oneshot::Sender<Opened<F>>>,
    cancelled: Arc<Notify>,
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
        Self { seats_max: self.seats_max, taken: self.taken.clone(), freed: self.freed.clone() }
    }
}

impl<F> Seats<F> {
    pub(super) fn new(seats_max: usize) -> Self {
        Self { seats_max, taken: Arc::default(), freed: Arc::default() }
    }

    /// Waits a while for an earlier attempt to let go. `None`: the group or the node is busy.
    pub(super) async fn claim(&self, group: GroupId, of: Precedence, content: ContentId) -> Option<Claim<F>> {
        let claiming = async {
            loop {
                let freed = self.freed.notified();
                match self.try_claim(group, of, content) {
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
    ) -> Result<Option<Claim<F>>, Later> {
        let mut all = self.lock();
        let room = all.len() < self.seats_max;
        let (waits, opened) = oneshot::channel();
        match all.entry(group) {
            Entry::Vacant(_) if !room => Ok(None),
            Entry::Vacant(free) => {
                let cancelled = Arc::new(Notify::new());
                free.insert(Taken { of, content, waits: Some(waits), cancelled: cancelled.clone() });
                Ok(Some(Claim { opened, seat: Some(Seat { group, seats: self.clone(), cancelled }) }))
            }
            Entry::Occupied(mut taken) if taken.get().of < of => {
                let taken = taken.get_mut();
                match taken.waits.take_if(|_| taken.content == content) {
                    Some(earlier) => {
                        (taken.of, taken.waits) = (of, Some(waits));
                        let _ = earlier.send(Err(SnapshotRefusal::Superseded));
                        Ok(Some(Claim { opened, seat: None }))
                    }
                    None => {
                        taken.cancelled.notify_one();
                        Err(Later)
                    }
                }
            }
            Entry::Occupied(_) => Ok(None),
        }
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
    /// A later attempt wants the seat.
    pub(super) cancelled: Arc<Notify>,
}

impl<F> Seat<F> {
    /// The file is open, or cannot be. If nobody waits any more it is let go of, and then the seat.
    pub(super) fn hand_over(self, file: Result<F, SnapshotRefusal>) {
        let waits = self.seats.lock().get_mut(&self.group).and_then(|taken| taken.waits.take());
        match waits {
            Some(waits) => drop(waits.send(file.map(|file| (file, self)))),
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

    fn attempt(attempt: u64) -> Precedence {
        Precedence { term: 1, attempt }
    }

    /// The notice that a seat is free came before the seat was: whoever waited for it at the cap of the node was told
    /// that the node is busy.
    #[tokio::test]
    async fn whoever_waits_for_the_last_seat_of_a_node_gets_it() {
        let seats = Seats::<()>::new(1);
        let group = GroupId::DEFAULT;
        let first = seats.claim(group, attempt(1), CONTENT).await.expect("it is free");
        let seat = first.seat.expect("nobody has it");
        seat.hand_over(Ok(()));
        let Ok((_, seat)) = first.opened.await.expect("it was handed over") else { panic!("refused") };
        let cancelled = seat.cancelled.clone();
        let (second, ()) = tokio::join!(seats.claim(group, attempt(2), CONTENT), async {
            cancelled.notified().await;
            drop(seat);
        });
        assert!(second.expect("it waited for it").seat.is_some());
    }

    #[tokio::test]
    async fn beyond_its_seats_a_node_is_busy_at_once() {
        let seats = Seats::<()>::new(1);
        let _first = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT).await.expect("it is free");
        assert!(seats.claim(GroupId::new(9), attempt(2), CONTENT).await.is_none());
        assert!(seats.claim(GroupId::DEFAULT, attempt(1), CONTENT).await.is_none(), "no later one");
    }

    #[tokio::test]
    async fn a_file_that_nobody_waits_for_any_more_frees_its_seat() {
        let seats = Seats::<()>::new(1);
        let Claim { opened, seat } = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT).await.expect("free");
        drop(opened);
        seat.expect("nobody has it").hand_over(Ok(()));
        assert!(seats.claim(GroupId::new(9), attempt(2), CONTENT).await.is_some());
    }

    #[tokio::test]
    async fn a_later_attempt_at_the_same_content_gets_the_file_that_is_being_opened() {
        let seats = Seats::<()>::new(2);
        let earlier = seats.claim(GroupId::DEFAULT, attempt(1), CONTENT).await.expect("free");
        let later = seats.claim(GroupId::DEFAULT, attempt(2), CONTENT).await.expect("it takes over");
        assert!(later.seat.is_none());
        assert!(matches!(earlier.opened.await, Ok(Err(SnapshotRefusal::Superseded))));
        earlier.seat.expect("its own").hand_over(Ok(()));
        assert!(matches!(later.opened.await, Ok(Ok(_))));
    }
}
