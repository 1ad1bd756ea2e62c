//! towline-metrics.
