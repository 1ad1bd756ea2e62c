//! towline.
