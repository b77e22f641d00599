//! The file system on a replicated volume, and its FUSE door.
//!
//! A reader's way in: [`Vfs`] is what the doors call, `ops` and `data` do it, `core` holds the
//! transaction, `btree` the one ordered map, `format` the bytes.

#[macro_use]
mod bits;
pub mod api;
mod btree;
mod core;
mod data;
mod error;
mod format;
mod fsck;
pub mod fuse;
pub mod limits;
pub mod lock;
mod ops;
#[cfg(test)]
mod testing;
mod vfs;

pub use api::*;
pub use data::{MAX_IO, STREAM};
pub use error::{FsError, FsResult};
pub use fsck::{Finding, Report, fsck};
pub use ops::{Fs, MkfsOptions, Settings, mkfs};
pub use vfs::Vfs;
