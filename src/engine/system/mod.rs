//! The engine as a whole: what it takes on the disk, whether its store is whole, and the removal of what nothing needs.

pub mod df;
pub mod du;
pub mod filter;
pub mod fsck;
pub mod limits;
pub mod prune;

pub use df::df;
pub use fsck::fsck;
pub use prune::prune;
