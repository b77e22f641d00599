//! File handles: what clients hold, for years, and must always be understood.
//!
//! Layout, 32 bytes: version (1), three zero bytes, the export's number (4), the inode's number
//! (8), its generation (8), a seal (8). Integers big-endian.
//!
//! Invariants:
//! - A handle depends on the export's name, the file system and the object alone: it is the same
//!   on every node, after every restart, rename and reload (invariant 9). The write verifier is
//!   no part of it.
//! - The seal is a keyed hash over the rest, with a key made of the file system's identity, which
//!   never travels. So a handle of another volume, and one made up by a client to leave its
//!   export's directory, is not accepted.

use trivet_fs::{Ino, InodeId};

/// Bytes of a handle; RFC 1813 allows 64.
pub const HANDLE_BYTES: usize = 32;
const VERSION: u8 = 1;

/// What a handle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Number of the export through which it was got.
    pub export: u32,
    /// The object.
    pub id: InodeId,
}

/// Why a handle is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleError {
    /// Not one that this server ever made: NFS3ERR_BADHANDLE.
    Malformed,
    /// Of another volume, or forged: NFS3ERR_STALE.
    Foreign,
}

/// Makes and checks handles of one file system.
#[derive(Clone)]
pub struct HandleKey([u8; 32]);

impl HandleKey {
    /// For the file system with this identity.
    pub fn new(fsid: u128) -> HandleKey {
        HandleKey(blake3::derive_key(
            "trivet 2026 nfs handle seal",
            &fsid.to_be_bytes(),
        ))
    }

    /// The handle of an object.
    pub fn seal(&self, h: Handle) -> [u8; HANDLE_BYTES] {
        let mut out = [0; HANDLE_BYTES];
        out[0] = VERSION;
        out[4..8].copy_from_slice(&h.export.to_be_bytes());
        out[8..16].copy_from_slice(&h.id.ino.0.to_be_bytes());
        out[16..24].copy_from_slice(&h.id.generation.to_be_bytes());
        let hash = blake3::keyed_hash(&self.0, &out[..24]);
        out[24..].copy_from_slice(&hash.as_bytes()[..8]);
        out
    }

    /// What a handle names.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn open(&self, bytes: &[u8]) -> Result<Handle, HandleError> {
        let b: &[u8; HANDLE_BYTES] = bytes.try_into().map_err(|_| HandleError::Malformed)?;
        if b[..4] != [VERSION, 0, 0, 0] {
            return Err(HandleError::Malformed);
        }
        let hash = blake3::keyed_hash(&self.0, &b[..24]);
        if hash.as_bytes()[..8] != b[24..] {
            return Err(HandleError::Foreign);
        }
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&b[at..at + 8]);
            u64::from_be_bytes(w)
        };
        Ok(Handle {
            export: (word(0) & 0xffff_ffff) as u32,
            id: InodeId {
                ino: Ino(word(8)),
                generation: word(16),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: Handle = Handle {
        export: 0xdead_beef,
        id: InodeId {
            ino: Ino(77),
            generation: 1 << 60,
        },
    };

    #[test]
    fn a_handle_names_what_it_was_made_for() {
        let key = HandleKey::new(5);
        assert_eq!(key.open(&key.seal(H)), Ok(H));
    }

    /// Handles live in clients across upgrades: these bytes must never change.
    #[test]
    fn the_layout_is_the_one_that_clients_hold() {
        let b = HandleKey::new(5).seal(H);
        assert_eq!(b[..8], [1, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(b[8..24], [0, 0, 0, 0, 0, 0, 0, 77, 16, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn handles_of_other_volumes_and_changed_ones_are_refused() {
        let key = HandleKey::new(5);
        let good = key.seal(H);
        assert_eq!(HandleKey::new(6).open(&good), Err(HandleError::Foreign));
        for at in 0..HANDLE_BYTES {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(key.open(&bad).is_err(), "byte {at}");
        }
        assert_eq!(key.open(&good[..31]), Err(HandleError::Malformed));
        assert_eq!(key.open(&[]), Err(HandleError::Malformed));
    }
}
