//! One node.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::net::TcpListener;
use tokio::sync::watch;
use towline::engine::log_store::LogStore as _;
use towline::engine::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};
use towline::metrics::exporter::{Exporter, UPKEEP_INTERVAL};
use towline::{DataDir, DataDirConfig, GroupId, Node, NodeId, Start};

use crate::cli::{PeerSpec, Serve};
use crate::config::Settings;
use crate::failure::Failure;
use crate::gauges::Gauges;
use crate::http::{self, Pages};
use crate::machine::{self, PACK_BYTES, StoreRoom};
use crate::redis::{self, Member, Members, Shared};
use crate::replica::GroupReplica;
use crate::starter::GroupStarter;
use crate::stop::{self, Hangup, Signals};
use crate::{descriptors, ticks, transports};

const WAITS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until a signal, then stops in order.
pub(crate) async fn run(args: Serve) -> Result<(), Failure> {
    let mut settings = Settings::load(args.config.as_deref()).map_err(Failure::Usage)?;
    check_peers(&args)?;
    let tls = transports::identity(args.tls.as_deref(), args.id)?;
    let mut signals = Signals::listen(Hangup::Reloads(tls.clone()))
        .map_err(|e| Failure::run("cannot listen for signals", e))?;
    let plan = descriptors::plan(args.peers.len(), &settings, transports::PEERS_MAX);
    settings.kv.connections_max = plan.redis;
    settings.store.files_max = plan.store_files;
    let mut data = DataDirConfig::default();
    data.log = settings.log.clone();
    let dir = DataDir::open_with(&args.data, data)
        .map_err(|e| Failure::run(format!("data directory {}", args.data.display()), e))?;
    let log = Arc::downgrade(&dir.log());
    let of_log = log.clone();
    // The log needs its reserve even while the store waits.
    let room = StoreRoom::new(move || {
        let space = of_log.upgrade()?.space().ok()??;
        Some(space.free.saturating_sub(space.reserve))
    });
    let log_waits = move || log.upgrade().map(|log| [log.descriptor_waits(), log.space_waits()]);
    let exporter = Exporter::new();
    let recorder = exporter.recorder();
    let gauges = Gauges::new(recorder.as_ref(), args.id.as_u64());
    let counters = gauges.redis();
    let mut builder = Node::builder(args.id, args.cluster.clone())
        .config(settings.engine.clone())
        .storage(dir)
        .prometheus(&exporter);
    builder = transports::add(builder, &args, tls.as_ref(), plan.peers)?;
    for peer in &args.peers {
        builder = builder.peer_address(peer.id, peer.raft.clone());
    }
    if args.lose_reports {
        builder = builder.reporter(|own| Arc::new(LosesOutcomes(own)));
    }
    let redis = TcpListener::bind(args.redis.to_string())
        .await
        .map_err(|e| Failure::run(format!("cannot listen for Redis clients at {}", args.redis), e))?;
    let web = TcpListener::bind(args.http.to_string())
        .await
        .map_err(|e| Failure::run(format!("cannot listen for HTTP at {}", args.http), e))?;
    let node = builder.start().await.map_err(|e| Failure::run("cannot start", e))?;
    let command_bytes_max = settings.engine.proposal_bytes_max.as_usize().saturating_sub(PACK_BYTES);
    let replica = GroupReplica::new(args.id, room.clone());
    let pages = Pages {
        replica: replica.clone(),
        exporter: exporter.clone(),
        node: args.id,
        cluster: args.cluster.clone(),
        peers: args.peers.clone(),
        tick: settings.engine.tick,
    };
    // Before the group: its start may wait for room, and `/status` then says so.
    let mut pages = tokio::spawn(http::serve(web, pages, plan.http, gauges.http()));
    let starter = GroupStarter {
        node: &node,
        args: &args,
        store: args.data.join("kv"),
        config: settings.store,
        room,
        replica: replica.clone(),
        attempts: gauges.group_starts(),
        has_run: Cell::new(false),
    };
    let group = starter.start().await?;

    let (stopping, stopped) = watch::channel(false);
    let ticks = tokio::spawn(ticks::run(replica.clone()));
    let members = Members::new(args.id, args.peers.iter().map(member).collect());
    let health = tokio::spawn(members.clone().watch(replica.clone()));
    let shutdown_timeout = settings.kv.shutdown_timeout;
    let shared = Shared::new(replica, members, settings.kv, command_bytes_max, counters);
    let mut clients = tokio::spawn(redis::serve(redis, shared, stopped));
    let upkeep = tokio::spawn(upkeep(exporter));
    let waits = tokio::spawn(count_waits(log_waits, gauges.descriptor_waits(), gauges.space_waits()));
    signals.started();
    tracing::info!(id = %args.id, raft = %args.raft, redis = %args.redis, http = %args.http, "serving");

    let exit_with_parent = args.exit_with_parent;
    let parent_gone = async move {
        match exit_with_parent {
            true => stop::parent_gone().await,
            false => std::future::pending().await,
        }
    };
    // A node that lost one of its ports must not look healthy, so it stops.
    let ended = tokio::select! {
        () = signals.requested() => None,
        () = parent_gone => {
            tracing::warn!(id = %args.id, "the parent process is gone");
            None
        }
        ended = &mut clients => Some(("the Redis port", format!("{ended:?}"))),
        ended = &mut pages => Some(("the HTTP port", format!("{ended:?}"))),
        never = starter.run(group) => match never {},
    };
    tracing::info!(id = %args.id, "stopping");
    let _ = stopping.send(true);
    pages.abort();
    for task in [upkeep, waits, health, ticks] {
        task.abort();
    }
    node.shutdown(shutdown_timeout).await;
    match ended {
        None => {
            let _ = clients.await;
            Ok(())
        }
        Some((port, how)) => Err(Failure::Run(format!("{port} stopped serving: {how}"))),
    }
}

