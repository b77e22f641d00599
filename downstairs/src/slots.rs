//! A small state that changes durably and wholly: two slots, written alternately.
//!
//! Used for a region's head and for a witness. A write goes to the slot that does not hold the
//! newest state, so a crash in it leaves the state before. Each slot is kept in two copies at
//! different places, both written under one sync: one rotten sector can therefore not bring an
//! older state back to life (an older promise would break invariant 1). The file is written in
//! full at creation, so a sync commits no file system metadata.
//!
//! Opening rewrites the newest state in its own slot before anything else: after a failed sync of
//! an earlier process the page cache may show what the disk never got.
//!
//! ```text
//! file:  slot 0 copy 0 | slot 1 copy 0 | slot 0 copy 1 | slot 1 copy 1     (SLOT_BYTES each)
//! copy:  magic 8 | crc32c of all that follows u32 | body length u32 | counter u64 | zero [40] |
//!        body
//! ```

use std::io::IoSlice;
use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::{Disk, DiskFile};
use crate::error::{Result, StoreError};

/// Bytes of one copy of one slot.
pub const SLOT_BYTES: usize = 32 * 1024;
/// Bytes of state, at most.
pub const MAX_BODY: usize = SLOT_BYTES - HEAD;

const MAGIC: [u8; 8] = *b"TRVSLOT1";
const HEAD: usize = 64;
/// Bytes at the head's start that its checksum leaves out: the magic and the checksum itself.
const UNSUMMED: usize = 12;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SlotHead {
    magic: [u8; 8],
    crc: U32,
    len: U32,
    counter: U64,
    zero: [u8; 40],
}
const _: () = assert!(size_of::<SlotHead>() == HEAD);

/// See the module's head.
pub struct SlotFile {
    file: Arc<dyn DiskFile>,
    name: String,
    seed: u32,
    counter: u64,
    failed: Option<String>,
}

impl SlotFile {
    /// Creates the file with a first state, durably but for its name. `seed` goes into every
    /// checksum, so that a file of another owner does not verify.
    ///
    /// # Errors
    /// The file exists, the state is too large, or the disk fails.
    pub fn create(disk: &dyn Disk, name: &str, seed: u32, body: &[u8]) -> Result<SlotFile> {
        let file = disk
            .create(name)
            .map_err(|e| StoreError::io("create", name, e))?;
        file.write_all_at(&vec![0; 4 * SLOT_BYTES], 0)
            .map_err(|e| StoreError::io("write", name, e))?;
        let mut slots = SlotFile {
            file,
            name: name.to_owned(),
            seed,
            counter: 0,
            failed: None,
        };
        slots.write(body)?;
        Ok(slots)
    }

    /// Opens the file and returns the newest whole state with it.
    ///
    /// # Errors
    /// No slot holds a whole state, or the disk fails.
    pub fn open(disk: &dyn Disk, name: &str, seed: u32) -> Result<(SlotFile, Vec<u8>)> {
        let file = disk
            .open(name)
            .map_err(|e| StoreError::io("open", name, e))?;
        let mut best: Option<(u64, Vec<u8>)> = None;
        let mut failure = None;
        for place in 0..4u64 {
            let mut raw = vec![0; SLOT_BYTES];
            // An unreadable copy is what the other one is for.
            if let Err(e) = file.read_at(&mut raw, place * SLOT_BYTES as u64) {
                failure = Some(e);
                continue;
            }
            let Some((counter, body)) = parse(&raw, seed) else {
                continue;
            };
            if counter % 2 == place % 2 && best.as_ref().is_none_or(|b| counter > b.0) {
                best = Some((counter, body.to_vec()));
            }
        }
        let Some((counter, body)) = best else {
            return Err(match failure {
                Some(e) => StoreError::io("read", name, e),
                None => StoreError::corrupt(name, "neither slot holds a whole state"),
            });
        };
        let name = name.to_owned();
        let mut slots = SlotFile {
            file,
            name,
            seed,
            counter,
            failed: None,
        };
        slots.put(counter, &body)?;
        Ok((slots, body))
    }

    /// Reads the newest whole state and changes nothing, not even by repairing (for offline
    /// tools).
    ///
    /// # Errors
    /// As [`SlotFile::open`].
    pub fn peek(disk: &dyn Disk, name: &str, seed: u32) -> Result<Vec<u8>> {
        let file = disk
            .open(name)
            .map_err(|e| StoreError::io("open", name, e))?;
        let mut best: Option<(u64, Vec<u8>)> = None;
        let mut raw = vec![0; SLOT_BYTES];
        for place in 0..4u64 {
            if file.read_at(&mut raw, place * SLOT_BYTES as u64).is_err() {
                continue;
            }
            if let Some((counter, body)) = parse(&raw, seed)
                && counter % 2 == place % 2
                && best.as_ref().is_none_or(|b| counter > b.0)
            {
                best = Some((counter, body.to_vec()));
            }
        }
        best.map(|b| b.1)
            .ok_or_else(|| StoreError::corrupt(name, "neither slot holds a whole state"))
    }

