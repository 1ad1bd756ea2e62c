//! The runtimes that a node owns, unless the caller brings one.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::config::ValidConfig;
use crate::snapshots::step_back;

/// How long tasks may take to notice that their runtime ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a node's tasks run. A snapshot keeps processors busy for as long as it moves: on the threads of the lanes it
/// would delay heartbeats, whatever connection those have.
#[derive(Clone)]
pub(crate) struct Handles {
    /// Lanes, links and listeners.
    pub(crate) net: Handle,
    /// Snapshots: what is sent, and the files of what is sent and received.
    pub(crate) bulk: Handle,
}

/// Dropped without [`wait`](Self::wait) they end in the background: a start that fails drops them inside the caller's
/// runtime, where waiting is forbidden.
#[derive(Default)]
pub(crate) struct Runtimes(Vec<Runtime>);

impl Runtimes {
    /// Two of the node's own, or the caller's for everything.
    pub(crate) fn start(config: &ValidConfig, callers: Option<Handle>) -> io::Result<(Self, Handles)> {
        if let Some(handle) = callers {
            return Ok((Self(Vec::new()), Handles { net: handle.clone(), bulk: handle }));
        }
        let named = |name: &str| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(config.network_workers).thread_name(name).enable_all();
            builder
        };
        let mut own = Self(Vec::with_capacity(2));
        own.0.push(named("towline-net").build()?);
        own.0.push(named("towline-bulk").on_thread_start(step_back).build()?);
        let [net, bulk] = own.0.as_slice() else { return Err(io::ErrorKind::NotFound.into()) };
        let handles = Handles { net: net.handle().clone(), bulk: bulk.handle().clone() };
        Ok((own, handles))
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks until their tasks have ended, or long enough. Not to be called inside a runtime.
    pub(crate) fn wait(mut self) {
        self.0.drain(..).for_each(|runtime| runtime.shutdown_timeout(STOP_TIMEOUT));
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}
