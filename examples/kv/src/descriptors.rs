//! File descriptors: raises the limit of the process, and divides what there is.
//!
//! Clients must not take what the log, the store and the peers need: a node that cannot open its next log file takes no
//! writes. So each port gets a bound below what is left.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;
use crate::machine::WAITING_TABLES_MAX;

/// More than a process needs here; some systems allow a number that costs memory.
const LIMIT_MAX: u64 = 1 << 20;
/// Standard streams, listeners, the parts of three runtimes, locks, directories, and one client a port that is refused.
const BASE: usize = 56;
/// Log files: 16 of them by default and those that a purge moved, and the next one.
const LOG: usize = 40;
/// Snapshots that are made, sent and received.
const SNAPSHOTS: usize = 16;
/// Files of the store beside those it keeps open. A compaction reads all tables that wait for one at the same time. The
/// rest is for tables that come while it begins, for what it writes, for journals, and for reads of tables not kept open.
const STORE: usize = WAITING_TABLES_MAX + 24;
/// Files of each further worker of the store. Its compaction reads one table at a time of each of two levels, writes one,
/// and records the new version.
const WORKER: usize = 8;
/// Connections to one peer: its lanes, before and after a reconnect, and snapshots.
const DIALLED_PER_PEER: usize = 6;
/// Connections of strangers that the transport lets in above its bound, to refuse them.
const SURPLUS_OF_PEERS: usize = 16;
/// The least that a port needs to be of use.
const PEERS_MIN: usize = 8;
const HTTP_MIN: usize = 4;
const REDIS_MIN: usize = 8;
const STORE_FILES_MIN: usize = 16;

/// How many connections and files may be open at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) redis: usize,
    pub(crate) http: usize,
    /// Accepted connections of peers.
    pub(crate) peers: usize,
    /// Files that the store keeps open.
    pub(crate) store_files: usize,
}

impl Plan {
    /// For `members` nodes, with `limit` descriptors. What `settings` ask for is an upper bound.
    fn new(limit: usize, members: usize, settings: &Settings, peers_max: usize) -> Self {
        let others = members.saturating_sub(1);
        let workers = settings.store.worker_threads.saturating_sub(1);
        let store = STORE + workers * WORKER;
        let fixed = BASE + LOG + SNAPSHOTS + store + SURPLUS_OF_PEERS + others * DIALLED_PER_PEER;
        let left = limit.saturating_sub(fixed);
        let store_files = settings.store.files_max.min((left / 4).max(STORE_FILES_MIN));
        let peers = peers_max.min((left / 8).max(PEERS_MIN.max(others * DIALLED_PER_PEER)));
        let http = settings.kv.http_connections_max.min((left / 8).max(HTTP_MIN));
        let rest = left.saturating_sub(store_files + peers + http);
        Self { redis: settings.kv.connections_max.min(rest.max(REDIS_MIN)), http, peers, store_files }
    }
}

/// Raises the soft limit to the hard one, and says what follows.
pub(crate) fn plan(members: usize, settings: &Settings, peers_max: usize) -> Plan {
    let before = getrlimit(Resource::Nofile);
    let wanted = before.maximum.unwrap_or(LIMIT_MAX).min(LIMIT_MAX);
    let mut limit = before.current.unwrap_or(LIMIT_MAX);
    if limit < wanted {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: before.maximum }) {
            Ok(()) => limit = wanted,
            Err(error) => {
                tracing::warn!(%error, limit, wanted, "the limit of file descriptors cannot be raised");
            }
        }
    }
    let plan = Plan::new(usize::try_from(limit).unwrap_or(usize::MAX), members, settings, peers_max);
    let Plan { redis, http, peers, store_files } = plan;
    if plan.redis < settings.kv.connections_max || plan.http < settings.kv.http_connections_max {
        tracing::warn!(
            limit,
            redis,
            http,
            peers,
            store_files,
            connections_max = settings.kv.connections_max,
            "fewer clients than the settings allow: the limit of file descriptors is too low"
        );
    } else {
        tracing::info!(limit, redis, http, peers, store_files, "file descriptors are divided");
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_bounded_below_what_is_left() {
        let settings = Settings::default();
        for limit in [256, 512, 1_024, 4_096, 65_536] {
            let plan = Plan::new(limit, 3, &settings, 256);
            let used = plan.redis + plan.http + plan.peers + plan.store_files;
            assert!(
                used + BASE + LOG + SNAPSHOTS + STORE + SURPLUS_OF_PEERS + 12 <= limit,
                "{limit}: {plan:?}"
            );
            assert!(
                plan.redis >= REDIS_MIN && plan.http >= HTTP_MIN && plan.peers >= 12,
                "{limit}: {plan:?}"
            );
        }
        let plenty = Plan::new(65_536, 3, &settings, 256);
        assert_eq!((plenty.redis, plenty.peers), (settings.kv.connections_max, 256));
        assert_eq!(Plan::new(0, 3, &settings, 256).redis, REDIS_MIN, "it starts all the same");
        let mut workers = settings;
        let before = Plan::new(1_024, 3, &workers, 256);
        workers.store.worker_threads += 20;
        let after = Plan::new(1_024, 3, &workers, 256);
        let total = |plan: Plan| plan.redis + plan.http + plan.peers + plan.store_files;
        assert_eq!(total(before) - total(after), 20 * WORKER, "each worker of the store opens files");
    }
}
