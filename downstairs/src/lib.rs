//! One replica of a volume: a log, then extents; and the member that votes for it.
//!
//! Depends on the protocol's vocabulary and on nothing else of Trivet's. See `docs/design.md`,
//! section "Downstairs", for why, and `docs/on-disk-format.md` for the bytes.

pub mod checkpoint;
pub mod disk;
pub mod door;
pub mod error;
pub mod extent;
pub mod head;
pub mod log;
pub mod member;
pub mod offline;
pub mod overlay;
pub mod pledge;
pub mod pool;
mod prompt;
pub mod region;
pub mod replica;
pub mod server;
pub mod slots;
pub mod store;
pub mod witness;

pub use error::{Result, StoreError};
pub use region::Region;
pub use store::Store;
pub use witness::Witness;

#[cfg(any(test, feature = "sim"))]
pub mod model;
#[cfg(test)]
mod tests;
