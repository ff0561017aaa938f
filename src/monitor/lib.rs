//! One process a container: reaps it, owns its console and logs, records its exit, answers attach and exec.
//!
//! The monitor runs in the host's namespaces with the user's ids, as one thread around one poll loop ([`role`]). It is
//! the parent of stage and init (so that it alone learns how the container ends), keeps the outer user namespace and
//! the connection to the fs role open, and writes the [`record`] that every other command reads. It ends when its
//! container has ended, all output was delivered and everything was tidied up.
//!
//! If it is killed, the container goes on: its standard streams are named pipes that it holds open for both
//! directions. The next command sees by `pid.json` what is true, and starts a successor that takes over. The crate knows no
//! images and no store.

mod answers;
pub mod client;
pub mod health;
pub mod journal;
pub mod log;
pub mod networks;
mod pid_file;
pub mod protocol;
pub mod record;
pub mod resources;
pub mod restart;
pub mod role;
pub mod streams;
pub mod supervised;
pub mod tidy;
