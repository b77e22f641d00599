//! The recent part of the volume's one history (invariant 4), kept in memory until every replica
//! in sync has it, so that a connection blip is caught up without touching a disk.
//!
//! Bounded in bytes by [`super::Limits::retain_bytes`]; the owner makes producers wait.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::{Batch, Entry, Generation, GenerationTable, Op, Seq, VolumeId};

/// A batch made ready outside of any lock: checksums, description and frame CRC are computed,
/// only its place is missing. The payload is shared with the caller's buffers.
#[derive(Debug)]
pub struct Prepared {
    entry: Entry,
    meta: Bytes,
    crc: u32,
}

impl Prepared {
    /// Computes everything that does not depend on the place in the history.
    pub fn new(volume: VolumeId, batch: Batch) -> Prepared {
        Prepared::of(Entry::unplaced(volume, batch))
    }

    /// Its operations, in order.
    pub(super) fn ops(&self) -> &[trivet_protocol::Op] {
        &self.entry.ops
    }

    fn of(entry: Entry) -> Prepared {
        let meta = entry.encode_meta();
        let crc = entry.data.iter().fold(crc32c::crc32c(&meta), |crc, part| {
            crc32c::crc32c_append(crc, part)
        });
        Prepared { entry, meta, crc }
    }

    /// Bytes of payload.
    pub fn data_len(&self) -> usize {
        self.entry.data_len()
    }

    /// Whether it discards more than it writes.
    pub fn frees(&self) -> bool {
        let (mut discarded, mut written) = (0u64, 0u64);
        for op in &self.entry.ops {
            match op {
                Op::Write { count, .. } => written += u64::from(*count),
                Op::Discard { count, .. } => discarded = discarded.saturating_add(*count),
            }
        }
        discarded > written
    }

    /// What it costs to keep.
    pub fn cost(&self) -> u64 {
        (self.entry.data_len() + self.meta.len() + 256) as u64
    }

    /// Whether it touches any block of `[first, first + count)`.
    pub fn touches(&self, first: u64, count: u64) -> bool {
        self.entry.ops.iter().any(|op| {
            let (b, n) = match *op {
                Op::Write { block, count } => (block.0, u64::from(count)),
                Op::Discard { block, count } => (block.0, count),
            };
            b < first.saturating_add(count) && first < b.saturating_add(n)
        })
    }
}

/// One entry with its place.
#[derive(Clone, Debug)]
struct Held {
    generation: u64,
    batch: Arc<Prepared>,
    /// Cost of everything ever held, up to and including this entry.
    total: u64,
}

/// A frame and the CRC of its body, where that is known already.
#[derive(Clone, Debug)]
pub struct OutFrame {
    /// The frame.
    pub frame: Frame,
    /// [`Frame::body_crc`], if it was computed before.
    pub crc: Option<u32>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct History {
    held: VecDeque<Held>,
    /// Place of `held[0]`; the next place when nothing is held.
    first: Seq,
    table: GenerationTable,
    /// Cost of everything ever held, and of everything let go.
    total: u64,
    gone: u64,
}

impl History {
    /// A history that ends where `table` says, with nothing held in memory after `held_from`.
    pub fn adopt(table: GenerationTable, held_from: Seq) -> History {
        History {
            first: held_from.next(),
            table,
            ..History::default()
        }
    }

    /// Where each generation ended.
    pub fn table(&self) -> &GenerationTable {
        &self.table
    }

    /// The newest place.
    pub fn last(&self) -> Seq {
        self.table.end().seq
    }

    /// The newest place that is held or directly precedes what is held: a replica that ends at
    /// or after it can be caught up from memory.
    pub fn floor(&self) -> Seq {
        Seq(self.first.0.saturating_sub(1))
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.total - self.gone
    }

    /// End of what is held, while an adopted history is being fetched.
    pub fn held_to(&self) -> Seq {
        Seq(self.first.0 + self.held.len() as u64 - 1)
    }

