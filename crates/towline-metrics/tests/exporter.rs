//! The exporter as a scraper sees it, on loopback.

#![cfg(feature = "prometheus")]

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use towline_metrics::NodeMetrics;
use towline_metrics::exporter::{Exporter, ExporterError};
use towline_metrics::labels::{Lane, RejectCause};

const DEADLINE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn ask(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn status(answer: &str) -> &str {
    answer.lines().next().unwrap_or_default()
}

#[test]
fn text_has_help_types_labels_and_buckets() {
    let exporter = Exporter::new();
    for id in [1, 2] {
        let node = NodeMetrics::new(id, Some(exporter.recorder()));
        node.rejected(RejectCause::WrongCluster);
        node.log_write(Duration::from_millis(3), 5000, 2);
        node.peer(3, "grpc").lane(Lane::Append).messages_sent(id * 10);
    }
    let text = exporter.render();
    for line in [
        "# HELP towline_log_write_seconds Time of one durable log write, sync included.",
        "# TYPE towline_log_write_seconds histogram",
        "# TYPE towline_messages_sent_total counter",
        "# TYPE towline_queue_messages gauge",
        r#"towline_messages_sent_total{node="1",peer="3",transport="grpc",lane="append"} 10"#,
        r#"towline_messages_sent_total{node="2",peer="3",transport="grpc",lane="append"} 20"#,
        r#"towline_inbound_rejects_total{node="2",cause="wrong_cluster"} 1"#,
        r#"towline_log_write_seconds_bucket{node="1",le="0.0025"} 0"#,
        r#"towline_log_write_seconds_bucket{node="1",le="0.005"} 1"#,
        r#"towline_log_write_bytes_bucket{node="1",le="4096"} 0"#,
        r#"towline_log_write_bytes_bucket{node="1",le="16384"} 1"#,
        r#"towline_log_write_batches_bucket{node="1",le="1"} 0"#,
        r#"towline_log_write_batches_bucket{node="1",le="2"} 1"#,
        r#"towline_log_write_bytes_sum{node="2"} 5000"#,
    ] {
        assert!(text.lines().any(|have| have == line), "no line {line} in\n{text}");
    }
}

#[test]
fn upkeep_between_scrapes_loses_no_sample() {
    let exporter = Exporter::new();
    let node = NodeMetrics::new(1, Some(exporter.recorder()));
    for _ in 0..3 {
        node.shard_turn(Duration::from_millis(1));
        exporter.upkeep();
    }
    assert!(exporter.render().contains("towline_shard_turn_seconds_count{node=\"1\"} 3\n"));
}

#[tokio::test]
async fn serves_scrapes_and_refuses_other_requests() {
    let exporter = Exporter::new();
    let server = exporter.serve(loopback()).await.unwrap();
    let at = server.local_addr();
    assert_ne!(at.port(), 0);
    // Also metrics of a node that started after the endpoint.
    NodeMetrics::new(4, Some(exporter.recorder())).ticks_skipped(6);

    let answer = ask(at, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(status(head), "HTTP/1.1 200 OK");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    assert!(body.contains("towline_ticks_skipped_total{node=\"4\"} 6\n"), "{body}");

    let answer = ask(at, "HEAD /metrics HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\n"), "{answer}");
    for (request, expected) in [
        ("GET /metrics?name[]=x HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics HTTP/2.0\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        assert_eq!(status(&ask(at, request).await), expected, "{request}");
    }
}

#[tokio::test]
async fn an_endless_request_is_cut_at_the_bound() {
    let server = Exporter::new().serve(loopback()).await.unwrap();
    let at = server.local_addr();
    // Exactly one byte too long, so that the server reads all of it before it answers.
    let long = "x".repeat(8 * 1024 + 1);
    assert_eq!(status(&ask(at, &long).await), "HTTP/1.1 431 Request Header Fields Too Large");
    assert_eq!(status(&ask(at, "GET /metrics HTTP/1.1\r\n\r\n").await), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn silent_connections_do_not_keep_scrapers_out_for_ever() {
    let server = Exporter::new().serve(loopback()).await.unwrap();
    let at = server.local_addr();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    drop(silent.split_off(20));
    // Paused time jumps to the next timer, so the deadlines of the silent connections pass at once.
    tokio::time::pause();
    assert_eq!(status(&ask(at, "GET /metrics HTTP/1.1\r\n\r\n").await), "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_with_the_address() {
    let exporter = Exporter::new();
    let server = exporter.serve(loopback()).await.unwrap();
    let error = Exporter::new().serve(server.local_addr()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("metrics address {} is in use", server.local_addr()));
    let at = server.local_addr();
    server.close().await;
    assert_eq!(exporter.serve(at).await.unwrap().local_addr(), at, "the port is free after close");
}

#[tokio::test]
async fn an_address_of_another_machine_is_an_error_with_the_address() {
    // TEST-NET-1 belongs to no machine.
    let error = Exporter::new().serve(([192, 0, 2, 1], 0)).await.unwrap_err();
    assert_eq!(error.to_string(), "metrics address 192.0.2.1:0 is not an address of this machine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_server_stops_it_and_its_connections() {
    let server = Exporter::new().serve(loopback()).await.unwrap();
    let at = server.local_addr();
    let mut open = TcpStream::connect(at).await.unwrap();
    assert_eq!(status(&ask(at, "GET /metrics HTTP/1.1\r\n\r\n").await), "HTTP/1.1 200 OK");
    let before = Instant::now();
    drop(server);
    // The end of the stream or a reset, before the connection's own deadline.
    let ended = timeout(Duration::from_secs(8), open.read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?} after {:?}", before.elapsed());
    let refused = async { while TcpStream::connect(at).await.is_ok() {} };
    timeout(DEADLINE, refused).await.unwrap();
}

#[test]
fn serving_without_a_runtime_is_a_typed_error() {
    let exporter = Exporter::new();
    let mut serve = std::pin::pin!(exporter.serve(loopback()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(result) = serve.as_mut().poll(&mut context) else { panic!("pending") };
    assert!(matches!(result, Err(ExporterError::NoRuntime)), "{result:?}");
}
