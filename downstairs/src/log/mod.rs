//! The log: a ring of bytes in one pre-written file, so that a sync commits no metadata.
//!
//! Byte positions count from the first byte ever logged; position modulo ring size is the place
//! in the file. What the records look like is in [`record`], how they are read back after a crash
//! in [`replay`].

use std::io::IoSlice;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Disk, DiskFile, Source};
use crate::error::{Result, StoreError};

pub mod record;
pub mod replay;

/// Name of the file.
pub const FILE: &str = "log";
/// Bytes kept free between the end of the log and its tail: the END mark, and the rest of its
/// page, which is written along so that the kernel need not read the page first.
pub const MARGIN: u64 = 8192;

/// See the module's head.
pub struct Log {
    file: Arc<dyn DiskFile>,
    ring: u64,
    /// Whether a sync failed; held during a sync, because two at once could share one failure, of
    /// which only one would hear.
    sync_failed: Mutex<bool>,
}

impl Log {
    /// Creates the file, full of zeros and synced.
    ///
    /// # Errors
    /// It exists, or the disk fails.
    pub fn create(disk: &dyn Disk, ring: u64) -> Result<Log> {
        let file = disk
            .create(FILE)
            .map_err(|e| StoreError::io("create", FILE, e))?;
        let zeros = vec![0; ring.min(1 << 20) as usize];
        let mut at = 0;
        while at < ring {
            let now = (ring - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..now as usize], at)
                .map_err(|e| StoreError::io("write", FILE, e))?;
            at += now;
        }
        file.sync_data()
            .map_err(|e| StoreError::io("sync", FILE, e))?;
        Ok(Log {
            file,
            ring,
            sync_failed: Mutex::new(false),
        })
    }

    /// Opens the file, which must have the ring's size.
    ///
    /// # Errors
    /// It does not, or the disk fails.
    pub fn open(disk: &dyn Disk, ring: u64) -> Result<Log> {
        let file = disk
            .open(FILE)
            .map_err(|e| StoreError::io("open", FILE, e))?;
        let size = file.size().map_err(|e| StoreError::io("read", FILE, e))?;
        if size != ring {
            let why = format!("it has {size} bytes where region.toml says {ring}");
            return Err(StoreError::corrupt(FILE, why));
        }
        Ok(Log {
            file,
            ring,
            sync_failed: Mutex::new(false),
        })
    }

    /// Bytes in the ring.
    pub fn ring(&self) -> u64 {
        self.ring
    }

    /// Makes everything written to it durable.
    ///
    /// # Errors
    /// The disk fails, or failed in an earlier sync.
    pub fn sync(&self) -> Result<()> {
        let mut failed = self
            .sync_failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *failed {
            let why = "an earlier sync of the log failed".to_owned();
            return Err(StoreError::Poisoned { why });
        }
        self.file.sync_data().map_err(|e| {
            *failed = true;
            StoreError::sync(FILE, e)
        })
    }

    /// Reads from byte position `pos`, around the ring's end if need be.
    ///
    /// # Errors
    /// The disk fails.
    pub fn read(&self, buf: &mut [u8], pos: u64) -> Result<()> {
        self.read_from(Source::Disk, buf, pos)
    }

    /// The same, from memory alone if so wanted.
    ///
    /// # Errors
    /// As [`DiskFile::read_from`].
    pub fn read_from(&self, from: Source, buf: &mut [u8], pos: u64) -> Result<()> {
        let at = pos % self.ring;
        let first = (buf.len() as u64).min(self.ring - at) as usize;
        let (head, rest) = buf.split_at_mut(first);
        let mut done = self.file.read_from(from, head, at);
        if done.is_ok() && !rest.is_empty() {
            done = self.file.read_from(from, rest, 0);
        }
        done.map_err(|e| StoreError::io("read", FILE, e))
    }

    /// Writes all parts from byte position `pos`, around the ring's end if need be.
    ///
    /// # Errors
    /// The disk fails; any part may have been written.
    pub fn write(&self, parts: &mut [IoSlice<'_>], pos: u64) -> Result<()> {
        let total: u64 = parts.iter().map(|p| p.len() as u64).sum();
        let at = pos % self.ring;
        let done = if at + total <= self.ring {
            self.file.write_at(parts, at)
        } else {
            self.write_around(parts, at)
        };
        done.map_err(|e| StoreError::io("write", FILE, e))
    }

    fn write_around(&self, parts: &[IoSlice<'_>], at: u64) -> std::io::Result<()> {
        let mut left = (self.ring - at) as usize;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for part in parts {
            let (a, b) = part.split_at(part.len().min(left));
            left -= a.len();
            before.push(IoSlice::new(a));
            if !b.is_empty() {
                after.push(IoSlice::new(b));
            }
        }
        self.file.write_at(&mut before, at)?;
        self.file.write_at(&mut after, 0)
    }
}
