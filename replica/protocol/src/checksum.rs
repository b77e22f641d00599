//! The end-to-end checksum of a block (invariant 7).

use serde::{Deserialize, Serialize};

use crate::ids::{BLOCK_BYTES, Block, VolumeId};

/// First 16 bytes of the BLAKE3 keyed hash of a block's content, keyed with the volume's id and
/// the block's number, so that a block which lands in another place or another volume does not
/// verify. Computed once, in the upstairs, and checked there on each read.
///
/// All zeros is not a checksum: it stands for "unwritten" wherever checksums are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Checksum(pub [u8; 16]);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Checksum {
    /// Bytes that one checksum takes, on disk and on the wire.
    pub const BYTES: usize = 16;
    /// Stands for a block that was never written, or was discarded.
    pub const UNWRITTEN: Checksum = Checksum([0; 16]);

    /// The checksum of `content`, which must be one block long, at `block` of `volume`.
    pub fn of(volume: VolumeId, block: Block, content: &[u8]) -> Checksum {
        debug_assert_eq!(content.len(), BLOCK_BYTES);
        // Volume and place go into the key: the input stays four whole BLAKE3 chunks, which is
        // the size that its vector code likes.
        let mut key = [0u8; 32];
        key[..16].copy_from_slice(&volume.bytes());
        key[16..24].copy_from_slice(&block.0.to_le_bytes());
        let hash = blake3::keyed_hash(&key, content);
        let mut sum = [0u8; 16];
        sum.copy_from_slice(&hash.as_bytes()[..16]);
        if sum == [0; 16] {
            sum[0] = 1;
        }
        Checksum(sum)
    }

    /// Whether this is the mark of an unwritten block.
    pub fn is_unwritten(&self) -> bool {
        *self == Self::UNWRITTEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_and_volume_are_part_of_the_sum() {
        let (v, w) = (VolumeId::from_bytes([1; 16]), VolumeId::from_bytes([2; 16]));
        let data = vec![7u8; BLOCK_BYTES];
        let sum = Checksum::of(v, Block(3), &data);
        assert_ne!(sum, Checksum::of(v, Block(4), &data));
        assert_ne!(sum, Checksum::of(w, Block(3), &data));
        assert_eq!(sum, Checksum::of(v, Block(3), &data));
    }
}
