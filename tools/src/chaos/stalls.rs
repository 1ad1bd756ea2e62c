//! Finds stalls that no node explains.
//!
//! A node stalls if it lacks what another node has applied and applies nothing itself, or if `/status` does not answer. The
//! group stalls if no write is acknowledged, although writers have left a node that does not answer. After two election
//! timeouts `waits` in `/status` must name a cause.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::cluster::{NODES, http_json, status_of};
use crate::load::ANSWER_TIMEOUT;

/// Two of the shortest election timeouts of the nodes.
const STALL: Duration = Duration::from_secs(2);
/// A writer waits for a node that does not answer, and calls the others then.
const GROUP_STALL: Duration = STALL.saturating_add(ANSWER_TIMEOUT);
/// The pages of the nodes are of different moments: a stall must be unexplained this often in a row.
const IN_A_ROW: u32 = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What one page of a node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Page {
    applied: u64,
    /// The peers of its waits; `None` is the node itself.
    waits: Vec<Option<u64>>,
    text: String,
}

impl Page {
    fn read(value: &Value) -> Option<Self> {
        let waits = value.get("waits")?.as_array()?;
        let peer = |wait: &Value| wait.get("peer").and_then(Value::as_u64);
        Some(Self {
            applied: status_of(value).ok()?.applied,
            waits: waits.iter().map(peer).collect(),
            text: summary(value),
        })
    }
}

/// The state and the waits of a page.
fn summary(page: &Value) -> String {
    let state = page.get("state").cloned().unwrap_or_default();
    let texts = page.get("waits").and_then(Value::as_array).into_iter().flatten();
    let texts: Vec<_> = texts.filter_map(|wait| wait.get("text")?.as_str()).collect();
    let waits = if texts.is_empty() { "no waits".to_owned() } else { texts.join("; ") };
    format!("{state} {waits}")
}

/// What is known of one node.
#[derive(Clone, Debug)]
struct Seen {
    /// It is neither killed nor stopped, and has answered since.
    judged: bool,
    page: Page,
    answered: Instant,
    /// Since when it lacks what another node has applied, and has applied nothing.
    behind: Option<Instant>,
    unexplained: u32,
}

/// Watches the nodes. Times are arguments.
struct StallWatch {
    nodes: [Seen; NODES],
    /// Nodes that are killed or stopped.
    silenced: Vec<usize>,
    /// When the faults changed last.
    changed: Instant,
    acked: u64,
    acked_at: Instant,
    unexplained: u32,
}

impl StallWatch {
    fn new(now: Instant) -> Self {
        let seen = Seen { judged: false, page: Page::default(), answered: now, behind: None, unexplained: 0 };
        let nodes = std::array::from_fn(|_| seen.clone());
        Self { nodes, silenced: Vec::new(), changed: now, acked: 0, acked_at: now, unexplained: 0 }
    }

    /// After a change of faults all stalls begin anew.
    fn begin_anew(&mut self, silenced: Vec<usize>, now: Instant) {
        for (position, seen) in self.nodes.iter_mut().enumerate() {
            // A restarted node is judged from its first answer on.
            seen.judged &= !silenced.contains(&position) && !self.silenced.contains(&position);
            (seen.answered, seen.behind, seen.unexplained) = (now, None, 0);
        }
        (self.changed, self.silenced, self.acked_at, self.unexplained) = (now, silenced, now, 0);
    }

