//! A Prometheus recorder and its scrape endpoint (feature `prometheus`).
//!
//! One [`Exporter`] serves a whole process. All nodes share its recorder; the `node` label tells them apart. The program's own
//! metrics may use it too.
//!
//! **Upkeep is required.** A histogram keeps every sample until [`Exporter::upkeep`] or [`Exporter::render`] folds the samples
//! into buckets. [`Exporter::serve`] does so every [`UPKEEP_INTERVAL`]. A program without `serve` must call
//! [`upkeep`](Exporter::upkeep) as often.
//!
//! ```
//! use towline_metrics::{NodeMetrics, exporter::Exporter};
//!
//! # #[tokio::main] async fn main() -> Result<(), towline_metrics::exporter::ExporterError> {
//! let exporter = Exporter::new();
//! let node = NodeMetrics::new(1, Some(exporter.recorder()));
//! let server = exporter.serve(([127, 0, 0, 1], 0)).await?; // lives as long as `server`
//! node.ticks_skipped(2);
//! assert!(exporter.render().contains("towline_ticks_skipped_total{node=\"1\"} 2"));
//! # drop(server); Ok(()) }
//! ```

mod http;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::node::SharedRecorder;

/// How often [`Exporter::serve`] does the upkeep, and how often others should.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds for histograms whose name ends in `_seconds`: from one sync of a fast disk to well past an
/// election timeout.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Upper bounds for histograms whose name ends in `_bytes`: 256 B to 64 MiB.
const BYTES_BUCKETS: &[f64] = &[
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Upper bounds for all other histograms, which hold counts.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0];

/// Why the scrape endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExporterError {
    /// The address cannot be listened on; the source has the [kind](io::Error::kind). Likely another process with the same
    /// settings, an address of another machine, or a port below 1024.
    #[error("metrics address {at} {}", problem(source))]
    Listen {
        /// The requested address.
        at: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// `serve` was polled outside a tokio runtime.
    #[error("the metrics endpoint needs a tokio runtime")]
    NoRuntime,
}

fn problem(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "is in use",
        io::ErrorKind::AddrNotAvailable => "is not an address of this machine",
        io::ErrorKind::PermissionDenied => "needs a permission that this process lacks",
        _ => "cannot be listened on",
    }
}

/// A Prometheus registry. Cloning shares it.
#[derive(Clone)]
pub struct Exporter {
    recorder: SharedRecorder,
    registry: PrometheusHandle,
}

impl Exporter {
    /// An empty registry. Histograms get buckets by the end of their name: `_seconds`, `_bytes`, or
    /// counts for all others.
    #[must_use]
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // The builder refuses only an empty list, and these are checked when this is compiled.
        const { assert!(!SECONDS_BUCKETS.is_empty() && !BYTES_BUCKETS.is_empty() && !COUNT_BUCKETS.is_empty()) };
        let recorder = builder
            .set_buckets(COUNT_BUCKETS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), BYTES_BUCKETS))
            .unwrap_or_default()
            .build_recorder();
        let registry = recorder.handle();
        Self { recorder: Arc::new(recorder), registry }
    }

    /// The recorder to hand to [`NodeMetrics::new`](crate::NodeMetrics::new), once per node or shared by
    /// several. It may also be installed with `metrics::set_global_recorder`.
    #[must_use]
    pub fn recorder(&self) -> SharedRecorder {
        Arc::clone(&self.recorder)
    }

    /// Everything recorded so far, in the Prometheus text format. Also does the upkeep. The work is
    /// proportional to the number of series; on an async runtime, call it where blocking is allowed.
    #[must_use]
    pub fn render(&self) -> String {
        self.registry.render()
    }

    /// Folds the samples of histograms into buckets, which bounds their memory. See the
    /// [module page](self).
    pub fn upkeep(&self) {
        self.registry.run_upkeep();
    }

    /// Serves `GET /metrics` at `at` on the caller's tokio runtime, and does the upkeep, for as long as
    /// the returned [`MetricsServer`] lives. Port 0 picks a free port. The runtime needs its I/O and time
    /// drivers.
    ///
    /// The endpoint has no authentication and no encryption: bind it to loopback or a private network.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on, or there is no runtime. Nothing keeps running then.
    pub async fn serve(&self, at: impl Into<SocketAddr>) -> Result<MetricsServer, ExporterError> {
        let at = at.into();
        let runtime = Handle::try_current().map_err(|_| ExporterError::NoRuntime)?;
        let failed = |source| ExporterError::Listen { at, source };
        let listener = TcpListener::bind(at).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let accept = runtime.spawn(http::serve(listener, self.clone()));
        let upkeep = runtime.spawn(upkeep_for_ever(self.clone()));
        Ok(MetricsServer { bound, tasks: [accept, upkeep] })
    }
}

impl Default for Exporter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// A running scrape endpoint. Dropping it stops the endpoint, its connections and its upkeep.
#[derive(Debug)]
#[must_use = "dropping it stops the endpoint"]
pub struct MetricsServer {
    bound: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl MetricsServer {
    /// The address it listens on, with the port the system picked.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.bound
    }

    /// Stops it and returns once its port is free. A drop also stops it, but a moment later.
    pub async fn close(mut self) {
        for task in &mut self.tasks {
            task.abort();
            // The error says that it was aborted.
            let _ = task.await;
        }
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn upkeep_for_ever(exporter: Exporter) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        let exporter = exporter.clone();
        // Upkeep walks every series, which would delay the heartbeats of this thread.
        let _ = tokio::task::spawn_blocking(move || exporter.upkeep()).await;
    }
}
