//! The mount API: file system contexts, detached mounts, attributes, pivot.
