//! A leader's view of one peer at `/status`.

use serde_json::Value;

use crate::Result;

/// The leader's state and what it knows of the peer.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerView {
    pub(super) term: u64,
    pub(super) commit: u64,
    pub(super) progress: String,
    pub(super) lag: u64,
    pub(super) backoff_ms: u64,
    pub(super) attempt: Option<Attempt>,
    pub(super) last: Option<Ended>,
}

/// The live attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) index: u64,
    pub(super) bytes: u64,
    pub(super) offset: u64,
    pub(super) sent: u64,
    pub(super) acked: u64,
}

/// How the last attempt ended: `finished`, `void`, or `failed` with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) number: u64,
    pub(super) outcome: String,
    pub(super) cause: Option<String>,
}

impl PeerView {
    /// Returns an error if the node does not lead, or a field is missing.
    pub(super) fn read(page: &Value, peer: u64) -> Result<Self> {
        let state = page.get("state").ok_or("/status has no state")?;
        if state.get("role").and_then(Value::as_str) != Some("leader") {
            return Err(format!("the node does not lead: {state}").into());
        }
        let peers = page.get("peers").and_then(Value::as_array).ok_or("/status has no peers")?;
        let peer = peers.iter().find(|of| of.get("id").and_then(Value::as_u64) == Some(peer));
        let peer = peer.ok_or("/status does not name the peer")?;
        Ok(Self {
            term: number(state, "term")?,
            commit: number(state, "commit")?,
            progress: peer.get("progress").and_then(Value::as_str).ok_or("no progress")?.to_owned(),
            lag: number(peer, "lag")?,
            backoff_ms: number(peer, "backoff_ms")?,
            attempt: object(peer, "attempt").map(Attempt::read).transpose()?,
            last: object(peer, "last_attempt").map(Ended::read).transpose()?,
        })
    }
}

impl Attempt {
    fn read(attempt: &Value) -> Result<Self> {
        let of = |key| number(attempt, key);
        Ok(Self {
            number: of("number")?,
            index: of("index")?,
            bytes: of("bytes")?,
            offset: of("offset")?,
            sent: of("sent")?,
            acked: of("acked")?,
        })
    }

    /// Whether the receiver acknowledged more than this number of quarters.
    pub(super) fn is_past(self, quarters: u64) -> bool {
        self.acked > self.bytes / 4 * quarters
    }

    /// The progress as text.
    pub(super) fn part(self) -> String {
        format!("{} of {}", mib(self.acked), mib(self.bytes))
    }
}

impl Ended {
    fn read(last: &Value) -> Result<Self> {
        let outcome = last.get("outcome").ok_or("the last attempt has no outcome")?;
        let (outcome, cause) = match (outcome.as_str(), outcome.get("failed")) {
            (Some(text), _) => (text.to_owned(), None),
            (None, Some(Value::String(cause))) => ("failed".to_owned(), Some(cause.clone())),
            (None, Some(cause)) => {
                ("failed".to_owned(), Some(cause.to_string().replace(['"', '{', '}'], "")))
            }
            (None, None) => return Err(format!("unknown outcome: {outcome}").into()),
        };
        Ok(Self { number: number(last, "number")?, outcome, cause })
    }
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn object<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|value| value.is_object())
}

pub(super) fn number(value: &Value, key: &str) -> Result<u64> {
    value.get(key).and_then(Value::as_u64).ok_or_else(|| format!("/status has no {key}").into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(role: &str, outcome: Value) -> Value {
        json!({
            "state": { "role": role, "term": 7, "commit": 40 },
            "peers": [{
                "id": 2, "progress": "snapshot", "lag": 5, "backoff_ms": 120,
                "attempt": { "number": 4, "index": 9, "bytes": 100, "offset": 10, "sent": 30, "acked": 35 },
                "last_attempt": { "number": 3, "outcome": outcome }
            }]
        })
    }

    #[test]
    fn a_peer_of_the_status_page_is_read() {
        let seen = PeerView::read(&page("leader", json!({ "failed": "timeout" })), 2).unwrap();
        assert_eq!((seen.term, seen.commit, seen.lag, seen.backoff_ms), (7, 40, 5, 120));
        let attempt = Attempt { number: 4, index: 9, bytes: 100, offset: 10, sent: 30, acked: 35 };
        assert_eq!(seen.attempt, Some(attempt));
        assert!(attempt.is_past(1) && !attempt.is_past(2));
        let last = Ended { number: 3, outcome: "failed".into(), cause: Some("timeout".into()) };
        assert_eq!(seen.last, Some(last));
    }

    #[test]
    fn each_outcome_is_read() {
        let of = |outcome| PeerView::read(&page("leader", outcome), 2).unwrap().last.unwrap();
        assert_eq!(of(json!("finished")).outcome, "finished");
        assert_eq!(of(json!("void")).outcome, "void");
        let refused = of(json!({ "failed": { "refused": { "lasting": true } } }));
        assert_eq!(
            (refused.outcome.as_str(), refused.cause.as_deref()),
            ("failed", Some("refused:lasting:true"))
        );
    }

    #[test]
    fn a_node_that_does_not_lead_is_an_error() {
        assert!(PeerView::read(&page("follower", json!("finished")), 2).is_err());
        assert!(PeerView::read(&page("leader", json!("finished")), 3).is_err());
    }
}
