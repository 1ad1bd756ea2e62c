//! towline-storage.
