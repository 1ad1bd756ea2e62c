//! Redis's own benchmark against three nodes, with pipelines. An error reply fails the run.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::process::{Process, run_in_directory, works};
use crate::{Missing, Result};

const PROGRAM: &str = "redis-benchmark";
const CONNECTIONS: u32 = 50;
const KEYS: u32 = 10_000;
const TESTS: &str = "set,get,incr,mset";
/// Each test takes a debug build a second or two, with and without pipelines.
const RUNS: &[Run] = &[Run { pipeline: 1, requests: 3_000 }, Run { pipeline: 16, requests: 16_000 }];
const RUN_DEADLINE: Duration = Duration::from_secs(60);

struct Run {
    pipeline: u32,
    requests: u32,
}

pub(crate) fn run(binary: &Path) -> Result<()> {
    if !works(PROGRAM, &["--version"]) {
        return Err(Missing(format!("{PROGRAM} is not installed (package redis-tools)")).into());
    }
    run_in_directory("redis-benchmark", async |data| measure(binary, data).await)
}

async fn measure(binary: &Path, data: &Path) -> Result<()> {
    let mut cluster = Cluster::start(binary.to_path_buf(), data)?;
    let leader = cluster.wait_leader().await?;
    let address = *cluster.redis_addresses().get(leader).ok_or("the leader has no address")?;
    for run in RUNS {
        let said = benchmark(address, run, data).await?;
        for line in verified(&said)? {
            println!("-c {CONNECTIONS} -P {:<3} {line}", run.pipeline);
        }
    }
    Ok(())
}

async fn benchmark(address: SocketAddr, run: &Run, data: &Path) -> Result<String> {
    let out = data.join(format!("benchmark-{}.txt", run.pipeline));
    let mut command = Command::new(PROGRAM);
    command
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-q", "-t", TESTS])
        .args(["-c", &CONNECTIONS.to_string(), "-P", &run.pipeline.to_string()])
        .args(["-n", &run.requests.to_string(), "-r", &KEYS.to_string()]);
    Process::finish(command, &out, RUN_DEADLINE).await
}

/// The result lines, one per test. An error reply, or a test without a result, is an error.
fn verified(said: &str) -> Result<Vec<String>> {
    // The program overwrites its progress line with carriage returns.
    let lines = || said.split(['\r', '\n']).map(str::trim).filter(|line| !line.is_empty());
    if let Some(error) = lines().find(|line| line.to_ascii_lowercase().contains("error")) {
        return Err(format!("{PROGRAM} saw an error: {error}").into());
    }
    let measured: Vec<String> =
        lines().filter(|line| line.contains("requests per second")).map(str::to_owned).collect();
    let tests = TESTS.split(',').count();
    if measured.len() != tests {
        return Err(format!("{PROGRAM} measured {} of {tests} tests: {said}", measured.len()).into());
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "SET: 1.00 requests per second, p50=1 msec\n\rGET: rps=0.0\rGET: 2.00 requests per second, p50=1 msec\n\
        INCR: 3.00 requests per second, p50=1 msec\nMSET (10 keys): 4.00 requests per second, p50=1 msec\n";

    #[test]
    fn every_test_is_measured() {
        assert_eq!(verified(SAID).unwrap().len(), 4);
        assert!(verified(&SAID.replace("INCR: 3.00 requests per second", "INCR: rps=0.0")).is_err());
    }

    #[test]
    fn an_error_reply_is_found() {
        let said = format!("{SAID}Error from server: MOVED 7 127.0.0.1:7001\n");
        assert!(verified(&said).unwrap_err().to_string().contains("MOVED 7"));
    }
}
