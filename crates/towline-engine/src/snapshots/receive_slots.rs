//! The receive slots of a node: one transfer for each group, and a bounded number for the node.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use crate::ids::GroupId;
use crate::snapshot_store::ContentId;
use crate::sync::lock;
use crate::transport::{ProgressCell, SnapshotRefusal, TransferPhase, TransferProgress};

/// How long an offer waits for an earlier attempt to close its file.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);

/// The order of attempts. An attempt of a later term, or a later attempt of the same leader, supersedes an earlier one: its
/// sender has given up the earlier attempt, and the network has not reported that yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) struct Precedence {
    pub(super) term: u64,
    pub(super) attempt: u64,
}

/// The opened file for a waiting attempt. The tuple drops the file before the slot.
pub(super) type OpenedFile<F> = Result<(F, ReceiveSlot<F>), SnapshotRefusal>;

/// The running transfers, each into an `F`. Clones share them.
pub(super) struct ReceiveSlots<F> {
    slots_max: usize,
    held: Arc<Mutex<BTreeMap<GroupId, HeldSlot<F>>>>,
    freed: Arc<Notify>,
    /// The node is stopping.
    closed: Arc<AtomicBool>,
}

struct HeldSlot<F> {
    of: Precedence,
    content: ContentId,
    /// The attempt that waits for the file. A later attempt at the same content replaces it and gets the same file: opening
    /// may read the whole file, and a sender that gave up early must not restart that.
    waiting: Option<WaitingOffer<F>>,
    /// Whether a later attempt wants the slot. Never reset: the holder then ends.
    superseded: watch::Sender<bool>,
}

/// An attempt that waits while the file is opened.
struct WaitingOffer<F> {
    to: oneshot::Sender<OpenedFile<F>>,
    /// The progress that its sender sees meanwhile.
    deciding: ProgressCell,
}

/// The right to receive.
pub(super) struct Claim<F> {
    /// The file, once it is open.
    pub(super) opened: oneshot::Receiver<OpenedFile<F>>,
    /// The slot for opening the file. `None` if an earlier attempt is opening it.
    pub(super) slot: Option<ReceiveSlot<F>>,
}

impl<F> Clone for ReceiveSlots<F> {
    fn clone(&self) -> Self {
        Self {
            slots_max: self.slots_max,
            held: self.held.clone(),
            freed: self.freed.clone(),
            closed: self.closed.clone(),
        }
    }
}

impl<F> ReceiveSlots<F> {
    pub(super) fn new(slots_max: usize) -> Self {
        Self { slots_max, held: Arc::default(), freed: Arc::default(), closed: Arc::default() }
    }

    /// Claims the slot of a group. Waits up to [`SLOT_TIMEOUT`] for an earlier attempt to end. `None` if the group or the node
    /// is busy. `deciding` gets the progress of opening the file.
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
        tokio::time::timeout(SLOT_TIMEOUT, claiming).await.ok().flatten()
    }

    fn try_claim(
        &self,
        group: GroupId,
        of: Precedence,
        content: ContentId,
        deciding: &ProgressCell,
    ) -> Result<Option<Claim<F>>, Later> {
        let mut all = lock(&self.held);
        let room = all.len() < self.slots_max;
        let (to, opened) = oneshot::channel();
        let waiting = WaitingOffer { to, deciding: deciding.clone() };
        match all.entry(group) {
            Entry::Vacant(_) if !room => Ok(None),
            Entry::Vacant(free) => {
                let (superseded, ends) = watch::channel(false);
                free.insert(HeldSlot { of, content, waiting: Some(waiting), superseded });
                let slot = ReceiveSlot { group, slots: self.clone(), superseded: ends };
                Ok(Some(Claim { opened, slot: Some(slot) }))
            }
            Entry::Occupied(mut held) if held.get().of < of => {
                let held = held.get_mut();
                let ends = *held.superseded.borrow();
                match held.waiting.take_if(|_| held.content == content && !ends) {
                    Some(earlier) => {
                        (held.of, held.waiting) = (of, Some(waiting));
                        let _ = earlier.to.send(Err(SnapshotRefusal::Superseded));
                        Ok(Some(Claim { opened, slot: None }))
                    }
                    None => {
                        held.superseded.send_replace(true);
                        Err(Later)
                    }
                }
            }
            Entry::Occupied(_) => Ok(None),
        }
    }

    /// Makes every slot end, because the node stops.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

/// An earlier attempt must end first.
struct Later;

/// The right to receive into one file. Dropping it frees the slot; drop the file first.
pub(super) struct ReceiveSlot<F> {
    group: GroupId,
    slots: ReceiveSlots<F>,
    superseded: watch::Receiver<bool>,
}

