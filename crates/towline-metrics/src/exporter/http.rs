//! The scrape endpoint: one request per connection, just enough HTTP/1.1 for a scraper and for curl.
//!
//! The exporter crate has a listener of its own, which does not fit: it opens only together with a new recorder and does
//! not return its port. Its connections and its upkeep also outlive its drop.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use super::Exporter;

/// Connections served at once. Further ones wait in the system's accept queue; none is refused here.
const CONNECTIONS_MAX: usize = 16;

/// Bound on a request's line and headers; a longer one is answered with 431.
const REQUEST_HEAD_BYTES_MAX: usize = 8 * 1024;

/// A connection is closed when its request and response together take longer, so that slow clients cannot
/// use up all connections.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// Pause after a failed accept. The usual cause is too few file descriptors, which a retry at once
/// would turn into a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Runs until dropped; its connections end with it.
pub(super) async fn serve(listener: TcpListener, exporter: Exporter) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let exporter = exporter.clone();
        connections.spawn(async move {
            // The client went away or was too slow; nothing here can act on the error.
            let _ = time::timeout(CONNECTION_DEADLINE, connection(stream, exporter)).await;
            drop(place);
        });
    }
}

async fn connection(mut stream: TcpStream, exporter: Exporter) -> io::Result<()> {
    let request = read_request(&mut stream).await?;
    let response = respond(request, exporter).await;
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// What the first line of a request asks for.
enum Request {
    Metrics { body: bool },
    OtherPath,
    OtherMethod,
    Malformed,
    HeadTooLong,
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Request> {
    let mut head = Vec::with_capacity(1024);
    // One byte more than allowed, to tell a head that fits exactly from one that does not.
    let mut bounded = stream.take(REQUEST_HEAD_BYTES_MAX as u64 + 1);
    while !ends_head(&head) {
        if bounded.read_buf(&mut head).await? == 0 {
            let too_long = head.len() > REQUEST_HEAD_BYTES_MAX;
            return Ok(if too_long { Request::HeadTooLong } else { Request::Malformed });
        }
    }
    Ok(parse(&head))
}

fn ends_head(head: &[u8]) -> bool {
    head.windows(4).any(|window| window == b"\r\n\r\n")
}

fn parse(head: &[u8]) -> Request {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Request::Malformed };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Request::Malformed;
    };
    if !version.starts_with("HTTP/1.") {
        return Request::Malformed;
    }
    let path = target.split('?').next().unwrap_or_default();
    match (path, method) {
        ("/metrics", "GET") => Request::Metrics { body: true },
        ("/metrics", "HEAD") => Request::Metrics { body: false },
        ("/metrics", _) => Request::OtherMethod,
        _ => Request::OtherPath,
    }
}

async fn respond(request: Request, exporter: Exporter) -> String {
    match request {
        Request::Metrics { body } => match tokio::task::spawn_blocking(move || exporter.render()).await {
            Ok(text) => response("200 OK", EXPOSITION, "", &text, body),
            Err(_) => response("500 Internal Server Error", TEXT, "", "rendering failed\n", body),
        },
        Request::OtherPath => response("404 Not Found", TEXT, "", "see /metrics\n", true),
        Request::OtherMethod => {
            response("405 Method Not Allowed", TEXT, "allow: GET, HEAD\r\n", "use GET\n", true)
        }
        Request::Malformed => response("400 Bad Request", TEXT, "", "not an HTTP/1 request\n", true),
        Request::HeadTooLong => {
            response("431 Request Header Fields Too Large", TEXT, "", "request too long\n", true)
        }
    }
}

/// `header` is empty or one whole line; without `body` only the head is sent, with the length the body had.
fn response(status: &str, kind: &str, header: &str, text: &str, body: bool) -> String {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{header}connection: close\r\n\r\n"
    );
    if body { head + text } else { head }
}
