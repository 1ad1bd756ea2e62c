//! What the fuzz targets do with bytes.

pub mod certificates;
pub mod decoders;
