//! What the developer commands and the system tests share: making OCI images from nothing and pushing them.

pub mod image;
pub mod push;