    /// Takes the pages of one look at the cluster; returns each stall that has just proved unexplained.
    fn look(&mut self, pages: [Option<Page>; NODES], acked: u64, now: Instant) -> Vec<String> {
        if acked != self.acked {
            (self.acked, self.acked_at) = (acked, now);
        }
        for (position, (seen, page)) in self.nodes.iter_mut().zip(pages).enumerate() {
            let Some(page) = page.filter(|_| !self.silenced.contains(&position)) else { continue };
            if page.applied != seen.page.applied {
                seen.behind = None;
            }
            (seen.page, seen.answered, seen.judged) = (page, now, true);
        }
        let most = self.nodes.iter().map(|seen| seen.page.applied).max().unwrap_or_default();
        for seen in &mut self.nodes {
            seen.behind = if seen.page.applied < most { seen.behind.or(Some(now)) } else { None };
        }
        let age = |since: Instant| now.saturating_duration_since(since);
        let lasts = |since| age(since) > STALL;
        let mut found = Vec::new();
        let nodes = self.nodes.clone();
        for (id, seen) in (1..).zip(&mut self.nodes) {
            let silent = lasts(seen.answered);
            let behind = seen.behind.is_some_and(lasts);
            let named = nodes.iter().any(|other| other.judged && other.page.waits.contains(&Some(id)))
                || seen.page.waits.contains(&None);
            if !prove(&mut seen.unexplained, seen.judged && (silent || (behind && !named))) {
                continue;
            }
            found.push(match silent {
                true => format!("node {id} does not answer /status"),
                false => format!("node {id} applies nothing and lacks what others have applied"),
            });
        }
        // A node that starts has not answered yet: the group waits for its process.
        if (0..).zip(&nodes).any(|(position, seen)| !seen.judged && !self.silenced.contains(&position)) {
            self.acked_at = now;
        }
        let named = nodes.iter().any(|seen| seen.judged && seen.page.waits.contains(&None))
            || self.silenced.len() == NODES;
        if prove(&mut self.unexplained, age(self.acked_at) > GROUP_STALL && !named) {
            found.push("no write is acknowledged".to_owned());
        }
        if !found.is_empty() {
            let said = (1..).zip(&self.nodes).filter(|(_, seen)| seen.judged);
            let said: Vec<_> =
                said.map(|(id, seen)| format!("\n    node {id}: {}", seen.page.text)).collect();
            found.iter_mut().for_each(|one| one.push_str(&said.concat()));
        }
        found
    }
}

/// Counts looks in a row, and is true at exactly one of them: a stall counts once.
fn prove(count: &mut u32, unexplained: bool) -> bool {
    *count = if unexplained { count.saturating_add(1) } else { 0 };
    *count == IN_A_ROW
}

struct Shared {
    watch: Mutex<StallWatch>,
    found: Mutex<Vec<String>>,
}

impl Shared {
    /// Pages from before a change of faults say nothing about the time after it.
    fn look(&self, pages: [Option<Page>; NODES], acked: u64, asked: Instant) {
        let mut watch = lock(&self.watch);
        if watch.changed <= asked {
            lock(&self.found).extend(watch.look(pages, acked, Instant::now()));
        }
    }
}

/// Looks at the cluster until it is dropped.
pub(super) struct Stalls {
    shared: Arc<Shared>,
    looking: JoinHandle<()>,
}

impl Stalls {
    /// Must be called on a tokio runtime. `acked` returns the number of acknowledged writes, which never stop for long.
    /// `ignores_waits` is for the control.
    pub(super) fn watch(
        http: Vec<SocketAddr>,
        acked: impl Fn() -> u64 + Send + Sync + 'static,
        ignores_waits: bool,
    ) -> Self {
        let shared =
            Arc::new(Shared { watch: Mutex::new(StallWatch::new(Instant::now())), found: Mutex::default() });
        let looking = tokio::spawn(look(Arc::clone(&shared), http, acked, ignores_waits));
        Self { shared, looking }
    }

    /// Tells that the faults have changed, and which nodes cannot answer.
    pub(super) fn begin_anew(&self, silenced: Vec<usize>) {
        lock(&self.shared.watch).begin_anew(silenced, Instant::now());
    }

