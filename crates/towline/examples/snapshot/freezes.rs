//! When the machine itself stood still: spans in which none of its processors ran even a thread of the highest priority.
//! On shared hosts that happens, and no program is to blame for what it does late then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a watch sleeps, and how late it has to be for that to be the machine's doing and not a timer's.
const NAP: Duration = Duration::from_millis(1);

/// A span of time.
pub(crate) type Span = (Instant, Instant);

/// One watch on each processor, until this is asked what they saw.
pub(crate) struct Watches {
    stop: Arc<AtomicBool>,
    watches: Vec<JoinHandle<Option<Vec<Span>>>>,
}

impl Watches {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let watch = |processor| {
            let stop = stop.clone();
            std::thread::spawn(move || highest_priority_on(processor).then(|| watch(&stop)))
        };
        Self { watches: (0..processors).map(watch).collect(), stop }
    }

    /// The spans in which all processors stood still. `None` where this program may not have a higher priority than the
    /// threads it measures: then they could be what kept a watch from its processor.
    pub(crate) fn end(self) -> Option<Vec<Span>> {
        self.stop.store(true, Ordering::Relaxed);
        let seen: Option<Vec<_>> =
            self.watches.into_iter().map(|watch| watch.join().ok().flatten()).collect();
        seen?.into_iter().reduce(|all, other| both(&all, &other))
    }
}

fn watch(stop: &AtomicBool) -> Vec<Span> {
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + NAP;
        std::thread::sleep(NAP);
        let woken = Instant::now();
        if woken > due + NAP {
            late.push((due, woken));
        }
    }
    late
}

/// What lies in a span of each. Both are in order.
fn both(a: &[Span], b: &[Span]) -> Vec<Span> {
    a.iter().flat_map(|one| b.iter().filter_map(|other| common(*one, *other))).collect()
}

fn common(a: Span, b: Span) -> Option<Span> {
    let (from, to) = (a.0.max(b.0), a.1.min(b.1));
    (from < to).then_some((from, to))
}

/// How much of `span` lies in `spans`, which do not overlap.
pub(crate) fn within(span: Span, spans: &[Span]) -> Duration {
    spans.iter().filter_map(|one| common(span, *one)).map(|(from, to)| to - from).sum()
}

#[cfg(target_os = "linux")]
fn highest_priority_on(processor: usize) -> bool {
    use rustix::process::setpriority_process;
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut only = CpuSet::new();
    only.set(processor);
    // Linux has a priority for each thread; "none" is this one.
    sched_setaffinity(None, &only).is_ok() && setpriority_process(None, -20).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn highest_priority_on(_: usize) -> bool {
    false
}
