//! A handshake in memory.

use std::io;

use rustls::{ClientConnection, ServerConnection};

/// Carries bytes between both sides until the handshake has ended. Returns the first error of each: client, server.
pub(crate) fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> [Option<rustls::Error>; 2] {
    let mut errors = [None, None];
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |from| server.read_tls(from));
        if errors[1].is_none() {
            errors[1] = server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |from| client.read_tls(from));
        if errors[0].is_none() {
            errors[0] = client.process_new_packets().err();
        }
    }
    errors
}

fn feed(mut bytes: &[u8], mut read: impl FnMut(&mut dyn io::Read) -> io::Result<usize>) {
    while !bytes.is_empty() && read(&mut bytes).is_ok() {}
}
