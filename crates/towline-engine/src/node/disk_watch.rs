//! Watches the free space of the disk that holds the log, and tells the shard when it becomes low and when there is room.
//!
//! A thread asks at an interval, and sooner once the log writer has written a part of `disk_low`. Only this thread asks: the
//! call may hang, and no write may wait for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use towline_metrics::NodeMetrics;

use super::inbox::{ShardEvent, ShardSender};
use crate::cause::{catch, chain};
use crate::core::DiskRoom;
use crate::log_store::{DiskSpace, LogStore};

/// The longest time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// The writer asks for a look after each of this number of parts of `disk_low`.
const LOOKS_PER_DISK_LOW: u64 = 16;

/// A handle to the watch. The last drop of a handle ends the thread too.
#[derive(Clone)]
pub(crate) struct DiskWatch {
    wake: SyncSender<()>,
    stopped: Arc<AtomicBool>,
    /// Bytes written between two looks, and those since the last one.
    look_every: u64,
    unseen: u64,
}

impl DiskWatch {
    /// Looks once, then starts the thread. So the shard knows of a low disk before a group starts.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
        metrics: NodeMetrics,
        disk_low: u64,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let mut looker = Looker { store, shard, metrics, disk_low, room: DiskRoom::Enough, fails: false };
        looker.look();
        let (wake, woken) = sync_channel(1);
        let stopped = Arc::new(AtomicBool::new(false));
        let stops = stopped.clone();
        let thread = std::thread::Builder::new()
            .name("towline-disk".into())
            .spawn(move || looker.run(&woken, &stops))?;
        let look_every = if disk_low == 0 { u64::MAX } else { disk_low / LOOKS_PER_DISK_LOW };
        Ok((Self { wake, stopped, look_every, unseen: 0 }, thread))
    }

    /// Counts bytes that the log writer wrote. Never waits.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.unseen = self.unseen.saturating_add(bytes);
        if self.unseen >= self.look_every {
            self.unseen = 0;
            // An error means that a look is already asked for, or that the thread has ended.
            let _ = self.wake.try_send(());
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
    }
}

struct Looker {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    metrics: NodeMetrics,
    /// Bytes beside the reserve of the store; zero: the disk never counts as low.
    disk_low: u64,
    /// The answer of the last look that succeeded.
    room: DiskRoom,
    /// Whether the last look failed.
    fails: bool,
}

impl Looker {
    fn run(mut self, woken: &Receiver<()>, stopped: &AtomicBool) {
        while woken.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Disconnected)
            && !stopped.load(Ordering::Acquire)
        {
            self.look();
        }
    }

    fn look(&mut self) {
        let space = catch(|| self.store.space())
            .map_err(|panic| format!("the log store panicked: {panic}"))
            .and_then(|space| space.map_err(|error| chain(&error)));
        let _span = tracing::info_span!(parent: None, "disk", node = self.metrics.node()).entered();
        let failed = std::mem::replace(&mut self.fails, space.is_err());
        let space = match space {
            Ok(space) => space,
            // The last answer stays: the error says nothing about the space.
            Err(error) => {
                self.metrics.disk_look_failed();
                if !failed {
                    let low = self.room != DiskRoom::Enough;
                    tracing::warn!(error, low, "the free space of the disk of the log cannot be read");
                }
                return;
            }
        };
        if failed {
            tracing::info!("the free space of the disk of the log can be read again");
        }
        let Some(DiskSpace { free, reserve }) = space else { return };
        let disk_low = self.disk_low;
        let room = room(self.room, free, reserve, disk_low);
        let low = room != DiskRoom::Enough;
        self.metrics.disk(free, low);
        let was = std::mem::replace(&mut self.room, room);
        if was == room {
            return;
        }
        self.shard.post(ShardEvent::DiskRoom(room));
        if low && was == DiskRoom::Enough {
            tracing::warn!(
                free,
                reserve,
                disk_low,
                "the disk of the log is low: this node takes no more commands"
            );
        } else if !low {
            tracing::info!(free, reserve, disk_low, "the disk of the log has room again");
        }
    }
}

