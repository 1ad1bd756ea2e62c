//! towline-engine.
