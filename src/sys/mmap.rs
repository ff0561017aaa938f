//! Read-only memory maps of immutable files.
