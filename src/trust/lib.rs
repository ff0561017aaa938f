//! What says which images may be brought in: policies, public keys, signatures, and files of locked digests, as data.
//!
//! This crate does no I/O and knows neither registries nor the store. What a signature says is read only after one of the
//! keys has been found to have made it. Everything is refused that is not understood whole: a policy with an unknown word
//! might allow more than its author meant.

pub mod key;
pub mod lock;
mod object;
pub mod policy;
mod scope;
pub mod signature;

pub use key::{KeyError, PublicKey};
pub use lock::{Lock, LockError, Locked};
pub use policy::{Chosen, Identity, KeySource, Policy, PolicyError, Requirement, Signed};
pub use signature::{Signature, SignatureError};
