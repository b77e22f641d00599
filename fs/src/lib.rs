//! The file system on a replicated volume, and its FUSE door.
//!
//! `api` is what the doors call; everything else is how it is done.

#[macro_use]
mod bits;
pub mod api;
mod error;
pub mod lock;

pub use api::*;
pub use error::{FsError, FsResult};
