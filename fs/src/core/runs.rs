//! Two small maps of block runs, as a transaction keeps them.

use std::collections::BTreeMap;

use bytes::Bytes;
use trivet_replica::volume::BLOCK_BYTES;

/// Disjoint half-open runs of blocks.
#[derive(Clone, Debug, Default)]
pub struct RunSet(BTreeMap<u64, u64>);

impl RunSet {
    /// Adds a run that overlaps none, joining neighbours.
    pub fn add(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        if let Some((&s, &e)) = self.0.range(..start).next_back()
            && e == start
        {
            self.0.remove(&s);
            start = s;
        }
        if let Some(&e) = self.0.get(&end) {
            self.0.remove(&end);
            end = e;
        }
        self.0.insert(start, end);
    }

    /// Takes out a run that is wholly in.
    pub fn remove(&mut self, start: u64, end: u64) {
        if let Some((&s, &e)) = self.0.range(..=start).next_back() {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, start);
            }
            if end < e {
                self.0.insert(end, e);
            }
        }
    }

    /// Adds a run of which parts may be in already.
    pub fn unite(&mut self, start: u64, end: u64) {
        self.cut(start, end);
        self.add(start, end);
    }

    /// Takes out whatever of a run is in.
    pub fn cut(&mut self, start: u64, end: u64) {
        while let Some((s, e)) = self.overlapping(start, end) {
            self.remove(s.max(start), e.min(end));
        }
    }

    /// The first run that overlaps `start..end`.
    pub fn overlapping(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        self.0
            .range(..end)
            .next_back()
            .map(|(s, e)| (*s, *e))
            .filter(|r| r.1 > start)
            .map(|last| {
                // There may be an earlier one in the range: the first is what callers want.
                let before = self.0.range(..=start).next_back();
                match before {
                    Some((&s, &e)) if e > start => (s, e),
                    _ => self
                        .0
                        .range(start..end)
                        .next()
                        .map_or(last, |(s, e)| (*s, *e)),
                }
            })
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All runs.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(s, e)| (*s, *e))
    }
}

/// Contents of disjoint runs of blocks.
#[derive(Clone, Debug, Default)]
pub struct DataRuns {
    runs: BTreeMap<u64, Bytes>,
    blocks: usize,
}

fn blocks_of(b: &Bytes) -> u64 {
    (b.len() / BLOCK_BYTES) as u64
}

impl DataRuns {
    /// Blocks of a content.
    pub fn blocks_of(data: &Bytes) -> u64 {
        blocks_of(data)
    }

    /// Takes out what lies in `start..end`; runs that reach beyond are cut (by reference).
    pub fn carve(&mut self, start: u64, end: u64) -> Vec<(u64, Bytes)> {
        let mut out = Vec::new();
        while let Some((&s, data)) = self.runs.range(..end).next_back() {
            let e = s + blocks_of(data);
            if e <= start {
                break;
            }
            let data = data.clone();
            self.runs.remove(&s);
            let cut = |a: u64, b: u64| {
                data.slice((a - s) as usize * BLOCK_BYTES..(b - s) as usize * BLOCK_BYTES)
            };
            if s < start {
                self.runs.insert(s, cut(s, start));
            }
            if end < e {
                self.runs.insert(end, cut(end, e));
            }
            let (a, b) = (s.max(start), e.min(end));
            self.blocks -= (b - a) as usize;
            out.push((a, cut(a, b)));
        }
        out
    }

    /// Puts a run where there is none.
    pub fn put(&mut self, start: u64, data: Bytes) {
        self.blocks += blocks_of(&data) as usize;
        self.runs.insert(start, data);
    }

    /// The content of the longest run of known blocks that begins at `block`, at most `max`
    /// blocks; or how many blocks from `block` on are not known (at most `max`).
    pub fn piece(&self, block: u64, max: u64) -> Result<Bytes, u64> {
        if let Some((&s, data)) = self.runs.range(..=block).next_back() {
            let e = s + blocks_of(data);
            if block < e {
                let to = e.min(block + max);
                let range = (block - s) as usize * BLOCK_BYTES..(to - s) as usize * BLOCK_BYTES;
                return Ok(data.slice(range));
            }
        }
        let next = self.runs.range(block..).next().map_or(u64::MAX, |r| *r.0);
        Err((next - block).min(max))
    }

    /// Blocks in it.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// All runs.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.runs.iter().map(|(s, d)| (*s, d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, seeds};

    /// Given random puts and carves, both maps equal plain arrays.
    #[test]
    fn equal_plain_arrays() {
        for seed in 1..=seeds(10) {
            let mut rng = Rng::new(seed);
            let (mut runs, mut set) = (DataRuns::default(), RunSet::default());
            let (mut model, mut marks) = ([0u8; 64], [false; 64]);
            for _ in 0..400 {
                let a = rng.below(60);
                let b = a + 1 + rng.below(64 - a - 1).min(9);
                let fill = 1 + rng.below(250) as u8;
                runs.carve(a, b);
                model[a as usize..b as usize].fill(0);
                if rng.below(3) > 0 {
                    runs.put(a, Bytes::from(vec![fill; (b - a) as usize * BLOCK_BYTES]));
                    model[a as usize..b as usize].fill(fill);
                }
                if marks[a as usize..b as usize].iter().all(|m| !m) {
                    set.add(a, b);
                    marks[a as usize..b as usize].fill(true);
                } else if marks[a as usize..b as usize].iter().all(|m| *m) {
                    set.remove(a, b);
                    marks[a as usize..b as usize].fill(false);
                }
                let first = (a..b).find(|i| marks[*i as usize]);
                let got = set.overlapping(a, b).map(|r| r.0.max(a));
                assert_eq!(got, first, "seed {seed}");
                for i in 0..64u64 {
                    let got = runs.piece(i, 1).map_or(0, |d| d[0]);
                    assert_eq!(got, model[i as usize], "seed {seed} block {i}");
                }
                assert_eq!(runs.blocks(), model.iter().filter(|m| **m > 0).count());
            }
        }
    }
}
