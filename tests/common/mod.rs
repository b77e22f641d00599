//! A volume's history that can be checked: every write is numbered, and its place and content
//! follow from the seed and its number. So after a crash the content must be that of the first P
//! writes for one P (invariant 4), and P must not be less than what was flushed (invariant 3).

use bytes::Bytes;
use trivet_replica::Volume;
use trivet_replica::volume::{BLOCK_BYTES, Batch, Block};

/// Writes of a seed, over `blocks` blocks.
#[derive(Clone, Copy, Debug)]
pub struct History {
    pub seed: u64,
    pub blocks: u64,
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl History {
    /// First block and number of blocks of write `n` (from 1).
    pub fn place(&self, n: u64) -> (u64, u64) {
        let r = mix(self.seed ^ mix(n));
        let count = match r % 16 {
            0 => 64,
            1..=3 => 8,
            _ => 1,
        };
        (mix(r) % (self.blocks - count), count)
    }

    fn content(&self, n: u64, block: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.extend_from_slice(&n.to_le_bytes());
        out.extend_from_slice(&block.to_le_bytes());
        let mut x = mix(self.seed ^ n ^ mix(block));
        while out.len() < BLOCK_BYTES {
            out.extend_from_slice(&x.to_le_bytes());
            x = x.rotate_left(7).wrapping_mul(0x2545_f491_4f6c_dd1d) ^ n;
        }
        out
    }

    /// Write `n`, ready to submit.
    pub fn batch(&self, n: u64) -> Batch {
        let (first, count) = self.place(n);
        let data: Vec<u8> = (first..first + count)
            .flat_map(|b| self.content(n, b))
            .collect();
        Batch::write(Block(first), Bytes::from(data))
    }

    /// Checks content as `read` gives it, 64 blocks at a time; returns P.
    ///
    /// Panics, naming seed, block and writes, if it is not the result of a prefix of the history
    /// that includes the first `flushed` writes.
    pub fn check(&self, flushed: u64, mut read: impl FnMut(u64, &mut [u8])) -> u64 {
        let seed = self.seed;
        let mut found = vec![0u64; self.blocks as usize];
        let mut buf = vec![0; 64 * BLOCK_BYTES];
        for first in (0..self.blocks).step_by(64) {
            let count = 64.min(self.blocks - first) as usize;
            let part = &mut buf[..count * BLOCK_BYTES];
            read(first, part);
            for (i, content) in part.chunks_exact(BLOCK_BYTES).enumerate() {
                let block = first + i as u64;
                let n = u64::from_le_bytes(content[..8].try_into().unwrap());
                let expected = match n {
                    0 => vec![0; BLOCK_BYTES],
                    n => self.content(n, block),
                };
                assert!(
                    content == expected,
                    "seed {seed}: block {block} is not what write {n} left"
                );
                found[block as usize] = n;
            }
        }
        let last = found.iter().copied().max().unwrap_or(0);
        assert!(
            last >= flushed,
            "seed {seed}: write {flushed} was flushed, but the newest found is {last}"
        );
        let mut expected = vec![0u64; self.blocks as usize];
        for n in 1..=last {
            let (first, count) = self.place(n);
            expected[first as usize..(first + count) as usize].fill(n);
        }
        for (block, (have, want)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                have, want,
                "seed {seed}: block {block}: content of write {have}, but of the first {last} \
                 writes {want} was the last one there"
            );
        }
        last
    }

    /// [`History::check`] of a volume.
    pub fn check_volume(&self, flushed: u64, volume: &dyn Volume) -> u64 {
        self.check(flushed, |first, out| {
            volume.read(Block(first), out).unwrap();
        })
    }
}

/// A seed, from TRIVET_SEED or random, printed.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let seed = match std::env::var("TRIVET_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => std::hash::RandomState::new().build_hasher().finish(),
    };
    println!("seed {seed}; replay with TRIVET_SEED={seed}");
    seed
}
