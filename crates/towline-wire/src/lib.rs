//! towline-wire.
