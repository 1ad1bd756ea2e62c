//! One node.

use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::net::TcpListener;
use tokio::sync::watch;
use towline::metrics::exporter::{Exporter, UPKEEP_INTERVAL};
use towline::{DataDir, GroupId, Node, Start, StateMachine};

use crate::cli::{PeerSpec, Serve};
use crate::config::Settings;
use crate::gauges::Gauges;
use crate::http::{self, Pages};
use crate::lost::LosesOutcomes;
use crate::machine::{self, KvMachine, PACK_BYTES};
use crate::node::GroupReplica;
use crate::redis::{Member, Members, Server};
use crate::stop::{self, Hangup, Signals};
use crate::{Failure, descriptors, ticks, transports};

const WAITS_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until a signal, then stops in order.
pub(crate) async fn run(args: Serve) -> Result<(), Failure> {
    let mut settings = Settings::load(args.config.as_deref()).map_err(Failure::Usage)?;
    check_peers(&args)?;
    let tls = transports::identity(args.tls.as_deref(), args.id)?;
    let mut signals = Signals::listen(Hangup::Reloads(tls.clone()))
        .map_err(|e| Failure::run("cannot hear signals".into(), e))?;
    let plan = descriptors::plan(args.peers.len(), &settings, transports::PEERS_MAX);
    settings.kv.connections_max = plan.redis;
    settings.store.files_max = plan.store_files;
    let dir = DataDir::open(&args.data)
        .map_err(|e| Failure::run(format!("data directory {}", args.data.display()), e))?;
    let log = Arc::downgrade(&dir.log());
    let log_waits = move || Some(log.upgrade()?.descriptor_waits());
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
    let redis = Server::bind(&args.redis.to_string())
        .await
        .map_err(|e| Failure::run(format!("cannot listen for Redis clients at {}", args.redis), e))?;
    let web = TcpListener::bind(args.http.to_string())
        .await
        .map_err(|e| Failure::run(format!("cannot listen for HTTP at {}", args.http), e))?;
    let node = builder.start().await.map_err(|e| Failure::run("cannot start".into(), e))?;
    let start = how_to_start(&args, &node)?;
    let command_bytes_max = settings.engine.proposal_bytes_max.as_usize().saturating_sub(PACK_BYTES);
    let machine = KvMachine::open(&args.data.join("kv"), &settings.store)
        .map_err(|e| Failure::run("cannot open the key-value store".into(), e))?;
    let view = machine.view();
    let group = node.group(GroupId::DEFAULT, machine).start(start).await;
    let group = group.map_err(|e| Failure::run("cannot start".into(), e))?;
    let replica = GroupReplica::new(group, view, settings.engine.tick);

    let (stopping, stopped) = watch::channel(false);
    let ticks = tokio::spawn(ticks::run(replica.clone()));
    let members = Members::new(args.id.as_u64(), args.peers.iter().map(member).collect());
    let health = tokio::spawn(members.clone().watch(replica.clone()));
    let limits = settings.kv.limits(command_bytes_max);
    let mut clients = tokio::spawn(redis.run(replica.clone(), members, limits, counters, stopped.clone()));
    let (node_id, cluster) = (args.id.as_u64(), args.cluster.to_string());
    let pages = Pages::new(replica, exporter.clone(), node_id, cluster, args.peers.clone());
    let mut pages = tokio::spawn(http::serve(web, pages, gauges.http(plan.http)));
    let upkeep = tokio::spawn(upkeep(exporter));
    let waits = tokio::spawn(count_waits(
        log_waits,
        gauges.descriptor_waits("log"),
        gauges.descriptor_waits("store"),
    ));
    signals.started();
    tracing::info!(id = %args.id, raft = %args.raft, redis = %args.redis, http = %args.http, "serving");

    let exit_with_parent = args.exit_with_parent;
    let parent_gone = async move {
        match exit_with_parent {
            true => stop::parent_gone().await,
            false => std::future::pending().await,
        }
    };
    // A port that is served no more must not leave a node that looks well.
    let ended = tokio::select! {
        () = signals.requested() => None,
        () = parent_gone => {
            tracing::warn!(id = %args.id, "the parent process is gone");
            None
        }
        ended = &mut clients => Some(("Redis clients", format!("{ended:?}"))),
        ended = &mut pages => Some(("pages", format!("{ended:?}"))),
    };
    tracing::info!(id = %args.id, "stopping");
    let _ = stopping.send(true);
    pages.abort();
    upkeep.abort();
    waits.abort();
    health.abort();
    ticks.abort();
    node.shutdown(settings.kv.shutdown_timeout).await;
    match ended {
        None => {
            let _ = clients.await;
            Ok(())
        }
        Some((whom, how)) => Err(Failure::Run(format!("{whom} are served no more: {how}"))),
    }
}

/// Histograms keep their samples until somebody folds them.
async fn upkeep(exporter: Exporter) {
    let mut every = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        every.tick().await;
        let exporter = exporter.clone();
        let _ = tokio::task::spawn_blocking(move || exporter.upkeep()).await;
    }
}

/// Publishes what log and store count, until the log is closed.
async fn count_waits(log_waits: impl Fn() -> Option<u64>, of_log: Counter, of_store: Counter) {
    let mut every = tokio::time::interval(WAITS_INTERVAL);
    while let Some(waits) = log_waits() {
        of_log.absolute(waits);
        of_store.absolute(machine::descriptor_waits());
        every.tick().await;
    }
}

fn member(peer: &PeerSpec) -> Member {
    Member { id: peer.id.as_u64(), host: peer.redis.host.clone(), port: peer.redis.port }
}

fn check_peers(args: &Serve) -> Result<(), Failure> {
    let mut ids: Vec<_> = args.peers.iter().map(|p| p.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(Failure::Usage("--peer names the same id twice; each member is named once".into()));
    }
    match args.peers.iter().find(|p| p.id == args.id) {
        None => Err(Failure::Usage(format!(
            "--peer does not name node {} itself; name every member, this node among them",
            args.id
        ))),
        Some(me) if me.raft != args.raft => Err(Failure::Usage(format!(
            "--raft is {}, but --peer says that node {} is at {}; both must be the same",
            args.raft, args.id, me.raft
        ))),
        Some(_) => match &args.listen {
            Some(listen) if listen.scheme() != args.raft.scheme() => Err(Failure::Usage(format!(
                "--listen is {listen}, but peers call {}; both must name the same transport",
                args.raft
            ))),
            _ => Ok(()),
        },
    }
}

/// A directory with something in it is restarted; an empty one only becomes a member when told to.
fn how_to_start(args: &Serve, node: &Node) -> Result<Start, Failure> {
    let stored = node.has_group(GroupId::DEFAULT).map_err(|e| Failure::run("cannot start".into(), e))?;
    if stored {
        return Ok(Start::Restart);
    }
    if args.join {
        return Ok(Start::Join);
    }
    if !args.bootstrap {
        return Err(Failure::Usage(format!(
            "data directory {} is empty: give --bootstrap to found a cluster (once, at the first start of every node)",
            args.data.display()
        )));
    }
    Ok(Start::Bootstrap(args.peers.iter().map(|p| (p.id, p.raft.clone())).collect()))
}
