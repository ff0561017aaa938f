//! The `sublet` binary: chooses a role from argv, runs it, prints the error, sets the exit code.

fn main() {}
