//! Socket options and calls that the network role needs and nix lacks.
