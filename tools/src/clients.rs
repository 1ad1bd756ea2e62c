//! Published cluster clients, redis-py and ioredis, against three nodes.
//!
//! pip and npm install them in a temporary directory. A script per client checks answers, kills the leader, and checks
//! that the client recovers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::process::{Process, run_in_directory, works};
use crate::{Missing, Result};

/// A download from a slow registry.
const INSTALL_DEADLINE: Duration = Duration::from_secs(180);
/// A script takes 10 s; each of its waits has a deadline of 20 s.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(90);
/// Below the root of the workspace, where the tool must run.
const SCRIPTS: &str = "examples/kv/tests/clients";

struct ClientLibrary {
    name: &'static str,
    script: &'static str,
    /// Programs that it needs, each with arguments that prove that the program works.
    needs: &'static [(&'static str, &'static [&'static str])],
    install: fn(&Path) -> Result<Vec<Command>>,
    run: fn(&Path, &Path) -> Command,
}

/// The versions are pinned; change them here.
const CLIENTS: &[ClientLibrary] = &[
    ClientLibrary {
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
            // `-B`: no bytecode beside the script, in the repository.
            python.arg("-B").arg(script);
            python
        },
    },
    ClientLibrary {
        name: "ioredis",
        script: "ioredis.js",
        needs: &[("node", &["--version"]), ("npm", &["--version"])],
        install: |directory| {
            fs::write(directory.join("package.json"), "{\"private\": true}\n")?;
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

pub(crate) fn run(binary: &Path) -> Result<()> {
    for ClientLibrary { name, needs, .. } in CLIENTS {
        if let Some((program, arguments)) =
            needs.iter().find(|(program, arguments)| !works(program, arguments))
        {
            let arguments = arguments.join(" ");
            return Err(Missing(format!("{name} needs `{program} {arguments}` to work")).into());
        }
    }
    run_in_directory("clients", async |data| run_all(binary, data).await)
}

async fn run_all(binary: &Path, data: &Path) -> Result<()> {
    let scripts = fs::canonicalize(SCRIPTS).map_err(|error| format!("{SCRIPTS}: {error}"))?;
    for client in CLIENTS {
        let (installed, started) = (data.join(client.name), Instant::now());
        fs::create_dir_all(&installed)?;
        for command in (client.install)(&installed)? {
            Process::finish(command, &data.join("install.log"), INSTALL_DEADLINE).await?;
        }
        println!("{} installed in {:.1} s", client.name, started.elapsed().as_secs_f64());

        let (started, nodes) = (Instant::now(), data.join(format!("{}-nodes", client.name)));
        fs::create_dir_all(&nodes)?;
        let mut cluster = Cluster::start(binary.to_path_buf(), &nodes)?;
        cluster.wait_leader().await?;
        let mut command = (client.run)(&installed, &scripts.join(client.script));
        for (address, process) in cluster.redis_addresses().iter().zip(cluster.process_ids()) {
            command.arg(format!("{address}={process}"));
        }
        let said =
            Process::finish(command, &data.join(format!("{}.log", client.name)), SCRIPT_DEADLINE).await?;
        print!("{said}");
        println!("{} took {:.1} s", client.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}
