//! The Container Device Interface: devices of the host by name, each with the edits that give it to a container.
//!
//! A *spec file* names devices of one *kind* (`vendor.com/class`) and has `containerEdits` for each of them and for
//! all. [`Registry`] reads the directories of spec files and answers a request for devices with the edits; [`gpu`]
//! makes the edits for GPUs in memory where no spec file describes them. The source is SPEC.md of
//! cncf-tags/container-device-interface, version 1.1.0; where it is silent, the behaviour of its Go package.
//!
//! Spec files are input: they are read up to a limit, and anything that is not understood makes the file one that is
//! skipped, with the reason. Nothing here edits a specification, opens a device or runs anything; the crate knows no
//! other but `base`.

pub mod document;
pub mod gpu;
pub mod library_cache;
pub mod name;
pub mod registry;
mod yaml;

pub use document::{ContainerEdits, DeviceNode, Document, DocumentError, Hook, HookName, Mount};
pub use name::{DeviceName, NameError};
pub use registry::{DEFAULT_DIRECTORIES, Registry, RegistryError, Skipped};
