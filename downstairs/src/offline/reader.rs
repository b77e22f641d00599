//! Reading a region's blocks, one range at a time, verified.

use std::path::Path;

use trivet_protocol::{Block, VolumeId};

use super::{inspect, mismatches};
use crate::error::{Result, StoreError};
use crate::log::replay::Tail;
use crate::store::Store;

/// A region opened for reading only; nothing in it is changed.
pub struct Reader {
    store: Store,
    sound: bool,
}

impl Reader {
    /// Opens the region in `dir`.
    ///
    /// # Errors
    /// It is in use, or cannot be read.
    pub fn open(dir: &Path) -> Result<Reader> {
        let (store, tail) = inspect(dir)?;
        let sound =
            store.mixed().is_none() && !store.damaged() && !matches!(tail, Tail::Damaged(_));
        Ok(Reader { store, sound })
    }

    /// Size of the volume, in blocks.
    pub fn blocks(&self) -> u64 {
        self.store.blocks()
    }

    /// Whose replica it is.
    pub fn volume(&self) -> VolumeId {
        self.store.region().volume
    }

    /// Whether its content is of one moment and nothing synced is missing. What is read from one
    /// that is not may be of several moments.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// The content of `count` blocks; unwritten ones are zeros.
    ///
    /// # Errors
    /// A block does not match its checksum, or the disk fails.
    pub fn read(&self, first: u64, count: u32) -> Result<Vec<u8>> {
        let got = self.store.read(Block(first), count)?;
        match mismatches(&self.store, first, &got).first() {
            None => Ok(got.data),
            Some(bad) => Err(StoreError::CorruptBlocks {
                first: *bad,
                last: *bad,
                why: "content and checksum differ; read from another replica".to_owned(),
            }),
        }
    }
}
