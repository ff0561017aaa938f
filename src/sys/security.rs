//! Capabilities, no_new_privs, dumpable, keyrings.
