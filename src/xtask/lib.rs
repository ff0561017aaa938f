//! What the developer commands and the system tests share: making OCI images from nothing and pushing them, and asking
//! for a mirror.

pub mod image;
pub mod mirror;
pub mod push;
