//! What the fuzz targets do with bytes.

pub mod decoders;