/// Passes on that messages were lost, but no outcome of a snapshot: the demo's control.
struct LosesOutcomes(Arc<dyn Reporter>);

impl Reporter for LosesOutcomes {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.0.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {}
}

/// Folds the samples of histograms, which otherwise grow until the next scrape.
async fn upkeep(exporter: Exporter) {
    let mut every = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        every.tick().await;
        let exporter = exporter.clone();
        let _ = tokio::task::spawn_blocking(move || exporter.upkeep()).await;
    }
}

/// Publishes how often log and store waited for a file descriptor, and for room on the disk, until the log is closed.
async fn count_waits(
    log_waits: impl Fn() -> Option<[u64; 2]>,
    descriptors: [Counter; 2],
    space: [Counter; 2],
) {
    let mut every = tokio::time::interval(WAITS_INTERVAL);
    while let Some(of_log) = log_waits() {
        let of_store = [machine::descriptor_waits(), machine::space_waits()];
        for ((waits, counters), of_store) in of_log.into_iter().zip([&descriptors, &space]).zip(of_store) {
            counters.iter().zip([waits, of_store]).for_each(|(counter, waits)| counter.absolute(waits));
        }
        every.tick().await;
    }
}

fn member(peer: &PeerSpec) -> Member {
    Member { id: peer.id, host: peer.redis.host.clone(), port: peer.redis.port }
}

fn check_peers(args: &Serve) -> Result<(), Failure> {
    let mut ids: Vec<_> = args.peers.iter().map(|p| p.id).collect();
    ids.sort_unstable();
    let usage = |text| Err(Failure::Usage(text));
    if ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return usage("--peer names the same id twice; name each member once".into());
    }
    let Some(me) = args.peers.iter().find(|p| p.id == args.id) else {
        return usage(format!(
            "--peer does not name node {} itself; name every member, this node too",
            args.id
        ));
    };
    if me.raft != args.raft {
        return usage(format!(
            "--raft is {}, but --peer says that node {} is at {}; both must be the same",
            args.raft, args.id, me.raft
        ));
    }
    match &args.listen {
        Some(listen) if listen.scheme() != args.raft.scheme() => usage(format!(
            "--listen is {listen}, but peers call {}; both must name the same transport",
            args.raft
        )),
        _ => Ok(()),
    }
}

/// Restarts what the directory holds. An empty directory becomes a member only with `--bootstrap`.
pub(crate) fn how_to_start(args: &Serve, node: &Node) -> Result<Start, Failure> {
    let stored = node.has_group(GroupId::DEFAULT).map_err(|e| Failure::run("cannot start", e))?;
    let members: Vec<_> = args.peers.iter().map(|p| (p.id, p.raft.clone())).collect();
    match (stored, args.bootstrap) {
        // Compares the list with that of the founding, and logs a difference.
        (true, _) => Ok(Start::auto(members)),
        (false, true) => Ok(Start::Bootstrap(members)),
        (false, false) => Err(Failure::Usage(format!(
            "data directory {} is empty: give --bootstrap to found a cluster (once, at the first start of every node)",
            args.data.display()
        ))),
    }
}
