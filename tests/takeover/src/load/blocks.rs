//! What a block holds, and what is known of a file: for each block, the newest number that was
//! sent, and the newest that was acknowledged as durable.

use std::sync::atomic::{AtomicU64, Ordering};

use trivet_bench::rng::Rng;
use trivet_nfs::client::nfs::Fh;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const MAGIC: u64 = 0x0074_656b_656f_7665;

/// The content of a block: who wrote it, which block, which number; the rest follows from those.
pub fn content(file: u64, block: u64, number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    for word in [MAGIC, file, block, number] {
        out.extend(word.to_be_bytes());
    }
    let mut rng = Rng::new(MAGIC ^ (file << 48) ^ (block << 32) ^ number);
    out.extend(rng.bytes(BLOCK - out.len()));
    out
}

/// The number that a block of this file holds; 0 for one that was never written.
///
/// # Errors
/// It holds something else; what.
pub fn number(file: u64, block: u64, data: &[u8]) -> Result<u64, String> {
    if data.iter().all(|b| *b == 0) {
        return Ok(0);
    }
    let word = |n: usize| -> u64 {
        let raw = data.get(n * 8..n * 8 + 8).and_then(|w| w.try_into().ok());
        raw.map_or(0, u64::from_be_bytes)
    };
    if (word(0), word(1), word(2)) != (MAGIC, file, block) {
        return Err(format!(
            "it begins with {:016x} {} {} {}",
            word(0),
            word(1),
            word(2),
            word(3)
        ));
    }
    match data == content(file, block, word(3)) {
        true => Ok(word(3)),
        false => Err(format!("the head of number {} with another body", word(3))),
    }
}

/// One file.
pub struct Ledger {
    /// Number of the file, in its blocks.
    pub file: u64,
    /// Its name.
    pub name: String,
    /// Its handle.
    pub fh: Fh,
    sent: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
}

impl Ledger {
    /// Nothing was written.
    pub fn new(file: u64, name: &str, fh: Fh, blocks: u64) -> Ledger {
        let zeros = || (0..blocks).map(|_| AtomicU64::new(0)).collect();
        Ledger {
            file,
            name: name.to_owned(),
            fh,
            sent: zeros(),
            acknowledged: zeros(),
        }
    }

    /// Its blocks.
    pub fn blocks(&self) -> u64 {
        self.sent.len() as u64
    }

    fn at(of: &[AtomicU64], block: u64) -> Option<&AtomicU64> {
        of.get(usize::try_from(block).ok()?)
    }

    /// A number is about to be sent; returns it.
    pub fn send(&self, block: u64) -> u64 {
        Self::at(&self.sent, block).map_or(0, |s| s.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// It was acknowledged as durable.
    pub fn acknowledge(&self, block: u64, number: u64) {
        if let Some(a) = Self::at(&self.acknowledged, block) {
            a.store(number, Ordering::Release);
        }
    }

    /// The newest number sent.
    pub fn sent(&self, block: u64) -> u64 {
        Self::at(&self.sent, block).map_or(0, |s| s.load(Ordering::Acquire))
    }

    /// The newest number acknowledged.
    pub fn acknowledged(&self, block: u64) -> u64 {
        Self::at(&self.acknowledged, block).map_or(0, |s| s.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_what_it_is_and_damage_is_seen() {
        let c = content(3, 7, 12);
        assert_eq!(c.len(), BLOCK);
        assert_eq!(number(3, 7, &c), Ok(12));
        assert!(number(3, 8, &c).is_err(), "another block's");
        assert!(number(2, 7, &c).is_err(), "another file's");
        let mut bad = c.clone();
        bad[4000] ^= 1;
        assert!(number(3, 7, &bad).is_err(), "torn");
        assert_eq!(number(3, 7, &[0; BLOCK]), Ok(0));
    }

    #[test]
    fn the_ledger_counts_from_one() {
        let l = Ledger::new(0, "a", vec![], 2);
        assert_eq!(l.send(1), 1);
        assert_eq!((l.sent(1), l.acknowledged(1)), (1, 0));
        l.acknowledge(1, 1);
        assert_eq!((l.acknowledged(1), l.acknowledged(0)), (1, 0));
    }
}
