//! redis-py and ioredis against three nodes: cluster clients as they are published.
//!
//! Each is installed in a temporary directory by the tool of its language. Its script asserts what it sees, kills the
//! leader, and asserts that the client recovers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::{Cluster, Process};
use crate::{Result, interruptible};

const NODES: usize = 3;
const LEADER_DEADLINE: Duration = Duration::from_secs(20);
/// A download from a slow registry.
const INSTALL_DEADLINE: Duration = Duration::from_secs(180);
/// A script waits 20 s at most for each thing that it waits for, and takes 10 s.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const SCRIPTS: &str = "examples/kv/tests/clients";

struct Client {
    name: &'static str,
    script: &'static str,
    /// Programs that installing and running it takes, with the argument that proves that they work.
    needs: &'static [(&'static str, &'static [&'static str])],
    install: fn(&Path) -> Result<Vec<Command>>,
    run: fn(&Path, &Path) -> Command,
}

/// The versions are pinned: a new one is tried by a change here.
const CLIENTS: &[Client] = &[
    Client {
        name: "redis-py",
        script: "redis_py.py",
        needs: &[("python3", &["-c", "import ensurepip, venv"])],
        install: |directory| {
            let mut environment = Command::new("python3");
            environment.args(["-m", "venv"]).arg(directory);
            let mut install = Command::new(directory.join("bin/pip"));
            install.args(["install", "--quiet", "--disable-pip-version-check", "redis==8.1.0"]);
            Ok(vec![environment, install])
        },
        run: |directory, script| {
            let mut python = Command::new(directory.join("bin/python"));
            // Python writes no bytecode beside the script, which lies in the repository.
            python.arg("-B").arg(script);
            python
        },
    },
    Client {
        name: "ioredis",
        script: "ioredis.js",
        needs: &[("node", &["--version"]), ("npm", &["--version"])],
        install: |directory| {
            std::fs::write(directory.join("package.json"), "{\"private\": true}\n")?;
            let mut install = Command::new("npm");
            install.args([
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--ignore-scripts",
                "ioredis@5.11.1",
            ]);
            install.current_dir(directory);
            Ok(vec![install])
        },
        run: |directory, script| {
            let mut node = Command::new("node");
            node.arg(script).env("NODE_PATH", directory.join("node_modules"));
            node
        },
    },
];

/// What is missing on this machine, if anything.
pub(crate) fn missing() -> Option<String> {
    let needs = CLIENTS.iter().flat_map(|client| client.needs.iter().map(move |need| (client, need)));
    let mut missing = needs.filter(|(_, (program, arguments))| {
        let run = Command::new(program).args(*arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        !run.is_ok_and(|status| status.success())
    });
    let (client, (program, arguments)) = missing.next()?;
    Some(format!("`{program} {}` does not work, which {} needs", arguments.join(" "), client.name))
}

pub(crate) fn run(root: &Path, binary: &Path) -> Result<()> {
    let data = tempfile::Builder::new().prefix("towline-clients-").tempdir()?;
    let done = interruptible(run_all(root, binary, data.path()));
    if done.is_err() {
        println!("data and logs are kept in {}", data.keep().display());
    }
    done
}

async fn run_all(root: &Path, binary: &Path, data: &Path) -> Result<()> {
    for client in CLIENTS {
        let (installed, started) = (data.join(client.name), Instant::now());
        std::fs::create_dir_all(&installed)?;
        for command in (client.install)(&installed)? {
            finish(command, &data.join("install.log"), INSTALL_DEADLINE).await?;
        }
        println!("{} installed in {:.1} s", client.name, started.elapsed().as_secs_f64());

        let (started, nodes) = (Instant::now(), data.join(format!("{}-nodes", client.name)));
        std::fs::create_dir_all(&nodes)?;
        let mut cluster = Cluster::start(binary.to_path_buf(), &nodes, NODES)?;
        cluster.wait_leader(LEADER_DEADLINE).await?;
        let mut command = (client.run)(&installed, &root.join(SCRIPTS).join(client.script));
        for (address, process) in cluster.redis_addresses().iter().zip(cluster.process_ids()) {
            command.arg(format!("{address}={process}"));
        }
        let said = finish(command, &data.join(format!("{}.log", client.name)), SCRIPT_DEADLINE).await?;
        print!("{said}");
        println!("{} took {:.1} s", client.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Runs a command to its end, and gives what it said.
async fn finish(command: Command, log: &Path, deadline: Duration) -> Result<String> {
    let name = PathBuf::from(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_owned();
    let (mut process, started) = (Process::start(command, log)?, Instant::now());
    loop {
        let ended = process.ended();
        let said = || Ok::<_, std::io::Error>(String::from_utf8_lossy(&std::fs::read(log)?).into_owned());
        match ended {
            Some(status) if status.success() => return Ok(said()?),
            Some(status) => {
                return Err(format!("{} ended with {status}: {}", name.display(), said()?).into());
            }
            None if started.elapsed() > deadline => {
                let seconds = deadline.as_secs();
                return Err(format!("{} has not ended after {seconds} s: {}", name.display(), said()?).into());
            }
            None => sleep(POLL_INTERVAL).await,
        }
    }
}
