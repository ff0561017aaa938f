//! Making, naming and waiting for processes.
