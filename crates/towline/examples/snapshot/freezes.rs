//! Finds the spans in which a shared host stopped all processors of this machine. A thread of the highest priority on each
//! processor notes when it wakes up late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a watching thread sleeps.
const NAP: Duration = Duration::from_millis(1);

/// The shortest span. A long system call can make a thread late by less.
const SPAN_MIN: Duration = Duration::from_millis(3);

pub(crate) type Span = (Instant, Instant);

/// One watching thread on each processor.
pub(crate) struct Watches {
    began: Instant,
    stop: Arc<AtomicBool>,
    watches: Vec<JoinHandle<Option<Vec<Span>>>>,
    stolen: Option<Duration>,
}

pub(crate) struct Freezes {
    /// The spans in which all processors stood still.
    pub(crate) spans: Vec<Span>,
    /// How long the threads watched.
    pub(crate) watched: Duration,
    /// The time that the host took meanwhile, of the processor from which it took least.
    pub(crate) stolen: Duration,
}

impl Watches {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |processor| {
            let stop = stop.clone();
            std::thread::spawn(move || highest_priority_on(processor).then(|| watch(&stop)))
        };
        let watches = processors().into_iter().map(watch).collect();
        Self { began: Instant::now(), watches, stop, stolen: stolen() }
    }

    /// `None` if the threads could not get the highest priority, so the measured threads may have delayed them, or if the
    /// kernel does not report stolen time.
    pub(crate) fn end(self) -> Option<Freezes> {
        self.stop.store(true, Ordering::Relaxed);
        let watched = self.began.elapsed();
        let stolen = stolen()?.saturating_sub(self.stolen?);
        let seen: Option<Vec<_>> =
            self.watches.into_iter().map(|watch| watch.join().ok().flatten()).collect();
        let spans = seen?.into_iter().reduce(|all, other| both(&all, &other))?;
        Some(Freezes { spans, watched, stolen })
    }
}

impl Freezes {
    pub(crate) fn total(&self) -> Duration {
        self.spans.iter().map(|(from, to)| *to - *from).sum()
    }

    pub(crate) fn longest(&self) -> Duration {
        self.spans.iter().map(|(from, to)| *to - *from).max().unwrap_or_default()
    }

    /// The part of `span` that lies in a freeze.
    pub(crate) fn within(&self, span: Span) -> Duration {
        self.spans.iter().filter_map(|one| common(span, *one)).map(|(from, to)| to - from).sum()
    }
}

fn watch(stop: &AtomicBool) -> Vec<Span> {
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + NAP;
        std::thread::sleep(NAP);
        let woken = Instant::now();
        if woken > due + SPAN_MIN {
            late.push((due, woken));
        }
    }
    late
}

/// The intersection of two ordered lists.
fn both(a: &[Span], b: &[Span]) -> Vec<Span> {
    a.iter().flat_map(|one| b.iter().filter_map(|other| common(*one, *other))).collect()
}

fn common(a: Span, b: Span) -> Option<Span> {
    let (from, to) = (a.0.max(b.0), a.1.min(b.1));
    (from < to).then_some((from, to))
}

/// The time that the host took since the start of this machine, of the processor from which it took least. The kernel
/// counts in hundredths of a second.
fn stolen() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let of_one = |number| {
        let name = format!("cpu{number} ");
        let times = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        times.split(' ').nth(7)?.parse::<u64>().ok()
    };
    let all: Option<Vec<_>> = processors().into_iter().map(of_one).collect();
    Some(Duration::from_millis(10 * all?.into_iter().min()?))
}

#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&number| set.is_set(number)).collect()
}

#[cfg(target_os = "linux")]
fn highest_priority_on(processor: usize) -> bool {
    use rustix::process::setpriority_process;
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut only = CpuSet::new();
    only.set(processor);
    // On Linux the niceness belongs to a thread, and `None` means the calling one.
    sched_setaffinity(None, &only).is_ok() && setpriority_process(None, -20).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn highest_priority_on(_: usize) -> bool {
    false
}
