//! The node's own runtimes, unless the caller provides one.

use std::io;
use std::time::Instant;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::config::ValidConfig;
use crate::snapshots::lower_priority;

/// The names of the runtimes' threads.
const NET: &str = "towline-net";
const BULK: &str = "towline-bulk";

/// Where a node's tasks run. Snapshots have their own threads: on those of the lanes they would delay heartbeats.
#[derive(Clone)]
pub(crate) struct Handles {
    /// Lanes, links and listeners.
    pub(crate) net: Handle,
    /// Snapshot transfers and their files.
    pub(crate) bulk: Handle,
}

/// The node's own runtimes. A drop without [`wait`](Self::wait) ends them in the background: a failed start drops them inside
/// the caller's runtime, where waiting is forbidden.
#[derive(Default)]
pub(crate) struct Runtimes(Vec<(&'static str, Runtime)>);

impl Runtimes {
    /// Starts two runtimes, or uses the caller's for everything.
    pub(crate) fn start(config: &ValidConfig, callers: Option<Handle>) -> io::Result<(Self, Handles)> {
        if let Some(handle) = callers {
            return Ok((Self(Vec::new()), Handles { net: handle.clone(), bulk: handle }));
        }
        let named = |name: &'static str| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(config.network_workers).thread_name(name).enable_all();
            builder
        };
        let mut own = Self(Vec::with_capacity(2));
        own.0.push((NET, named(NET).build()?));
        own.0.push((BULK, named(BULK).on_thread_start(lower_priority).build()?));
        let [(_, net), (_, bulk)] = own.0.as_slice() else { return Err(io::ErrorKind::NotFound.into()) };
        let handles = Handles { net: net.handle().clone(), bulk: bulk.handle().clone() };
        Ok((own, handles))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks until the tasks have ended, or `until`. Returns the names of runtimes that still run. Panics inside a runtime.
    pub(crate) fn wait(&mut self, until: Instant) -> Vec<String> {
        let mut left = Vec::new();
        for (name, runtime) in self.0.drain(..) {
            runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
            if Instant::now() >= until {
                left.push(name.to_owned());
            }
        }
        left
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, runtime)| runtime.shutdown_background());
    }
}
