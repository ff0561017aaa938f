//! Entering and describing namespaces.
