//! Clients that do not read, do not finish, or are gone. The server must bound its memory and serve the others.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{Cluster, DEADLINE, Ports, settings, wait};

fn command(args: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n{arg}\r\n", arg.len()).bytes());
    }
    out
}

/// `MGET` that names one key many times.
fn mget(key: &str, times: usize) -> Vec<u8> {
    command(&[&["MGET"][..], &vec![key; times]].concat())
}

fn set(ports: &Ports, key: &str, bytes: usize) {
    let mut client = ports.client().unwrap();
    redis::cmd("SET").arg(key).arg("v".repeat(bytes)).query::<()>(&mut client).unwrap();
}

fn line(reader: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Reads an array of `times` values of `bytes` bytes.
fn read_values(reader: &mut impl std::io::BufRead, times: usize, bytes: usize) {
    assert_eq!(line(reader), format!("*{times}"));
    let mut value = vec![0; bytes + 2];
    for _ in 0..times {
        assert_eq!(line(reader), format!("${bytes}"));
        reader.read_exact(&mut value).unwrap();
        assert!(value[..bytes].iter().all(|byte| *byte == b'v'));
    }
}

fn is_answered(stream: &mut TcpStream) -> bool {
    let mut said = [0; 7];
    let asked = stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut said));
    asked.is_ok() && &said == b"+PONG\r\n"
}

/// Whether the node answers a new client.
fn answers(ports: &Ports) -> bool {
    TcpStream::connect(("127.0.0.1", ports.redis)).is_ok_and(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        is_answered(&mut stream)
    })
}

