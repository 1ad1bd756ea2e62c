use super::*;

const TOTAL: u64 = 10 << 20;

/// A log line of `towline-kv` about an attempt that took one second and ended `at`.
fn line(at: &str, attempt: u64, direction: &str, offset: u64, bytes: u64, end: &str) -> String {
    let peer = if direction == "sent" { 2 } else { 1 };
    format!(
        "2026-11-29T{at}Z  INFO snapshot{{node=1 group=1 peer=9 attempt=9}}: towline_engine::snapshots::transfer_record: \
         snapshot transfer ended group=1 peer={peer} index=70 attempt={attempt} direction=\"{direction}\" \
         offset={offset} payload_bytes={bytes} total={TOTAL} seconds=1.0 {end}\n"
    )
}

const FAILED: &str = "outcome=\"failed\" cause=the transfer broke: x = y";
const FINISHED: &str = "outcome=\"finished\" cause=";

/// An attempt that was cut after 4 MiB of 10, and one that resumed at `offset` and finished.
fn transfers(next_ends_at: &str, offset: u64, rest: u64) -> Transfers {
    let sent = line("23:59:59.5", 3, "sent", 0, 5 << 20, FAILED)
        + "INFO something else peer=2\n"
        + &line(next_ends_at, 4, "sent", offset, rest, FINISHED);
    Transfers::read(&sent, &line(next_ends_at, 4, "received", offset, rest, FINISHED), 1, 2)
}

const CUT: Cut = Cut { number: 3, index: 70, acked: 4 << 20 };

fn at(text: &str) -> Duration {
    time_in(&format!("2026-11-29T{text}Z")).unwrap()
}

/// Seen 100 ms after the end with a backoff of 150 ms: the next attempt may begin 450 ms after the end.
fn moments(healed: Option<Duration>) -> BTreeMap<u64, Moments> {
    let seen = Some((at("23:59:59.6"), Duration::from_millis(150)));
    BTreeMap::from([(3, Moments { seen, healed })])
}

#[test]
fn the_records_of_one_side_are_read_from_its_log() {
    let transfers = transfers("00:00:01.0", 4 << 20, 6 << 20);
    let sent = transfers.sent(3).unwrap();
    assert_eq!((sent.index, sent.offset, sent.bytes, sent.total), (70, 0, 5 << 20, TOTAL));
    assert_eq!((sent.outcome.as_str(), sent.cause.as_str()), ("failed", "the transfer broke: x = y"));
    assert_eq!((sent.begun, sent.ended), (at("23:59:58.5"), at("23:59:59.5")));
    assert_eq!(transfers.gap(3, 4), Some(Duration::from_millis(500)), "over midnight");
    assert!(transfers.rows[&3].1.is_none(), "a receiver that was killed has no line");
    assert!(
        Transfers::read(&line("00:00:00.0", 1, "sent", 0, 1, FAILED), "", 2, 3).rows.is_empty(),
        "another peer"
    );
}

#[test]
fn every_attempt_is_in_the_table_with_both_sides() {
    let none_moved =
        line("00:00:01.0", 4, "sent", 0, 0, "outcome=\"refused\" cause=the receiver refused: busy");
    let table = Transfers::read(&none_moved, "", 1, 2).table(&BTreeMap::new()).join("\n");
    assert!(
        table.contains("no line") && table.contains("sender: refused, the receiver refused: busy"),
        "{table}"
    );
    let table = transfers("00:00:01.0", 4 << 20, 6 << 20).table(&moments(None)).join("\n");
    assert!(
        table.contains("5.0 heartbeats, of 2.5 to wait")
            && table.contains("sender: failed, the transfer broke"),
        "{table}"
    );
    assert!(table.ends_with("4    4.0 MiB      6291456          6291456   finished   -"), "{table}");
}

#[test]
fn an_attempt_that_resumes_where_the_last_one_was_cut_passes() {
    // Less than a chunk of the store may be missing.
    for offset in [4 << 20, (4 << 20) - STORE_CHUNK_BYTES, 5 << 20] {
        transfers("00:00:00.9", offset, TOTAL - offset).judge(&[CUT], &moments(None)).unwrap();
    }
}

#[track_caller]
fn assert_refused(transfers: &Transfers, moments: &BTreeMap<u64, Moments>, why: &str) {
    let error = transfers.judge(&[CUT], moments).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn an_attempt_that_resumes_at_zero_or_too_early_is_refused() {
    for offset in [0, (4 << 20) - STORE_CHUNK_BYTES - 1] {
        let transfers = transfers("00:00:00.9", offset, TOTAL - offset);
        assert_refused(&transfers, &moments(None), "was cut with 4194304 acknowledged, but attempt 4");
    }
}

#[test]
fn a_last_attempt_that_does_not_complete_the_snapshot_is_refused() {
    assert_refused(
        &transfers("00:00:00.9", 4 << 20, 5 << 20),
        &moments(None),
        "did not complete the snapshot",
    );
}

#[test]
fn an_attempt_that_was_cut_and_finished_is_refused() {
    let sent = line("23:59:59.5", 3, "sent", 0, TOTAL, FINISHED);
    let transfers = Transfers::read(&sent, &line("23:59:59.5", 3, "received", 0, TOTAL, FINISHED), 1, 2);
    assert_refused(&transfers, &moments(None), "its record says finished");
}

#[test]
fn a_retry_may_begin_two_heartbeats_after_its_backoff() {
    // The attempt takes a second, so it begins 440 or 460 ms after the failure.
    transfers("00:00:00.94", 4 << 20, 6 << 20).judge(&[CUT], &moments(None)).unwrap();
    let late = transfers("00:00:00.96", 4 << 20, 6 << 20);
    assert_refused(&late, &moments(None), "450 ms were allowed");
    late.judge(&[CUT], &moments(Some(at("23:59:59.8")))).unwrap();
    // Without a backoff at `/status` the attempt was fast enough.
    late.judge(&[CUT], &BTreeMap::new()).unwrap();
}
