//! The control: reports are lost, those of the watchdog too, and one cut is enough to latch the follower for good.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::peer::{self, Seen};
use super::rescue::Rescue;
use crate::Result;
use crate::watch::TICK;

/// How often the leader's heart beats while the follower stays away: many times what a retry takes.
const HEARTBEATS: u64 = 100;
/// Before that, for a follower that has just come back to find its feet.
const HEARTBEATS_TO_SETTLE: u64 = 20;
const CONTROL_DEADLINE: Duration = Duration::from_secs(60);

/// What a follower says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Itself {
    leader: u64,
    term: u64,
    applied: u64,
}

impl Rescue<'_> {
    pub(super) async fn stays_away(&mut self) -> Result<()> {
        self.restart()?;
        let cut = self.attempt_past(1).await?;
        self.cluster.kill(self.follower)?;
        self.screen.say(format!("attempt {}: kill -9 of the receiver at {}", cut.number, cut.part()));
        let name = format!("the end of attempt {}", cut.number);
        let line = self.until(&name, |rescue, _| Ok(rescue.books()?.sent(cut.number).cloned())).await?;
        self.screen
            .say(format!("attempt {}: it is over ({}), and nobody tells Raft", cut.number, line.cause));
        self.restart()?;
        self.heartbeats(HEARTBEATS_TO_SETTLE).await?;
        let (before, itself) = (self.look().await?, self.itself().await?);
        let beats = self.heartbeats(HEARTBEATS).await?;
        let (after, itself_after) = (self.look().await?, self.itself().await?);
        judge(cut.number, (&before, &itself), (&after, &itself_after), self.leader as u64 + 1)?;
        self.screen.say(format!(
            "LATCHED, as predicted: node {} is up, follows node {} in term {} and took {beats} heartbeats from it, but \
             stays at index {}",
            self.follower + 1,
            itself_after.leader,
            itself_after.term,
            itself_after.applied
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

    /// Waits for so many, as the follower counts what comes in from the leader beside appends.
    async fn heartbeats(&mut self, wanted: u64) -> Result<u64> {
        let started = Instant::now();
        let mut first = None;
        loop {
            // It may still be starting.
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

    async fn itself(&self) -> Result<Itself> {
        let page = self.cluster.page(self.follower).await?;
        let state = page.get("state").ok_or("/status has no state")?;
        let of = |key| peer::number(state, key);
        Ok(Itself { leader: of("leader")?, term: of("term")?, applied: of("applied")? })
    }
}

/// An error unless the follower is well, is led, and gets nothing although there is more and more to get.
fn judge(cut: u64, before: (&Seen, &Itself), after: (&Seen, &Itself), leader: u64) -> Result<()> {
    let (seen, itself) = after;
    let moves = seen.attempt.is_some_and(|live| live.number != cut || live.sent > 0 || live.acked > 0);
    let told = seen.last != before.0.last;
    let led = itself.leader == leader && itself.term == seen.term && seen.term == before.0.term;
    let served = itself.applied != before.1.applied;
    if seen.progress != "snapshot" || moves || told || !led || served || seen.commit <= before.0.commit {
        return Err(format!("the follower was to be latched, but {before:?} became {after:?}").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::peer::{Attempt, Ended};
    use super::*;

    fn seen(commit: u64) -> Seen {
        let attempt = Some(Attempt { number: 3, index: 9, bytes: 100, offset: 0, sent: 0, acked: 0 });
        Seen { term: 7, commit, progress: "snapshot".into(), lag: commit, attempt, ..Seen::default() }
    }

    fn itself() -> Itself {
        Itself { leader: 1, term: 7, applied: 5 }
    }

    fn is_latched(after: Seen, itself_after: Itself) -> bool {
        judge(3, (&seen(10), &itself()), (&after, &itself_after), 1).is_ok()
    }

    #[test]
    fn a_follower_that_is_led_and_gets_nothing_is_latched() {
        assert!(is_latched(seen(20), itself()));
    }

    #[test]
    fn every_other_state_is_an_error() {
        let live = |number, sent| Some(Attempt { number, sent, ..seen(0).attempt.unwrap() });
        for after in [
            seen(10),
            Seen { progress: "probe".into(), ..seen(20) },
            Seen { term: 8, ..seen(20) },
            Seen { attempt: live(4, 0), ..seen(20) },
            Seen { attempt: live(3, 1), ..seen(20) },
            Seen { last: Some(Ended { number: 3, outcome: "failed".into(), cause: None }), ..seen(20) },
        ] {
            assert!(!is_latched(after.clone(), itself()), "{after:?}");
        }
        for after in [
            Itself { leader: 2, ..itself() },
            Itself { term: 8, ..itself() },
            Itself { applied: 6, ..itself() },
        ] {
            assert!(!is_latched(seen(20), after.clone()), "{after:?}");
        }
    }
}