impl<F> ReceiveSlot<F> {
    /// Completes once a later attempt wants the slot.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + Send + use<F> {
        let mut superseded = self.superseded.clone();
        async move {
            let _ = superseded.wait_for(|superseded| *superseded).await;
        }
    }

    /// Reports the bytes verified so far to the waiting attempt. Returns whether to go on.
    pub(super) fn goes_on(&self, read: u64) -> bool {
        if let Some(waiting) = lock(&self.slots.held).get(&self.group).and_then(|held| held.waiting.as_ref())
        {
            waiting.deciding.advance(TransferProgress { acked: read, phase: TransferPhase::Verifying });
        }
        self.ends().is_none()
    }

    /// Why the transfer must end, if it must.
    pub(super) fn ends(&self) -> Option<SnapshotRefusal> {
        if self.slots.closed.load(Ordering::Relaxed) {
            return Some(SnapshotRefusal::NotTaken { detail: "the node stops".into() });
        }
        self.superseded.borrow().then_some(SnapshotRefusal::Superseded)
    }

    /// Passes the opened file, or the refusal, to the waiting attempt. Without one, drops the file and then the slot.
    pub(super) fn hand_over(self, file: Result<F, SnapshotRefusal>) {
        let waiting = lock(&self.slots.held).get_mut(&self.group).and_then(|held| held.waiting.take());
        match waiting {
            Some(waiting) => drop(waiting.to.send(file.map(|file| (file, self)))),
            None => drop(file),
        }
    }
}

impl<F> Drop for ReceiveSlot<F> {
    fn drop(&mut self) {
        lock(&self.slots.held).remove(&self.group);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::fixture::CONTENT;

    async fn claim(
        slots: &ReceiveSlots<()>,
        group: u64,
        attempt: u64,
        deciding: &ProgressCell,
    ) -> Option<Claim<()>> {
        slots.claim(GroupId::new(group), Precedence { term: 1, attempt }, CONTENT, deciding).await
    }

    /// One slot, the first attempt's claim, and its sender's progress.
    async fn claimed() -> (ReceiveSlots<()>, oneshot::Receiver<OpenedFile<()>>, ReceiveSlot<()>, ProgressCell)
    {
        let (slots, deciding) = (ReceiveSlots::new(1), ProgressCell::new(0));
        let Claim { opened, slot } = claim(&slots, 1, 1, &deciding).await.expect("a free slot");
        (slots, opened, slot.expect("the first attempt opens the file"), deciding)
    }

    /// The notification of a free slot came before the slot was free. An attempt that waited at the node's bound was refused
    /// as busy.
    #[tokio::test]
    async fn an_attempt_that_waits_for_the_last_slot_of_a_node_gets_it() {
        let (slots, opened, slot, deciding) = claimed().await;
        slot.hand_over(Ok(()));
        let Ok((_, slot)) = opened.await.expect("a file") else { panic!("refused") };
        let superseded = slot.superseded();
        let (second, ()) = tokio::join!(claim(&slots, 1, 2, &deciding), async {
            superseded.await;
            drop(slot);
        });
        assert!(second.expect("the slot").slot.is_some());
    }

    #[tokio::test]
    async fn without_a_free_slot_a_node_is_busy_at_once() {
        let (slots, _opened, _slot, deciding) = claimed().await;
        assert!(claim(&slots, 9, 2, &deciding).await.is_none());
        assert!(claim(&slots, 1, 1, &deciding).await.is_none(), "the attempt is not a later one");
    }

    #[tokio::test]
    async fn a_file_without_a_waiting_attempt_frees_its_slot() {
        let (slots, opened, slot, deciding) = claimed().await;
        drop(opened);
        slot.hand_over(Ok(()));
        assert!(claim(&slots, 9, 2, &deciding).await.is_some());
    }

    /// A later attempt waited for a file that an earlier one was opening, saw no progress, and gave up.
    #[tokio::test]
    async fn a_later_attempt_at_the_same_content_gets_the_progress_and_the_file() {
        let (slots, earlier, slot, deciding) = claimed().await;
        assert!(slot.goes_on(5));
        let cell = ProgressCell::new(0);
        let later = claim(&slots, 1, 2, &cell).await.expect("the claim takes over");
        assert!(later.slot.is_none());
        assert!(matches!(earlier.await, Ok(Err(SnapshotRefusal::Superseded))));
        assert!(slot.goes_on(7));
        assert_eq!((deciding.now().acked, cell.now().acked), (5, 7));
        assert_eq!(cell.now().phase, TransferPhase::Verifying);
        slot.hand_over(Ok(()));
        assert!(matches!(later.opened.await, Ok(Ok(_))));
    }

    /// The claim of an attempt that had given up stayed behind. The attempt after both was then refused as superseded, though
    /// no later one had come.
    #[tokio::test(start_paused = true)]
    async fn a_superseded_slot_is_not_taken_over() {
        let (slots, opened, slot, deciding) = claimed().await;
        let (second, other) = (Precedence { term: 1, attempt: 2 }, ContentId([8; 16]));
        assert!(slots.claim(GroupId::new(1), second, other, &deciding).await.is_none(), "no slot in time");
        assert!(!slot.goes_on(1), "the opening of a file that is no longer needed stops");
        let (third, ()) = tokio::join!(claim(&slots, 1, 3, &deciding), async {
            tokio::task::yield_now().await;
            let why = slot.ends().expect("a superseded slot must end");
            slot.hand_over(Err(why));
        });
        assert!(matches!(opened.await, Ok(Err(SnapshotRefusal::Superseded))));
        let slot = third.expect("a claim").slot.expect("a free slot");
        assert!(slot.goes_on(1), "no attempt wants its slot");
    }

    #[tokio::test]
    async fn opening_a_file_ends_when_the_node_stops() {
        let (slots, _opened, slot, _deciding) = claimed().await;
        assert!(slot.goes_on(1) && slot.ends().is_none());
        slots.close();
        assert!(!slot.goes_on(2));
        assert!(matches!(slot.ends(), Some(SnapshotRefusal::NotTaken { .. })));
    }
}
