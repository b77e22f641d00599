//! Space set aside in the pool, so that what is in the log can always be moved to the extent files
//! (design section 5: a full pool is never a dead replica).
//!
//! A file of the log's size, allocated and never written. Credits keep a pool from filling up by
//! this volume's own writes; when somebody else fills it, a checkpoint finds no space, lets go of
//! the reserve, and the next one goes through: the log empties, discards get in and give space
//! back, and credits stay at zero until the reserve is whole again.
//!
//! Where files cannot be allocated ahead (not every file system can) there is none, and a
//! checkpoint without space is tried again until there is some. A crash leaves a reserve of any
//! length; opening makes it whole, if there is space.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskFile};

/// Name of the file.
pub const FILE: &str = "reserve";

/// See the module's head.
pub(crate) struct Reserve {
    wanted: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None`: there can be none on this file system, or the region is only looked at.
    file: Option<Arc<dyn DiskFile>>,
    held: u64,
}

impl Reserve {
    /// None, for a region that is only looked at.
    pub fn none() -> Reserve {
        Reserve {
            wanted: 0,
            inner: Mutex::new(Inner {
                file: None,
                held: 0,
            }),
        }
    }

    /// The region's reserve of `wanted` bytes, made whole if there is space. Never an error: a
    /// region without one works.
    pub fn open(disk: &dyn Disk, wanted: u64) -> Reserve {
        let file = match disk.open(FILE) {
            Err(e) if e.kind() == ErrorKind::NotFound => disk.create(FILE),
            other => other,
        };
        let reserve = Reserve {
            wanted,
            inner: Mutex::new(Inner {
                file: file.ok(),
                held: 0,
            }),
        };
        reserve.fill();
        reserve
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Two fields that are set together, last.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it whole. False if there is no space for that.
    pub fn fill(&self) -> bool {
        let mut inner = self.lock();
        let Some(file) = &inner.file else { return true };
        if inner.held >= self.wanted {
            return true;
        }
        match file.allocate(self.wanted) {
            Ok(()) => {
                inner.held = self.wanted;
                true
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                inner.file = None;
                true
            }
            // What it took of the last space is given back.
            Err(_) => {
                let _ = file.set_size(0);
                false
            }
        }
    }

    /// Lets go of it. False if there was nothing to let go of.
    pub fn release(&self) -> bool {
        let mut inner = self.lock();
        let Some(file) = &inner.file else {
            return false;
        };
        if inner.held == 0 || file.set_size(0).is_err() {
            return false;
        }
        inner.held = 0;
        true
    }

    /// Bytes that are missing from it, and are to be kept free for it.
    pub fn missing(&self) -> u64 {
        let inner = self.lock();
        match inner.file {
            Some(_) => self.wanted - inner.held,
            None => 0,
        }
    }
}