/// Sends until the server's bounds make it stop reading.
fn send_until_refused(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while stream.write_all(bytes).is_ok() {}
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

/// After a reply larger than the socket buffer, the connection waited only for the end of the server. The client got no
/// further answer, and the server did not notice its end.
#[test]
fn a_reply_larger_than_the_socket_buffer_is_followed_by_the_next() {
    let cluster = Cluster::start(1);
    set(&cluster.ports[0], "v", 900_000);
    for times in [2, 2, 3, 8] {
        let mut stream = cluster.ports[0].socket();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        // A PING after the reply was read, then one during the reply.
        stream.write_all(&mget("v", times)).unwrap();
        read_values(&mut reader, times, 900_000);
        stream.write_all(b"PING\r\n").unwrap();
        assert_eq!(line(&mut reader), "+PONG");
        stream.write_all(&mget("v", times)).unwrap();
        reader.fill_buf().unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        read_values(&mut reader, times, 900_000);
        assert_eq!(line(&mut reader), "+PONG");
        // The client ends its side and still gets all replies.
        stream.write_all(&[mget("v", times), b"PING\r\n".to_vec()].concat()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_values(&mut reader, times, 900_000);
        assert_eq!(line(&mut reader), "+PONG");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the server closes");
    }
}

#[test]
fn a_disconnected_client_frees_its_connection_in_every_state() {
    let cluster = Cluster::start_with(1, &settings("connections_max = 4"));
    let ports = cluster.ports[0];
    set(&ports, "v", 900_000);
    let idle: fn(&mut TcpStream) = |_| {};
    let unread: fn(&mut TcpStream) = |stream| stream.write_all(&mget("v", 100)).unwrap();
    let read_in_part: fn(&mut TcpStream) = |stream| {
        stream.write_all(&mget("v", 100)).unwrap();
        stream.read_exact(&mut [0; 100_000]).unwrap();
    };
    let read_whole: fn(&mut TcpStream) = |stream| {
        stream.write_all(&mget("v", 2)).unwrap();
        read_values(&mut BufReader::new(stream), 2, 900_000);
    };
    let pipelined: fn(&mut TcpStream) = |stream| {
        send_until_refused(stream, &command(&["GET", "v"]).repeat(1_000));
    };
    let unfinished: fn(&mut TcpStream) = |stream| {
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$900000\r\nvvv").unwrap();
    };
    let mut clients: Vec<_> = wait("four connections", || {
        let mut clients: Vec<_> = (0..4).map(|_| ports.socket()).collect();
        clients.iter_mut().all(is_answered).then_some(clients)
    });
    for (state, get_there) in [
        ("idle", idle),
        ("unread", unread),
        ("read in part", read_in_part),
        ("read whole", read_whole),
        ("pipelined", pipelined),
        ("unfinished", unfinished),
    ] {
        clients.iter_mut().for_each(get_there);
        drop(clients);
        clients = wait(&format!("the connections of clients that were {state}"), || {
            let mut others: Vec<_> = (0..4).map(|_| ports.socket()).collect();
            others.iter_mut().all(is_answered).then_some(others)
        });
    }
}

/// One command of 136 KB asked for 18 GB, and the server gathered them in memory.
#[test]
fn long_replies_of_many_clients_take_bounded_memory_and_arrive_whole() {
    const NAMES: usize = 20_000;
    // A small memtable: values leave memory soon, and reads from the store are copies.
    let settings = settings("reply_bytes_max = '64MiB'\n[store]\nmemtable_bytes = '64KiB'");
    let mut cluster = Cluster::start_with(1, &settings);
    let ports = cluster.ports[0];
    for key in ["v", "w", "x"] {
        set(&ports, key, 900_000);
    }
    let before = cluster.process(0).resident_bytes();
    let many = mget("v", NAMES);
    let exists = command(&[&["EXISTS"][..], &["v"; NAMES]].concat());
    let old_values = command(&["SET", "w", "x", "NX", "GET"]).repeat(1_000);
    let mut clients: Vec<_> = (0..30).map(|_| ports.socket()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        match number % 3 {
            0 => client.write_all(&many).unwrap(),
            1 => send_until_refused(client, &command(&["GET", "w"]).repeat(1_000)),
            _ => send_until_refused(client, &old_values),
        }
    }
    // The server answers others meanwhile.
    let mut reader = BufReader::new(ports.socket());
    reader.get_mut().write_all(&exists).unwrap();
    assert_eq!(line(&mut reader), format!(":{NAMES}"));
    assert!(answers(&ports));
    if let (Some(before), Some(now)) = (before, cluster.process(0).resident_bytes()) {
        let grown = now.saturating_sub(before) >> 20;
        assert!(grown < 200, "memory grew by {grown} MiB");
    }
    // A client that reads gets the whole reply, although the key changes meanwhile.
    let mut reader = BufReader::with_capacity(1 << 20, ports.socket());
    reader.get_mut().write_all(&mget("v", 300)).unwrap();
    assert_eq!(reader.fill_buf().unwrap()[..1], *b"*");
    set(&ports, "v", 10);
    read_values(&mut reader, 300, 900_000);
    drop(clients);
    wait("the memory of gone clients", || answers(&ports).then_some(()));
}

#[test]
fn stalled_clients_are_closed_at_a_deadline_and_counted() {
    let timeouts = "command_timeout = '1s'\nwrite_timeout = '1s'\nreply_timeout = '4s'";
    let cluster = Cluster::start_with(1, &settings(timeouts));
    let ports = cluster.ports[0];
    set(&ports, "v", 900_000);
    let closed = |cause: &str| ports.counter("towline_kv_redis_closed_total", &[&format!("\"{cause}\"")]);

    let mut idle = ports.socket();
    for unfinished in
        [&b"*2\r\n$3\r\nGET\r\n$1"[..], b"PING", b"*1000\r\n", b"*2\r\n$3\r\nGET\r\n$1000000\r\nv"]
    {
        let before = closed("command_timeout");
        let mut stream = ports.socket();
        stream.write_all(unfinished).unwrap();
        wait("the end of a command that does not", || is_closed(&mut stream).then_some(()));
        assert_eq!(closed("command_timeout"), before + 1);
    }
    // One byte at a time does not extend the deadline.
    let mut slow = ports.socket();
    wait("the end of a slow command", || slow.write_all(b"x").is_err().then_some(()));

    for asked in [mget("v", 100), command(&["GET", "v"]).repeat(100)] {
        let before = closed("write_timeout");
        let mut unread = ports.socket();
        unread.write_all(&asked).unwrap();
        wait("the end of an unread reply", || (closed("write_timeout") > before).then_some(()));
    }
    // This client reads, but too slowly to get the whole reply in time.
    let mut dripping = ports.socket();
    dripping.write_all(&mget("v", 20_000)).unwrap();
    let mut taken = vec![0; 256 << 10];
    wait("the end of a reply without an end", || {
        dripping.set_read_timeout(Some(DEADLINE)).unwrap();
        (!matches!(dripping.read(&mut taken), Ok(1..))).then_some(())
    });
    assert_eq!(closed("reply_timeout"), 1);
    idle.write_all(b"PING\r\n").unwrap();
    idle.read_exact(&mut [0; 7]).unwrap();
}

/// Settings with timeouts longer than any test, and `more`.
fn patient(more: &str) -> String {
    let timeouts = "command_timeout = '10m'\nwrite_timeout = '10m'\nreply_timeout = '10m'";
    settings(&format!("{timeouts}\n{more}"))
}

/// A client that did not read its reply kept the values until the reply timeout, and others waited for room.
#[test]
fn a_client_that_does_not_read_loses_the_kept_values_that_another_waits_for() {
    // Half of the pool is for kept values: room for 18.
    let cluster = Cluster::start_with(1, &patient("reply_bytes_max = '32MiB'"));
    let ports = cluster.ports[0];
    let keys: Vec<String> = (0..18).map(|key| key.to_string()).collect();
    keys.iter().for_each(|key| set(&ports, key, 900_000));
    let mut unread = BufReader::new(ports.socket());
    let words: Vec<&str> = std::iter::once("MGET").chain(keys.iter().map(String::as_str)).collect();
    unread.get_mut().write_all(&command(&words)).unwrap();
    // The reply begins after the server has kept its values.
    assert_eq!(line(&mut unread), "*18");
    let mut reader = BufReader::new(ports.socket());
    reader.get_mut().write_all(&command(&["MGET", "0", "1"])).unwrap();
    read_values(&mut reader, 2, 900_000);
    assert_eq!(ports.counter("towline_kv_redis_closed_total", &["\"reply_timeout\""]), 1);
    assert!(ports.counter("towline_kv_redis_waits_total", &["\"reply_bytes_max\""]) > 0);
    assert!(is_closed(unread.get_mut()));
}

/// Clients sent many reads and a part of a long command, and read nothing. They kept the room of all long commands until the
/// write timeout.
#[test]
fn a_client_that_does_not_read_loses_the_long_command_that_another_waits_for() {
    let cluster = Cluster::start_with(1, &patient("long_commands_max = 2"));
    let ports = cluster.ports[0];
    set(&ports, "v", 900_000);
    let mut input = command(&["SET", "k", "1"]);
    input.extend(command(&["GET", "v"]).repeat(40));
    input.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$900000\r\n");
    input.resize(input.len() + 100_000, b'v');
    let mut unread = Vec::new();
    // A client gets no room if its replies come before the server reads the long command, so try several.
    wait("all rooms to be taken", || {
        let mut stream = ports.socket();
        send_until_refused(&mut stream, &input);
        unread.push(stream);
        (ports.counter("towline_kv_redis_waits_total", &["\"long_commands_max\""]) > 0).then_some(())
    });
    let mut reader = BufReader::new(ports.socket());
    reader.get_mut().write_all(&command(&["SET", "k", &"v".repeat(900_000)])).unwrap();
    assert_eq!(line(&mut reader), "+OK");
    assert!(ports.counter("towline_kv_redis_closed_total", &["\"reply_timeout\""]) > 0);
}

/// Each refused client wrote one line to the log.
#[test]
fn refused_clients_do_not_fill_the_log() {
    let started = Instant::now();
    let mut cluster = Cluster::start_with(1, &settings("connections_max = 1"));
    let ports = cluster.ports[0];
    let _only = wait("the only connection", || {
        let mut stream = ports.socket();
        is_answered(&mut stream).then_some(stream)
    });
    let mut error = String::new();
    ports.socket().read_to_string(&mut error).unwrap();
    assert_eq!(error, "-ERR max number of clients reached\r\n");
    (0..500).for_each(|_| drop(ports.socket()));
    let refused = || ports.counter("towline_kv_redis_refused_total", &[]);
    wait("refusals", || (refused() >= 500).then_some(()));
    let log = cluster.process(0).log();
    let lines = log.lines().filter(|line| line.contains("too many Redis clients")).count() as u64;
    let most = 1 + started.elapsed().as_secs() / 10;
    assert!((1..=most).contains(&lines), "{lines} lines: {log}");
}
