//! Transfer records: the log lines of both sides about each attempt, and what must be true of them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::peer::mib;
use crate::Result;

pub(super) const HEARTBEAT: Duration = Duration::from_millis(100);
/// The store writes one checksum per chunk. A killed receiver loses the bytes of an unfinished chunk.
const STORE_CHUNK_BYTES: u64 = 256 << 10;
/// The table shows this much of a cause.
const CAUSE_CHARS_MAX: usize = 76;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One side's record of one attempt. Times are times of day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TransferRecord {
    attempt: u64,
    index: u64,
    begun: Duration,
    ended: Duration,
    offset: u64,
    bytes: u64,
    total: u64,
    outcome: String,
    pub(super) cause: String,
}

/// An attempt that was cut, and the bytes acknowledged before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) number: u64,
    pub(super) index: u64,
    pub(super) acked: u64,
}

/// When the next attempt was possible after one failed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    /// When `/status` first showed the failure, and the backoff it showed.
    pub(super) seen: Option<(Duration, Duration)>,
    /// When the leader heard from the peer again, if the peer was down.
    pub(super) healed: Option<Duration>,
}

/// The records of sender and receiver, by attempt number.
pub(super) struct Transfers {
    rows: BTreeMap<u64, (Option<TransferRecord>, Option<TransferRecord>)>,
}

/// The time of day in UTC, as in the logs.
pub(super) fn time_of_day() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::new(since.as_secs() % DAY.as_secs(), since.subsec_nanos())
}

/// The time from `earlier` to `later`, also over midnight.
fn after(later: Duration, earlier: Duration) -> Duration {
    let whole = (later + DAY).saturating_sub(earlier);
    if whole >= DAY { whole - DAY } else { whole }
}

impl Transfers {
    pub(super) fn read(sender: &str, receiver: &str, sender_id: u64, receiver_id: u64) -> Self {
        let mut rows: BTreeMap<u64, (Option<TransferRecord>, Option<TransferRecord>)> = BTreeMap::new();
        for line in lines(sender, "sent", receiver_id) {
            let attempt = line.attempt;
            rows.entry(attempt).or_default().0 = Some(line);
        }
        for line in lines(receiver, "received", sender_id) {
            let attempt = line.attempt;
            rows.entry(attempt).or_default().1 = Some(line);
        }
        Self { rows }
    }

    /// The sender's record of an attempt.
    pub(super) fn sent(&self, number: u64) -> Option<&TransferRecord> {
        self.rows.get(&number)?.0.as_ref()
    }

    /// A table with both sides of every attempt, and the delay of the next attempt in heartbeats.
    pub(super) fn table(&self, moments: &BTreeMap<u64, Moments>) -> Vec<String> {
        let mut table =
            vec!["attempt       from   sent bytes   received bytes   outcome    next after".to_owned()];
        let numbers: Vec<u64> = self.rows.keys().copied().collect();
        for (number, (sent, received)) in &self.rows {
            let next = numbers.iter().find(|other| *other > number).and_then(|next| self.gap(*number, *next));
            let beats = |time: Duration| format!("{:.1}", time.as_secs_f64() / HEARTBEAT.as_secs_f64());
            let next = next.map_or("-".to_owned(), |gap| match self.wait(*number, moments) {
                Some(wait) => format!("{} heartbeats, of {} to wait", beats(gap), beats(wait)),
                None => format!("{} heartbeats", beats(gap)),
            });
            let bytes = |line: &Option<TransferRecord>| {
                line.as_ref().map_or("no line".into(), |line| line.bytes.to_string())
            };
            let from = sent.as_ref().map_or("-".to_owned(), |line| mib(line.offset));
            let outcome = sent.as_ref().map_or("no line", |line| &line.outcome);
            table.push(format!(
                "{number:>7} {from:>10} {:>12} {:>16}   {outcome:<10} {next}",
                bytes(sent),
                bytes(received)
            ));
            for (side, line) in [("sender", sent), ("receiver", received)] {
                if let Some(line) = line.as_ref().filter(|line| line.outcome != "finished") {
                    let (outcome, cause) = (&line.outcome, &line.cause);
                    let cause = if cause.is_empty() { "the other side closed" } else { cause };
                    let cause: String = cause.chars().take(CAUSE_CHARS_MAX).collect();
                    table.push(format!("          {side}: {outcome}, {cause}"));
                }
            }
        }
        table
    }

    /// The backoff after an attempt, as `/status` showed it.
    fn wait(&self, number: u64, moments: &BTreeMap<u64, Moments>) -> Option<Duration> {
        let (seen, left) = moments.get(&number)?.seen?;
        Some(after(seen, self.sent(number)?.ended) + left)
    }

