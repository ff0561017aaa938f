//! Passing descriptors over Unix sockets.
