//! A whole cluster on this machine: each node is a child process.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::certs;
use crate::cli::Cluster;
use crate::failure::Failure;
use crate::stop::{Hangup, Signals};

/// Runs the nodes until a signal, or until one of them ends. Does not restart nodes.
pub(crate) async fn run(args: Cluster) -> Result<(), Failure> {
    let (data, _temporary) = data_dir(&args)?;
    let scheme = &args.transport;
    let certs = (scheme == "quic").then(|| data.join("certs"));
    if let Some(certs) = &certs {
        certs::make(certs, args.nodes)?;
    }
    let program = std::env::current_exe().map_err(|e| Failure::run("cannot find this program", e))?;
    let peers: Vec<String> = (1..=args.nodes)
        .map(|id| {
            let (redis, raft, _) = ports(&args, id);
            format!("{id}={scheme}://127.0.0.1:{raft},127.0.0.1:{redis}")
        })
        .collect();
    // Before the first child: an earlier signal would leave children behind.
    let mut signals =
        Signals::listen(Hangup::Stops).map_err(|e| Failure::run("cannot listen for signals", e))?;
    signals.started();
    let mut children = Vec::new();
    for id in 1..=args.nodes {
        let (redis, raft, http) = ports(&args, id);
        let mut command = Command::new(&program);
        command
            .args(["serve", "--bootstrap", "--exit-with-parent", "--id", &id.to_string()])
            .args(["--data", &data.join(id.to_string()).to_string_lossy()])
            .args(["--raft", &format!("{scheme}://127.0.0.1:{raft}")])
            .args(["--redis", &format!("127.0.0.1:{redis}")])
            .args(["--http", &format!("127.0.0.1:{http}")])
            .args(peers.iter().flat_map(|peer| ["--peer", peer.as_str()]))
            .args(certs.iter().flat_map(|certs| [OsStr::new("--tls"), certs.as_os_str()]))
            // The pipe closes when this process ends, even by SIGKILL. The child then stops.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| Failure::run(format!("cannot start node {id}"), e))?;
        forward(id, child.stdout.take());
        forward(id, child.stderr.take());
        tracing::info!(id, pid = child.id(), redis, http, "started");
        children.push((id, child));
    }
    let ended = tokio::select! {
        () = signals.requested() => None,
        ended = first_to_end(&mut children) => Some(ended),
    };
    for (_, child) in &mut children {
        terminate(child).await;
    }
    match ended {
        None => Ok(()),
        Some((id, status)) => {
            Err(Failure::Run(format!("node {id} ended: {status}; the others were stopped")))
        }
    }
}

fn ports(args: &Cluster, id: u64) -> (u16, u16, u16) {
    let redis = args.base_port + u16::try_from(id).unwrap_or(u16::MAX);
    (redis, redis + 100, redis + 200)
}

/// The data directory. Without `--data`, a temporary one that is removed at the end.
fn data_dir(args: &Cluster) -> Result<(PathBuf, Option<TemporaryDir>), Failure> {
    match &args.data {
        Some(data) => Ok((data.clone(), None)),
        None => {
            let path = std::env::temp_dir().join(format!("towline-kv-{}", std::process::id()));
            std::fs::create_dir_all(&path)
                .map_err(|e| Failure::run(format!("cannot make {}", path.display()), e))?;
            Ok((path.clone(), Some(TemporaryDir(path))))
        }
    }
}

struct TemporaryDir(PathBuf);

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn forward(id: u64, stream: Option<impl AsyncRead + Send + Unpin + 'static>) {
    let Some(stream) = stream else { return };
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("[{id}] {line}");
        }
    });
}

async fn first_to_end(children: &mut [(u64, Child)]) -> (u64, String) {
    let mut every = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        every.tick().await;
        for (id, child) in children.iter_mut() {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return (*id, status.to_string()),
                Err(error) => return (*id, error.to_string()),
            }
        }
    }
}

/// Sends SIGTERM, so that the node flushes and hands over leadership, and later SIGKILL.
async fn terminate(child: &mut Child) {
    const TERM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
    if let Some(pid) = child.id() {
        let asked = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
        if asked.is_ok() && tokio::time::timeout(TERM_TIMEOUT, child.wait()).await.is_ok() {
            return;
        }
        let _ = child.kill().await;
    }
}
