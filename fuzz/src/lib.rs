//! The bodies of the fuzz targets.

pub mod certificates;
pub mod decoders;
