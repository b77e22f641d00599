//! The one door to a disk: a directory of files, behind two small traits, so that the code that
//! ships also runs in the simulator.
//!
//! What callers may rely on, and nothing more (plain POSIX): what was written and then covered by
//! a successful [`DiskFile::sync_data`] survives a power cut; a name survives once the directory
//! holding it was synced after its creation; of unsynced writes each aligned 512-byte sector holds
//! after a power cut the old or one of the new contents. After a failed sync nothing is known
//! about what was not synced before, and asking again proves nothing.

use std::io::{self, IoSlice};
use std::sync::Arc;

mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use real::RealDisk;

/// Bytes that reach a disk wholly or not at all.
pub const SECTOR: u64 = 512;

/// Room on the file system that holds a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Writing over something takes new space, too.
    pub copies_on_write: bool,
}

/// A directory of files; one region or one witness lives in each. Names are relative, with at
/// most one `/`.
pub trait Disk: Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// As the operating system says; `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file; its name is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `AlreadyExists`, or as the operating system says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the operating system says.
    fn create_dir(&self, name: &str) -> io::Result<()>;

    /// Names in `dir` (`""`: the directory itself), sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file, replacing the target.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes the names in `dir` (`""`: the directory itself) durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Room left.
    ///
    /// # Errors
    /// As the operating system says.
    fn space(&self) -> io::Result<Space>;
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// As long as it takes.
    Disk,
    /// Not at all: what is not in memory is [`io::ErrorKind::WouldBlock`].
    Memory,
}

/// An open file. All methods may be called from several threads at once.
pub trait DiskFile: Send + Sync {
    /// Fills `buf` from byte `at`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; else as the operating system says.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// The same of what is in memory, without waiting for the disk.
    ///
    /// # Errors
    /// `WouldBlock` if some of it is not, or that cannot be told; `buf` is then unspecified. Else
    /// as [`DiskFile::read_at`].
    fn read_in_memory(&self, _buf: &mut [u8], _at: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Fills `buf` from byte `at`.
    ///
    /// # Errors
    /// As [`DiskFile::read_at`] or [`DiskFile::read_in_memory`].
    fn read_from(&self, from: Source, buf: &mut [u8], at: u64) -> io::Result<()> {
        match from {
            Source::Disk => self.read_at(buf, at),
            Source::Memory => self.read_in_memory(buf, at),
        }
    }

    /// Writes all parts, one after the other, from byte `at`. The slices are used up.
    ///
    /// # Errors
    /// As the operating system says; any part may have been written.
    fn write_at(&self, parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// As the operating system says. What was not synced before may be lost for good.
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Sets the length; new bytes are zeros and take no space.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_size(&self, bytes: u64) -> io::Result<()>;

    /// Makes a range read as zeros and gives its whole blocks back to the file system. The
    /// length stays.
    ///
    /// # Errors
    /// As the operating system says.
    fn punch_hole(&self, at: u64, bytes: u64) -> io::Result<()>;

    /// Makes the file `bytes` long, with room on the disk for all of it.
    ///
    /// # Errors
    /// `Unsupported` where files cannot be allocated ahead; else as the operating system says.
    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes that the file takes on the disk.
    ///
    /// # Errors
    /// As the operating system says.
    fn allocated(&self) -> io::Result<u64>;

    /// Lets the system forget what it has in memory of a range, as far as it wants to, so that the
    /// next read comes from the disk. Nothing that was written is lost by it.
    fn forget_cached(&self, _at: u64, _bytes: u64) {}

    /// Writes one buffer.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_all_at(&self, buf: &[u8], at: u64) -> io::Result<()> {
        self.write_at(&mut [IoSlice::new(buf)], at)
    }
}
