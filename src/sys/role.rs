//! Handing a role of the binary its configuration and descriptors.
