//! towline-testkit.
