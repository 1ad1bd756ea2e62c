//! Starts the group of this node, and starts it again after a full disk took it out of service.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use metrics::Counter;
use tokio::time::{MissedTickBehavior, interval, sleep};
use towline::{Group, GroupId, GroupState, Node, Role, StateMachine as _};

use crate::cli::Serve;
use crate::failure::Failure;
use crate::machine::{KvMachine, StoreConfig, StoreError, StoreRoom};
use crate::replica::GroupReplica;
use crate::serve::how_to_start;

/// How often the starter looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The pauses between attempts to start; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Owns the group: opens its store, and lets go of it after a failure.
pub(crate) struct GroupStarter<'a> {
    pub(crate) node: &'a Node,
    pub(crate) args: &'a Serve,
    pub(crate) store: PathBuf,
    pub(crate) config: StoreConfig,
    pub(crate) room: StoreRoom,
    pub(crate) replica: GroupReplica,
    /// Counts attempts to start the group after a full disk.
    pub(crate) attempts: Counter,
    pub(crate) has_run: Cell<bool>,
}

/// Why an attempt to start failed.
struct Refused {
    failure: Failure,
    /// Another attempt may succeed.
    is_passing: bool,
}

impl GroupStarter<'_> {
    /// Starts the group. While the disk has too little room for its store, waits.
    pub(crate) async fn start(&self) -> Result<Group<KvMachine>, Failure> {
        match self.attempt().await {
            Err(Refused { failure, is_passing: true }) => self.start_with_room(&failure.to_string()).await,
            done => done.map_err(|refused| refused.failure),
        }
    }

    /// Starts the group again, each time that a full disk took it out of service. After any other failure it stays out of
    /// service.
    pub(crate) async fn run(&self, mut group: Group<KvMachine>) -> Infallible {
        loop {
            let state = self.down(&group).await;
            if !self.room.has_failed() {
                return pending().await;
            }
            let cause = state.down.clone().unwrap_or_default();
            self.replica.starts_again(state);
            // Stopped or not, the state machine is gone.
            let _ = group.stop().await;
            drop(group);
            group = match self.start_with_room(&cause).await {
                Ok(group) => group,
                Err(failure) => {
                    tracing::error!(cause = %failure, "the group cannot start again: restart the node");
                    self.replica.stays_down(failure.to_string().into());
                    return pending().await;
                }
            };
        }
    }

    /// Waits until the group is out of service, and returns its state.
    async fn down(&self, group: &Group<KvMachine>) -> GroupState {
        let mut state = group.watch();
        let mut every = interval(LOOK_INTERVAL);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                down = state.wait_for(|state| state.role == Role::Down) => match down {
                    Ok(state) => return state.clone(),
                    Err(_) => return pending().await,
                },
                // A thread of the store may fail now, and the state machine may notice once there is room again.
                _ = every.tick() => { self.room.has(0); }
            }
        }
    }

    /// Whether a reader still uses the store of the last group. A group that never ran left none: another process has it.
    fn is_still_open(&self, error: &StoreError) -> bool {
        matches!(error, StoreError::Fjall(fjall::Error::Locked)) && self.has_run.get()
    }

    /// Waits for room, then starts the group. `cause` is for the log.
    async fn start_with_room(&self, cause: &str) -> Result<Group<KvMachine>, Failure> {
        tracing::warn!(
            cause,
            "the disk of the key-value store was full: the group starts once there is room"
        );
        let (begun, mut attempts, mut pause) = (Instant::now(), 0_u64, PAUSE_MIN);
        loop {
            while !self.room.has(self.config.memtable_bytes.as_u64()) {
                sleep(LOOK_INTERVAL).await;
            }
            attempts += 1;
            self.attempts.increment(1);
            match self.attempt().await {
                Err(Refused { failure, is_passing: true }) => {
                    tracing::debug!(error = %failure, attempts, "the group does not start yet");
                }
                done => {
                    let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    if done.is_ok() {
                        tracing::info!(waited_ms, attempts, "the group runs again after a full disk");
                    }
                    return done.map_err(|refused| refused.failure);
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Opens the store and starts the group on it.
    async fn attempt(&self) -> Result<Group<KvMachine>, Refused> {
        let lasting = |failure| Refused { failure, is_passing: false };
        let start = how_to_start(self.args, self.node).map_err(lasting)?;
        self.room.forget();
        let (path, config, room) = (self.store.clone(), self.config.clone(), self.room.clone());
        let opened = tokio::task::spawn_blocking(move || KvMachine::open(&path, &config, &room)).await;
        let opened =
            opened.map_err(|error| lasting(Failure::run("opening the key-value store failed", error)))?;
        let machine = opened.map_err(|error| Refused {
            is_passing: self.room.has_failed() || self.is_still_open(&error),
            failure: Failure::run("cannot open the key-value store", error),
        })?;
        let view = machine.view();
        let started = self.node.group(GroupId::DEFAULT, machine).start(start).await;
        let group = started.map_err(|error| Refused {
            is_passing: self.room.has_failed(),
            failure: Failure::run("cannot start", error),
        })?;
        self.has_run.set(true);
        self.replica.runs(group.clone(), view);
        Ok(group)
    }
}