    /// Replaces the state; durable when it returns. After an error nothing is known of which
    /// state a crash would leave, and every later write is refused.
    ///
    /// # Errors
    /// The state is too large, the disk fails, or failed before.
    pub fn write(&mut self, body: &[u8]) -> Result<()> {
        if body.len() > MAX_BODY {
            return Err(StoreError::corrupt(
                self.name.as_str(),
                format!("a state of {} bytes; {MAX_BODY} fit", body.len()),
            ));
        }
        self.put(self.counter + 1, body)
    }

    /// Why every later write is refused, if it is.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// A file system may first find at a sync that it is full; then, too, nothing is known.
    fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data().map_err(std::io::Error::other)
    }

    fn put(&mut self, counter: u64, body: &[u8]) -> Result<()> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Poisoned { why: why.clone() });
        }
        let mut head = SlotHead {
            magic: MAGIC,
            crc: U32::ZERO,
            len: U32::new(body.len() as u32),
            counter: U64::new(counter),
            zero: [0; 40],
        };
        let sum = crc32c::crc32c_append(self.seed, &head.as_bytes()[UNSUMMED..]);
        head.crc = U32::new(crc32c::crc32c_append(sum, body));
        let done = [0u64, 2].iter().try_for_each(|copy| {
            let at = (copy + counter % 2) * SLOT_BYTES as u64;
            let mut parts = [IoSlice::new(head.as_bytes()), IoSlice::new(body)];
            self.file.write_at(&mut parts, at)
        });
        match done.and_then(|()| self.sync()) {
            Ok(()) => {
                self.counter = counter;
                Ok(())
            }
            Err(e) => {
                let e = StoreError::io("write", self.name.as_str(), e);
                // Without space nothing was synced, and the next try writes the same slot again.
                if !matches!(e, StoreError::NoSpace { .. }) {
                    self.failed = Some(e.to_string());
                }
                Err(e)
            }
        }
    }
}

fn parse(raw: &[u8], seed: u32) -> Option<(u64, &[u8])> {
    let (head, rest) = SlotHead::ref_from_prefix(raw).ok()?;
    let body = rest.get(..head.len.get() as usize)?;
    let sum = crc32c::crc32c_append(seed, &head.as_bytes()[UNSUMMED..]);
    let whole = head.magic == MAGIC && crc32c::crc32c_append(sum, body) == head.crc.get();
    whole.then(|| (head.counter.get(), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    #[test]
    fn one_rotten_copy_brings_no_older_state_back() {
        let disk = SimDisk::new();
        let mut s = SlotFile::create(&disk.dir(), "head", 7, b"one").unwrap();
        s.write(b"two").unwrap();
        s.write(b"three").unwrap();
        for byte in 0..4 * SLOT_BYTES as u64 {
            // Every interesting byte: heads and bodies of all four copies.
            if byte % SLOT_BYTES as u64 > 80 {
                continue;
            }
            disk.flip("head", byte, 0x10);
            assert_eq!(SlotFile::peek(&disk.dir(), "head", 7).unwrap(), b"three");
            disk.flip("head", byte, 0x10);
        }
        assert!(
            SlotFile::peek(&disk.dir(), "head", 8).is_err(),
            "another owner's"
        );
    }

    #[test]
    fn a_crash_in_a_write_leaves_the_old_or_the_new_state() {
        for seed in 0..300 {
            let disk = SimDisk::new();
            let mut s = SlotFile::create(&disk.dir(), "head", 7, &[1; 3000]).unwrap();
            disk.dir().sync_dir("").unwrap();
            s.write(&[2; 3000]).unwrap();
            disk.power_off_after(1 + seed % 3);
            let _ = s.write(&[3; 3000]);
            disk.crash(seed);
            let (_, body) = SlotFile::open(&disk.dir(), "head", 7).unwrap();
            assert!(body == [2; 3000] || body == [3; 3000], "seed {seed}");
        }
    }

    #[test]
    fn what_a_failed_sync_showed_is_written_again() {
        let disk = SimDisk::new();
        let mut s = SlotFile::create(&disk.dir(), "head", 7, b"one").unwrap();
        disk.dir().sync_dir("").unwrap();
        disk.fail_next("sync", "head");
        assert!(s.write(b"two").is_err());
        assert!(s.write(b"two").is_err(), "a failed file stays failed");
        let (_, seen) = SlotFile::open(&disk.dir(), "head", 7).unwrap();
        disk.crash(1);
        let (_, after) = SlotFile::open(&disk.dir(), "head", 7).unwrap();
        assert_eq!(seen, after, "what was seen is what stays");
    }
}
