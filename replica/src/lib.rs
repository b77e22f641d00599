//! The upstairs: turns three downstairs into one volume, in one order, behind one writer.

pub mod driver;
pub mod upstairs;
pub mod volume;

pub use volume::{Flushed, Receipt, SpaceInfo, Ticket, Volume, VolumeError, VolumeInfo};
