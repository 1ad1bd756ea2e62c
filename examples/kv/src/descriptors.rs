//! Raises the limit of file descriptors, and divides them between log, store, peers and clients.
//!
//! A node that cannot open its next log file takes no writes. So the clients of each port get a bound below what log, store
//! and peers leave.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;
use crate::machine::WAITING_TABLES_MAX;

/// More than this program needs. Some systems allow a number that costs memory.
const LIMIT_MAX: u64 = 1 << 20;
/// Standard streams, listeners, three runtimes, locks, directories, and one refused client for each port.
const BASE: usize = 56;
/// Log files: 16 by default, the ones that a purge moved, and the next one.
const LOG: usize = 40;
/// Files of snapshots that the node makes, sends and receives.
const SNAPSHOTS: usize = 16;
/// Files of the store beside the ones it keeps open. A compaction reads all waiting tables at the same time. The rest is
/// for new tables, the output of the compaction, journals, and reads of tables that are not kept open.
const STORE: usize = WAITING_TABLES_MAX + 24;
/// Files of each further worker of the store: its compaction reads one table of each of two levels, writes one, and
/// records the new version.
const WORKER: usize = 8;
/// Connections to one peer: its lanes, before and after a reconnect, and snapshots.
const DIALLED_PER_PEER: usize = 6;
/// Connections of strangers that the transport accepts above its bound, to refuse them.
const SURPLUS_OF_PEERS: usize = 16;
/// The least that each user needs to work.
const PEERS_MIN: usize = 8;
const HTTP_MIN: usize = 4;
const REDIS_MIN: usize = 8;
const STORE_FILES_MIN: usize = 16;

/// How many connections and files may be open at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) redis: usize,
    pub(crate) http: usize,
    pub(crate) peers: usize,
    pub(crate) store_files: usize,
}

impl Plan {
    /// Divides `limit` descriptors in a cluster of `members` nodes. The numbers in `settings` are upper bounds.
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

/// Raises the soft limit to the hard one, divides it, and logs the result.
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
    fn clients_get_what_log_store_and_peers_leave() {
        let settings = Settings::default();
        for limit in [256, 512, 1_024, 4_096, 65_536] {
            let plan = Plan::new(limit, 3, &settings, 256);
            let used = plan.redis + plan.http + plan.peers + plan.store_files;
            assert!(
                used + BASE + LOG + SNAPSHOTS + STORE + SURPLUS_OF_PEERS + 12 <= limit,
                "{limit}: {plan:?}"
            );
            assert!(plan.redis >= REDIS_MIN && plan.http >= HTTP_MIN && plan.peers >= 12, "{plan:?}");
        }
        let plenty = Plan::new(65_536, 3, &settings, 256);
        assert_eq!((plenty.redis, plenty.peers), (settings.kv.connections_max, 256));
        assert_eq!(
            Plan::new(0, 3, &settings, 256).redis,
            REDIS_MIN,
            "the node starts even without descriptors to divide"
        );
        let mut workers = settings;
        let before = Plan::new(1_024, 3, &workers, 256);
        workers.store.worker_threads += 20;
        let after = Plan::new(1_024, 3, &workers, 256);
        let total = |plan: Plan| plan.redis + plan.http + plan.peers + plan.store_files;
        assert_eq!(total(before) - total(after), 20 * WORKER, "each worker of the store opens files");
    }
}
