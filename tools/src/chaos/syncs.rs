//! A disk that is slow or hangs: strace delays each sync of the thread that writes the log of a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Result;
use crate::process::{Process, works};

const LOG_THREAD: &str = "towline-log";
const ATTACH_DEADLINE: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Whether strace may trace here.
pub(super) fn can_trace() -> bool {
    works("strace", &["-q", "-o", "/dev/null", "true"])
}

/// Delayed syncs. Its drop ends the delay, also that of a sync in flight.
pub(super) struct SlowSyncs {
    _strace: Process,
}

impl SlowSyncs {
    /// Returns once strace is attached.
    pub(super) async fn begin(process: u32, delay: Duration, log: &Path) -> Result<Self> {
        let thread = log_thread(process).ok_or("the node has no thread that writes the log")?;
        let number = thread.file_name().and_then(|name| name.to_str()).ok_or("a thread without a number")?;
        let mut command = Command::new("strace");
        command.args(["-q", "-p", number, "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        command.args(["-e", &format!("inject=fdatasync,fsync:delay_enter={}", delay.as_micros())]);
        let (mut strace, begun) = (Process::start(command, log)?, Instant::now());
        loop {
            let status = fs::read_to_string(thread.join("status"))?;
            if !status.contains("TracerPid:\t0\n") {
                return Ok(Self { _strace: strace });
            }
            let ended = strace.exit_status();
            if ended.is_some() || begun.elapsed() > ATTACH_DEADLINE {
                return Err(format!("strace has not attached: {ended:?}, see {}", log.display()).into());
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

fn log_thread(process: u32) -> Option<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads
        .filter_map(|thread| Some(thread.ok()?.path()))
        .find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == LOG_THREAD))
}
