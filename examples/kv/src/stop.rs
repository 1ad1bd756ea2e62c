//! Signals: which ones stop the program, and which it ignores.

use std::io::{self, ErrorKind, Read as _};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use towline::TlsConfig;

/// Signals that end a process by default and mean nothing here. The standard library already ignores SIGPIPE.
const IGNORED: &[(Signal, &str)] = &[
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::ALARM, "SIGALRM"),
    (Signal::VTALARM, "SIGVTALRM"),
    (Signal::PROF, "SIGPROF"),
    (Signal::IO, "SIGIO"),
    #[cfg(target_os = "linux")]
    (Signal::POWER, "SIGPWR"),
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    (Signal::STKFLT, "SIGSTKFLT"),
    // The write that exceeds the file size limit returns an error.
    (Signal::XFSZ, "SIGXFSZ"),
];

/// Real-time signals also end a process by default. The C library uses the first ones.
const REAL_TIME: RangeInclusive<i32> = match (cfg!(target_os = "linux"), cfg!(target_env = "gnu")) {
    (true, true) => 34..=64,
    (true, false) => 35..=64,
    #[expect(clippy::reversed_empty_ranges, reason = "other systems may have none")]
    (false, _) => 1..=0,
};

pub(crate) enum Hangup {
    /// Reads the certificates again, if the node has some.
    Reloads(Option<TlsConfig>),
    /// Stops, because the terminal is gone. A process that started with SIGHUP ignored keeps ignoring it.
    Stops,
}

/// Receives signals from [`listen`](Self::listen) on.
pub(crate) struct Signals {
    stop: watch::Receiver<bool>,
    is_started: Arc<AtomicBool>,
}

impl Signals {
    /// SIGINT and SIGTERM end the program at once until [`started`](Self::started) is called. Later they stop it in order,
    /// and a second SIGINT ends it at once. Signals without a meaning here are logged and ignored.
    pub(crate) fn listen(hangup: Hangup) -> io::Result<Self> {
        let (stopping, stop) = watch::channel(false);
        let is_started = Arc::new(AtomicBool::new(false));
        let (mut interrupts, mut terminations) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let named = IGNORED.iter().map(|(signal, name)| (signal.as_raw(), *name));
        for (number, name) in named.chain(REAL_TIME.map(|number| (number, "real-time"))) {
            ignore(number, name)?;
        }
        if !(matches!(hangup, Hangup::Stops) && hangup_is_ignored()) {
            handle_hangups(hangup, Arc::clone(&is_started), stopping.clone())?;
        }
        let started = Arc::clone(&is_started);
        tokio::spawn(async move {
            let mut interrupted = false;
            loop {
                tokio::select! {
                    Some(()) = interrupts.recv() => {
                        if interrupted {
                            tracing::warn!("interrupted again: ending at once");
                            std::process::exit(1);
                        }
                        interrupted = true;
                        stop_or_end(&started, &stopping, "SIGINT");
                    }
                    Some(()) = terminations.recv() => stop_or_end(&started, &stopping, "SIGTERM"),
                    else => return,
                }
            }
        });
        Ok(Self { stop, is_started })
    }

    /// From now on a signal stops the program in order.
    pub(crate) fn started(&self) {
        self.is_started.store(true, Ordering::Release);
    }

    /// Resolves once a signal asks the program to stop.
    pub(crate) async fn requested(&mut self) {
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}

fn handle_hangups(
    hangup: Hangup,
    is_started: Arc<AtomicBool>,
    stopping: watch::Sender<bool>,
) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match &hangup {
                Hangup::Reloads(Some(tls)) => {
                    let tls = tls.clone();
                    // `reload` logs its outcome; after a failure the old certificates stay in use.
                    let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
                }
                Hangup::Reloads(None) => {
                    tracing::info!(
                        signal = "SIGHUP",
                        "a signal is ignored: there are no certificates to read again"
                    );
                }
                Hangup::Stops => stop_or_end(&is_started, &stopping, "SIGHUP"),
            }
        }
    });
    Ok(())
}

/// Whether the process started with SIGHUP ignored, as under `nohup`. False on systems other than Linux.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (Signal::HUP.as_raw() - 1)) != 0
}

fn ignore(number: i32, name: &'static str) -> io::Result<()> {
    let mut ignored = signal(SignalKind::from_raw(number))?;
    tokio::spawn(async move {
        while ignored.recv().await.is_some() {
            tracing::info!(signal = name, number, "a signal is ignored");
        }
    });
    Ok(())
}

/// Asks for a stop in order, or ends the program if it is still starting: it serves no client yet.
fn stop_or_end(is_started: &AtomicBool, stopping: &watch::Sender<bool>, signal: &'static str) {
    if !is_started.load(Ordering::Acquire) {
        tracing::info!(signal, "ended while starting");
        std::process::exit(0);
    }
    if stopping.send_replace(true) {
        tracing::info!(signal, "stopping already");
    }
}

/// Resolves at the end of standard input. The parent holds the other end while it lives, and no signal reports its death.
pub(crate) fn parent_gone() -> impl Future<Output = ()> {
    let (gone, seen) = oneshot::channel::<()>();
    // Not a thread of the runtime, which would wait for the read to return before it ends.
    let watching = std::thread::Builder::new().name("parent".into()).spawn(move || {
        let (mut input, mut buffer) = (std::io::stdin().lock(), [0; 64]);
        loop {
            match input.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return drop(gone),
                Ok(_) => {}
            }
        }
    });
    async move {
        if let Err(error) = watching {
            tracing::error!(%error, "the parent cannot be watched; stopping");
        }
        let _ = seen.await;
    }
}