    /// Orders a new batch, in generation `generation`.
    pub fn push(&mut self, generation: u64, batch: Arc<Prepared>) -> Seq {
        let seq = self.last().next();
        let extended = self.table.extend(generation, seq);
        debug_assert!(extended, "an upstairs orders in one generation only");
        self.hold(generation, batch);
        seq
    }

    /// Takes an entry fetched from a peer's log into memory. False if it is not the next one or
    /// not of the generation that the adopted table says.
    pub fn fetched(&mut self, entry: Entry) -> bool {
        let next = self.held_to().next();
        if entry.seq != next || self.table.generation_of(next) != Some(entry.generation) {
            return false;
        }
        let generation = entry.generation;
        self.hold(generation, Arc::new(Prepared::of(entry)));
        true
    }

    fn hold(&mut self, generation: u64, batch: Arc<Prepared>) {
        self.total += batch.cost();
        self.held.push_back(Held {
            generation,
            batch,
            total: self.total,
        });
    }

    fn at(&self, seq: Seq) -> Option<&Held> {
        let index = seq.0.checked_sub(self.first.0)?;
        self.held.get(usize::try_from(index).ok()?)
    }

    /// The `Append` frame of the entry at `seq`, if it is held.
    pub fn append_frame(&self, seq: Seq, sender: Generation) -> Option<OutFrame> {
        let held = self.at(seq)?;
        let mut header = Header::new(Kind::Append, sender, seq.0);
        header.aux = held.generation;
        let (meta, data) = (held.batch.meta.clone(), held.batch.entry.data.clone());
        Some(OutFrame {
            frame: Frame { header, meta, data },
            crc: Some(held.batch.crc),
        })
    }

    /// Whether an entry after `since` touches the range; true also if that is no longer known.
    pub fn touched_since(&self, since: Seq, first: u64, count: u64) -> bool {
        if since < self.floor() {
            return true;
        }
        let skip = usize::try_from(since.0 - self.floor().0).unwrap_or(usize::MAX);
        self.held
            .iter()
            .skip(skip)
            .any(|h| h.batch.touches(first, count))
    }

    /// Lets go of entries up to `seq`.
    pub fn release(&mut self, seq: Seq) {
        while self.first <= seq {
            match self.held.pop_front() {
                Some(h) => {
                    self.gone = h.total;
                    self.first = self.first.next();
                }
                None => break,
            }
        }
    }

    /// Cost of what is held after `seq`.
    pub fn bytes_after(&self, seq: Seq) -> u64 {
        self.total - self.at(seq).map_or(self.gone, |h| h.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_protocol::{BLOCK_BYTES, Block};

    fn batch(block: u64) -> Arc<Prepared> {
        let data = Bytes::from(vec![1; BLOCK_BYTES]);
        Arc::new(Prepared::new(
            VolumeId::from_bytes([0; 16]),
            Batch::write(Block(block), data),
        ))
    }

    #[test]
    fn holds_releases_and_knows_what_was_touched() {
        let mut h = History::adopt(GenerationTable::default(), Seq(0));
        for i in 0..5 {
            assert_eq!(h.push(1, batch(i)), Seq(i + 1));
        }
        assert!(h.touched_since(Seq(2), 4, 1));
        assert!(!h.touched_since(Seq(5), 4, 1));
        assert!(!h.touched_since(Seq(2), 0, 2));
        h.release(Seq(3));
        assert_eq!((h.floor(), h.last()), (Seq(3), Seq(5)));
        assert!(h.touched_since(Seq(2), 100, 1), "no longer known");
        assert!(h.append_frame(Seq(3), Generation::NONE).is_none());
        assert_eq!(
            h.append_frame(Seq(4), Generation::NONE)
                .unwrap()
                .frame
                .header
                .seq,
            4
        );
        assert_eq!(h.bytes_after(Seq(4)) * 2, h.bytes());
    }
}
