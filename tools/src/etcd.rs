//! Three etcd members on loopback and a client of their JSON gateway, for comparison in the same run.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::Result;
use crate::cluster::{LEADER_DEADLINE, NODES, free_addresses};
use crate::process::Process;

const BODY_BYTES_MAX: usize = 1 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The first line of `etcd --version`; `None` if etcd cannot be run.
pub(crate) fn installed() -> Option<String> {
    let output = Command::new("etcd").arg("--version").stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

pub(crate) struct Etcd {
    members: Vec<Process>,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    pub(crate) fn start(data: &Path) -> Result<Self> {
        let (clients, peers) = (free_addresses(NODES)?, free_addresses(NODES)?);
        let initial: Vec<String> =
            peers.iter().enumerate().map(|(member, peer)| format!("m{member}=http://{peer}")).collect();
        let mut members = Vec::new();
        for (member, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{member}"), "--log-level", "error"])
                .arg("--data-dir")
                .arg(data.join(format!("etcd-{member}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &initial.join(","), "--initial-cluster-state", "new"]);
            members.push(Process::start(command, &data.join(format!("etcd-{member}.log")))?);
        }
        Ok(Self { members, clients })
    }

    pub(crate) fn resident_bytes(&self) -> Vec<Option<u64>> {
        self.members.iter().map(Process::resident_bytes).collect()
    }

    /// Waits until a member leads, and returns its client address.
    pub(crate) async fn wait_leader(&self) -> Result<SocketAddr> {
        let started = Instant::now();
        loop {
            for address in &self.clients {
                if leads(*address).await.unwrap_or(false) {
                    return Ok(*address);
                }
            }
            if started.elapsed() > LEADER_DEADLINE {
                return Err(format!("no etcd member leads after {} s", LEADER_DEADLINE.as_secs()).into());
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

async fn leads(address: SocketAddr) -> Result<bool> {
    let body = Gateway::open(address).await?.post("/v3/maintenance/status", b"{}").await?;
    let status: serde_json::Value = serde_json::from_slice(&body)?;
    let member = status.get("header").and_then(|header| header.get("member_id"));
    Ok(member.is_some() && status.get("leader") == member)
}

/// One keep-alive HTTP/1.1 connection, one request at a time.
pub(crate) struct Gateway {
    stream: BufReader<TcpStream>,
}

impl Gateway {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) async fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let body = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value));
        self.post("/v3/kv/put", body.as_bytes()).await.map(drop)
    }

    async fn post(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let length = body.len();
        let mut request =
            format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
                .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;

        let status = self.line().await?;
        let mut length = None;
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let length =
            length.filter(|length| *length <= BODY_BYTES_MAX).ok_or("the answer has no usable length")?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        match status.split_whitespace().nth(1) {
            Some("200") => Ok(body),
            _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
        }
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(BODY_BYTES_MAX as u64).read_line(&mut line).await?;
        let line = line.strip_suffix("\r\n").ok_or("the connection ended inside an answer")?;
        Ok(line.to_owned())
    }
}

/// Standard alphabet, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0_u32, |group, byte| group << 8 | u32::from(*byte));
        for position in 0..4_usize {
            let digit = (group >> (18 - 6 * position)) & 63;
            let letter = ALPHABET.get(digit as usize).copied().unwrap_or(b'=');
            out.push(if position <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads_as_the_standard_says() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
