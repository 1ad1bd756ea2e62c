//! Child processes that end with their guard, and the runtime that a signal ends.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Result;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs `work` in a temporary directory until it ends or a signal arrives. A failure keeps the directory.
pub(crate) fn run_in_directory(name: &str, work: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let data = tempfile::Builder::new().prefix(&format!("towline-{name}-")).tempdir()?;
    let done = interruptible(work(data.path()));
    if done.is_err() {
        println!("data and logs are kept in {}", data.keep().display());
    }
    done
}

/// Runs `work` until it ends or a signal arrives. Dropping `work` ends the processes that it started.
pub(crate) fn interruptible(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            signal = ending_signal() => Err(format!("ended by {}", signal?).into()),
        }
    })
}

#[cfg(unix)]
async fn ending_signal() -> Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}

#[cfg(not(unix))]
async fn ending_signal() -> Result<&'static str> {
    tokio::signal::ctrl_c().await?;
    Ok("Ctrl-C")
}

/// A child process. Its drop kills the child and waits for its end.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a command with its output in `log`, in a process group of its own, so that Ctrl-C reaches us first.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        Ok(Self { child })
    }

    /// Runs a command to its end, and returns what it printed. Any other end than success is an error.
    pub(crate) async fn finish(command: Command, log: &Path, deadline: Duration) -> Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (mut process, started) = (Self::start(command, log)?, Instant::now());
        loop {
            let (status, late) = (process.exit_status(), started.elapsed() > deadline);
            if status.is_none() && !late {
                sleep(POLL_INTERVAL).await;
                continue;
            }
            let printed = String::from_utf8_lossy(&fs::read(log)?).into_owned();
            return match status {
                Some(status) if status.success() => Ok(printed),
                Some(status) => Err(format!("{name} ended with {status}: {printed}").into()),
                None => Err(format!("{name} has not ended after {} s: {printed}", deadline.as_secs()).into()),
            };
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes; `None` on a system without `/proc`.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }

    /// `None` while the process runs.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL on Unix. An error means that the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that SIGSTOP has stopped. Its drop continues the process.
pub(crate) struct Stopped(u32);

impl Stopped {
    pub(crate) fn new(process: u32) -> Result<Self> {
        signal(process, "-STOP")?;
        Ok(Self(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // An error means that the process was killed meanwhile.
        let _ = signal(self.0, "-CONT");
    }
}

fn signal(process: u32, signal: &str) -> Result<()> {
    let done = Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status()?;
    if done.success() { Ok(()) } else { Err(format!("kill {signal} {process}: {done}").into()) }
}

/// Whether a program runs with these arguments and succeeds.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let run = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_dropped_process_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("tail");
        command.args(["-f", "/dev/null"]);
        let process = Process::start(command, &directory.path().join("log")).unwrap();
        let proc = Path::new("/proc").join(process.id().to_string());
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }
}