    /// The time from the end of an attempt to the start of the next.
    fn gap(&self, number: u64, next: u64) -> Option<Duration> {
        Some(after(self.sent(next)?.begun, self.sent(number)?.ended))
    }

    /// Returns an error unless each cut attempt resumed where it was cut, in time, and the last one finished.
    pub(super) fn judge(&self, cuts: &[Cut], moments: &BTreeMap<u64, Moments>) -> Result<()> {
        for cut in cuts {
            self.judge_cut(cut)?;
        }
        let numbers: Vec<u64> = self.rows.keys().copied().collect();
        for pair in numbers.windows(2) {
            if let [number, next] = pair {
                self.judge_wait(*number, *next, moments)?;
            }
        }
        let (number, (sent, received)) = self.rows.last_key_value().ok_or("there was no attempt")?;
        for line in [sent, received] {
            let line = line.as_ref().ok_or_else(|| format!("attempt {number} lacks a record"))?;
            if line.outcome != "finished" || line.offset + line.bytes != line.total {
                return Err(format!("the last attempt did not complete the snapshot: {line:?}").into());
            }
        }
        Ok(())
    }

    fn judge_cut(&self, cut: &Cut) -> Result<()> {
        let number = cut.number;
        let sent =
            self.sent(number).ok_or_else(|| format!("the sender has no record of attempt {number}"))?;
        if sent.outcome != "failed" {
            return Err(format!("attempt {number} was cut, but its record says {}", sent.outcome).into());
        }
        // An attempt without an answer to its offer resumes nothing.
        let mut later = self.rows.range(number + 1..).filter_map(|(_, (sent, _))| sent.as_ref());
        let next = later.find(|line| line.bytes > 0 || line.outcome == "finished");
        let next = next.ok_or_else(|| format!("nothing came of attempt {number}"))?;
        let missing = cut.acked.saturating_sub(next.offset);
        if next.index != cut.index || next.offset == 0 || missing > STORE_CHUNK_BYTES {
            return Err(format!(
                "attempt {number} of the snapshot at {} was cut with {} acknowledged, but attempt {}, of the one at {}, \
                 began at {}",
                cut.index, cut.acked, next.attempt, next.index, next.offset
            )
            .into());
        }
        Ok(())
    }

    /// The next attempt must begin within two heartbeats of the backoff's end or the peer's return.
    fn judge_wait(&self, number: u64, next: u64, moments: &BTreeMap<u64, Moments>) -> Result<()> {
        let (Some(gap), Some(ended)) = (self.gap(number, next), self.sent(number).map(|line| line.ended))
        else {
            return Err(format!("the sender lacks the record of attempt {number} or {next}").into());
        };
        // The backoff ended between two polls.
        let Some(wait) = self.wait(number, moments) else { return Ok(()) };
        let healed = moments.get(&number).and_then(|moments| moments.healed);
        let may_begin = healed.map_or(wait, |healed| wait.max(after(healed, ended)));
        if gap > may_begin + 2 * HEARTBEAT {
            return Err(format!(
                "attempt {next} began {} ms after attempt {number} had failed, {} ms were allowed",
                gap.as_millis(),
                (may_begin + 2 * HEARTBEAT).as_millis()
            )
            .into());
        }
        Ok(())
    }
}

const WORDS: &str = "snapshot transfer ended";

fn lines(log: &str, direction: &str, peer: u64) -> Vec<TransferRecord> {
    log.lines().filter_map(|line| record_of(line, direction, peer)).collect()
}

/// `None` for any other line.
fn record_of(line: &str, direction: &str, peer: u64) -> Option<TransferRecord> {
    // Fields follow the message; the span before it has some of the same names.
    let (before, fields) = line.split_once(WORDS)?;
    let (fields, cause) = fields.split_once(" cause=")?;
    let of = |key: &str| {
        let mut words = fields.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(|value| value.trim_matches('"'))
    };
    let number = |key: &str| of(key)?.parse::<u64>().ok();
    if of("direction")? != direction || number("peer")? != peer {
        return None;
    }
    let ended = time_in(before)?;
    let took = Duration::try_from_secs_f64(of("seconds")?.parse().ok()?).ok()?;
    Some(TransferRecord {
        attempt: number("attempt")?,
        index: number("index")?,
        begun: after(ended, took),
        ended,
        offset: number("offset")?,
        bytes: number("payload_bytes")?,
        total: number("total")?,
        outcome: of("outcome")?.to_owned(),
        cause: cause.to_owned(),
    })
}

/// The time of day of `2026-01-31T12:00:01.5Z`.
fn time_in(line: &str) -> Option<Duration> {
    let (_, time) = line.split_whitespace().next()?.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.splitn(3, ':');
    let (hours, minutes) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?);
    let seconds = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    Some(Duration::from_secs((hours * 60 + minutes) * 60) + seconds)
}

#[cfg(test)]
mod tests;
