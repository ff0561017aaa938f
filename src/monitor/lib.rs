//! One process a container: reaps it, owns its console and logs, records its exit, answers attach and exec.

pub mod record;
