//! Path resolution inside a root.
