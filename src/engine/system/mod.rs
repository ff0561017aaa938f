//! The engine as a whole: what it takes on the disk, whether its store is whole, the removal of what nothing needs or of all, and
//! what is started at boot.

pub mod boot;
pub mod df;
pub mod du;
pub mod filter;
pub mod fsck;
pub(crate) mod here;
pub mod limits;
pub mod migrate;
pub mod prune;
pub mod reset;

pub use df::df;
pub use fsck::fsck;
pub use migrate::migrate;
pub use prune::prune;
pub use reset::reset;
