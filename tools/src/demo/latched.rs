//! The control run: all reports are lost, those of the watchdog too, so one cut transfer latches the follower for good.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::peer::{self, PeerView};
use super::rescue::Rescue;
use crate::Result;
use crate::watch::TICK;

/// Heartbeats while the follower must stay latched: many times the delay of a retry.
const HEARTBEATS: u64 = 100;
/// Heartbeats after the restart of the follower, before the comparison begins.
const HEARTBEATS_TO_SETTLE: u64 = 20;
const CONTROL_DEADLINE: Duration = Duration::from_secs(60);

/// A follower's own state at `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FollowerState {
    leader: u64,
    term: u64,
    applied: u64,
}

impl Rescue<'_> {
    pub(super) async fn stays_latched(&mut self) -> Result<()> {
        self.restart()?;
        let cut = self.attempt_past(1).await?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("attempt {}: kill -9 of the receiver at {}", cut.number, cut.part()));
        let name = format!("the end of attempt {}", cut.number);
        let line = self.until(&name, |rescue, _| Ok(rescue.transfers()?.sent(cut.number).cloned())).await?;
        self.screen
            .say(format!("attempt {}: it ended ({}), and Raft gets no report", cut.number, line.cause));
        self.restart()?;
        self.heartbeats(HEARTBEATS_TO_SETTLE).await?;
        let (before, follower) = (self.look().await?, self.follower().await?);
        let beats = self.heartbeats(HEARTBEATS).await?;
        let (after, follower_after) = (self.look().await?, self.follower().await?);
        judge(cut.number, (&before, &follower), (&after, &follower_after), self.leader as u64 + 1)?;
        self.screen.say(format!(
            "LATCHED, as predicted: node {} is up, follows node {} in term {} and took {beats} heartbeats from it, but \
             stays at index {}",
            self.follower + 1,
            follower_after.leader,
            follower_after.term,
            follower_after.applied
        ));
        self.screen.say(format!(
            "         the leader committed {} entries meanwhile, is {} ahead of it, and waits in state snapshot for the \
             end of attempt {}",
            after.commit - before.commit,
            after.lag,
            cut.number
        ));
        Ok(())
    }

    /// Waits until the follower has counted `wanted` messages on the leader's control lane.
    async fn heartbeats(&mut self, wanted: u64) -> Result<u64> {
        let started = Instant::now();
        let mut first = None;
        loop {
            // The follower may still be starting.
            if let Ok(taken) = self.control_messages().await {
                let beats = taken - *first.get_or_insert(taken);
                if beats >= wanted {
                    return Ok(beats);
                }
            }
            if started.elapsed() > CONTROL_DEADLINE {
                return Err(format!("not {wanted} heartbeats in {} s", CONTROL_DEADLINE.as_secs()).into());
            }
            self.show();
            sleep(TICK).await;
        }
    }

    async fn control_messages(&self) -> Result<u64> {
        let labels = [format!("peer=\"{}\"", self.leader + 1), "lane=\"control\"".to_owned()];
        let labels = labels.each_ref().map(String::as_str);
        self.cluster.counter(self.follower, "towline_messages_received_total", &labels).await
    }

    async fn follower(&self) -> Result<FollowerState> {
        let page = self.cluster.page(self.follower).await?;
        let state = page.get("state").ok_or("/status has no state")?;
        let of = |key| peer::number(state, key);
        Ok(FollowerState { leader: of("leader")?, term: of("term")?, applied: of("applied")? })
    }
}

/// Returns an error unless the follower follows the leader and applies nothing, while the leader commits more.
fn judge(
    cut: u64,
    before: (&PeerView, &FollowerState),
    after: (&PeerView, &FollowerState),
    leader: u64,
) -> Result<()> {
    let (seen, follower) = after;
    let moves = seen.attempt.is_some_and(|live| live.number != cut || live.sent > 0 || live.acked > 0);
    let reported = seen.last != before.0.last;
    let led = follower.leader == leader && follower.term == seen.term && seen.term == before.0.term;
    let served = follower.applied != before.1.applied;
    if seen.progress != "snapshot" || moves || reported || !led || served || seen.commit <= before.0.commit {
        return Err(format!("the follower is not latched: {before:?} became {after:?}").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::peer::{Attempt, Ended};
    use super::*;

    fn seen(commit: u64) -> PeerView {
        let attempt = Some(Attempt { number: 3, index: 9, bytes: 100, offset: 0, sent: 0, acked: 0 });
        PeerView { term: 7, commit, progress: "snapshot".into(), lag: commit, attempt, ..PeerView::default() }
    }

    fn follower() -> FollowerState {
        FollowerState { leader: 1, term: 7, applied: 5 }
    }

    fn is_latched(after: PeerView, follower_after: FollowerState) -> bool {
        judge(3, (&seen(10), &follower()), (&after, &follower_after), 1).is_ok()
    }

    #[test]
    fn a_follower_that_follows_and_applies_nothing_is_latched() {
        assert!(is_latched(seen(20), follower()));
    }

    #[test]
    fn every_other_state_is_an_error() {
        let live = |number, sent| Some(Attempt { number, sent, ..seen(0).attempt.unwrap() });
        for after in [
            seen(10),
            PeerView { progress: "probe".into(), ..seen(20) },
            PeerView { term: 8, ..seen(20) },
            PeerView { attempt: live(4, 0), ..seen(20) },
            PeerView { attempt: live(3, 1), ..seen(20) },
            PeerView { last: Some(Ended { number: 3, outcome: "failed".into(), cause: None }), ..seen(20) },
        ] {
            assert!(!is_latched(after.clone(), follower()), "{after:?}");
        }
        for after in [
            FollowerState { leader: 2, ..follower() },
            FollowerState { term: 8, ..follower() },
            FollowerState { applied: 6, ..follower() },
        ] {
            assert!(!is_latched(seen(20), after.clone()), "{after:?}");
        }
    }
}
