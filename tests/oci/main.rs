//! The OCI runtime's command line on bundles of the small image's programs: what other engines rely on.

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod exec;
mod hooks;
mod killed;
mod life;
mod manager;
mod notify;
mod peers;
mod podman;
mod refused;
mod spec;
mod storm;
mod systemd;
mod terminal;