/// The room on a disk. It never goes from `Short` to `Low`, and there is enough again only when a quarter more is free than
/// when the disk became low: no group goes back and forth at the limit.
fn room(was: DiskRoom, free: u64, reserve: u64, disk_low: u64) -> DiskRoom {
    let begins = reserve.saturating_add(disk_low);
    let ends = begins.saturating_add(begins / 4);
    if disk_low == 0 || free >= if was == DiskRoom::Enough { begins } else { ends } {
        DiskRoom::Enough
    } else if free < reserve.saturating_add(disk_low / 2) {
        DiskRoom::Short
    } else {
        was.max(DiskRoom::Low)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use towline_metrics::exporter::Exporter;

    use super::*;
    use crate::ids::GroupId;
    use crate::log_store::GroupWrite;
    use crate::message::Entry;
    use crate::node::inbox::{ShardInbox, WriteId};
    use crate::node::tests::common::{DEADLINE, MemLog, counter};
    use crate::node::writer::LogWriter;
    use crate::subscriber_double::OnEvent;
    use crate::sync::lock;

    fn log(space: impl Fn() -> io::Result<Option<DiskSpace>> + Send + Sync + 'static) -> Arc<MemLog> {
        let log = MemLog::default();
        assert!(log.space.set(Box::new(space)).is_ok());
        Arc::new(log)
    }

    /// An error showed nowhere, and the answer before it looked like a new one.
    #[test]
    fn an_error_is_one_line_when_it_begins_and_one_when_it_ends_and_changes_no_answer() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = lines.clone();
        let subscriber = || {
            let seen = seen.clone();
            OnEvent(move |event: &tracing::Event<'_>| {
                let mut fields = String::new();
                event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    fields += &format!("{field}={value:?} ");
                });
                lock(&seen).push((*event.metadata().level(), fields));
            })
        };
        // With a single subscriber, tracing lets the first thread that reaches a line decide whether the line is ever shown.
        let _second = tracing::Dispatch::new(subscriber());
        let _guard = tracing::subscriber::set_default(subscriber());
        let answers = Arc::new(Mutex::new(None));
        let given = answers.clone();
        let store = log(move || match *lock(&given) {
            Some(free) => Ok(Some(DiskSpace { free, reserve: 10 })),
            None => Err(io::Error::other("a stale handle")),
        });
        let (inbox, exporter) = (ShardInbox::new(), Exporter::new());
        let metrics = NodeMetrics::new(1, Some(exporter.recorder()));
        let shard = inbox.sender.clone();
        let mut looker = Looker { store, shard, metrics, disk_low: 90, room: DiskRoom::Enough, fails: false };
        let mut look = |free: Option<u64>| {
            *lock(&answers) = free;
            looker.look();
            std::mem::take(&mut *lock(&lines))
        };
        assert_eq!(look(Some(99)).len(), 1, "low");
        let begins = look(None);
        assert_eq!((begins.len(), begins[0].0), (1, tracing::Level::WARN));
        assert!(begins[0].1.contains("cannot be read"), "{begins:?}");
        assert!(begins[0].1.contains("a stale handle") && begins[0].1.contains("low=true"), "{begins:?}");
        assert_eq!(look(None), []);
        let ends = look(Some(99));
        assert!(ends.len() == 1 && ends[0].1.contains("can be read again"), "{ends:?}");
        assert_eq!(counter(&exporter, "towline_disk_looks_failed_total", ""), 2);
        let mut events = Vec::new();
        inbox.sender.take(&mut events);
        assert!(matches!(events[..], [ShardEvent::DiskRoom(DiskRoom::Low)]), "{} events", events.len());
    }

    /// The log writer asked the file system before it reported the write.
    #[test]
    fn writes_are_reported_while_the_file_system_does_not_answer() {
        let (hangs, hung) = channel();
        let (go_on, gate) = channel::<()>();
        let (calls, gate) = (Mutex::new(0), Mutex::new(gate));
        let store = log(move || {
            *lock(&calls) += 1;
            if *lock(&calls) == 2 {
                hangs.send(()).unwrap();
                let _ = lock(&gate).recv();
            }
            Ok(None)
        });
        let (inbox, metrics) = (ShardInbox::new(), NodeMetrics::noop());
        let (disk, watching) =
            DiskWatch::start(store.clone(), inbox.sender.clone(), metrics.clone(), LOOKS_PER_DISK_LOW)
                .unwrap();
        let (writer, writing) = LogWriter::start(store, inbox.sender.clone(), metrics, disk.clone()).unwrap();
        let write = |number| {
            let entries = vec![Entry { index: number, term: 1, data: "x".into(), ..Entry::default() }];
            let id = WriteId { group: GroupId::DEFAULT, generation: 1, number };
            writer.write(vec![(id, GroupWrite { entries, ..GroupWrite::new(GroupId::DEFAULT) })]);
        };
        // The first one makes the watch look.
        write(1);
        hung.recv_timeout(DEADLINE).unwrap();
        write(2);
        let (end, mut written, mut events) = (std::time::Instant::now() + DEADLINE, 0, Vec::new());
        while written < 2 {
            assert!(std::time::Instant::now() < end, "{written} writes are reported");
            inbox.sender.take(&mut events);
            for event in events.drain(..) {
                if let ShardEvent::Written(writes) = event {
                    written += writes.len();
                }
            }
            std::thread::sleep(Duration::from_millis(1)); // not synchronisation: poll interval under a deadline
        }
        drop(go_on);
        writer.stop();
        disk.stop();
        writing.join().unwrap();
        watching.join().unwrap();
    }

    #[test]
    fn a_low_disk_has_room_again_once_a_quarter_more_is_free() {
        use DiskRoom::{Enough, Low, Short};
        for (was, free, now) in [
            (Enough, 100, Enough),
            (Enough, 99, Low),
            (Low, 124, Low),
            (Low, 80, Low),
            (Enough, 79, Short),
            (Low, 79, Short),
            (Short, 124, Short),
            (Low, 125, Enough),
            (Short, 125, Enough),
        ] {
            assert_eq!(room(was, free, 60, 40), now, "{free} free, before: {was:?}");
        }
        assert_eq!(room(Enough, 0, 60, 0), Enough, "zero disables it");
    }
}