    /// The stalls found since the last call.
    pub(super) fn found(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.found))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look(shared: Arc<Shared>, http: Vec<SocketAddr>, acked: impl Fn() -> u64, ignores_waits: bool) {
    loop {
        let asked = Instant::now();
        let silenced = lock(&shared.watch).silenced.clone();
        let pages = pages(&http, &silenced).await.map(|page| {
            let mut page = Page::read(&page?)?;
            page.waits.retain(|_| !ignores_waits);
            Some(page)
        });
        shared.look(pages, acked(), asked);
        sleep(POLL_INTERVAL).await;
    }
}

/// `/status` of each node that may answer, at the same time.
async fn pages(http: &[SocketAddr], silenced: &[usize]) -> [Option<Value>; NODES] {
    let page = async |position: usize| {
        let address = http.get(position).filter(|_| !silenced.contains(&position))?;
        http_json(*address, "/status").await.ok()
    };
    tokio::join!(page(0), page(1), page(2)).into()
}

/// What each node says now.
pub(super) async fn described(http: &[SocketAddr]) -> String {
    let pages = (1..).zip(pages(http, &[]).await);
    let text = |page: Option<Value>| page.map_or("does not answer".to_owned(), |page| summary(&page));
    pages.map(|(id, page): (u64, _)| format!("\n    node {id}: {}", text(page))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The applied index and the waits of a page.
    type Said = Option<(u64, &'static [Option<u64>])>;

    /// Looks at intervals of a second, each with the number of acknowledged writes.
    fn looks(looks: &[([Said; NODES], u64)]) -> Vec<String> {
        let begun = Instant::now();
        let mut watch = StallWatch::new(begun);
        let mut all = Vec::new();
        for (second, (pages, acked)) in (0..).zip(looks) {
            let page = |said: (u64, &[Option<u64>])| Page {
                applied: said.0,
                waits: said.1.to_vec(),
                text: String::new(),
            };
            let pages = pages.map(|said| said.map(page));
            all.extend(watch.look(pages, *acked, begun + Duration::from_secs(second)));
        }
        all.iter().filter_map(|found| Some(found.lines().next()?.to_owned())).collect()
    }

    const NONE: &[Option<u64>] = &[];

    #[test]
    fn a_node_that_falls_behind_without_a_wait_is_found_once() {
        let stalled =
            |second, waits| ([Some((second, waits)), Some((1, NONE)), Some((second, NONE))], second);
        let seconds = 1..20;
        let found = looks(&seconds.clone().map(|second| stalled(second, NONE)).collect::<Vec<_>>());
        assert_eq!(found, ["node 2 applies nothing and lacks what others have applied"]);
        // The leader names the peer.
        assert!(looks(&seconds.map(|second| stalled(second, &[Some(2)])).collect::<Vec<_>>()).is_empty());
    }

    #[test]
    fn a_group_without_acknowledgements_and_waits_is_found() {
        let idle = |waits| vec![([Some((7, NONE)), Some((7, waits)), Some((7, NONE))], 7); 20];
        assert_eq!(looks(&idle(NONE)), ["no write is acknowledged"]);
        assert_eq!(looks(&idle(&[None])), [""; 0]);
    }

    #[test]
    fn a_silent_node_is_found_unless_it_is_silenced() {
        let silent = |second| if second < 3 { Some((second, NONE)) } else { None };
        let all: Vec<_> = (0..20)
            .map(|second| ([Some((second, NONE)), Some((second, NONE)), silent(second)], second))
            .collect();
        assert_eq!(looks(&all), ["node 3 does not answer /status"]);

        let begun = Instant::now();
        let mut watch = StallWatch::new(begun);
        for second in 0..20 {
            let page = Page { applied: second, ..Page::default() };
            let now = begun + Duration::from_secs(second);
            if second == 3 {
                watch.begin_anew(vec![2], now);
            }
            let third = (second < 3).then(|| page.clone());
            assert_eq!(watch.look([Some(page.clone()), Some(page), third], second, now), [""; 0]);
        }
    }
}
