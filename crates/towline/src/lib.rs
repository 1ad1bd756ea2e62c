//! towline.

#[cfg(feature = "codec")]
pub mod codec;
