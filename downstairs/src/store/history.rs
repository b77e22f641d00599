//! The history in the log: reading it back for slower peers, and cutting off what lost.

use bytes::{Bytes, BytesMut};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, Entry, Seq};

use super::Store;
use crate::error::{Result, StoreError};
use crate::log;
use crate::log::record::{HEADER, Header, Kind, Logged, What};

impl Store {
    /// Entries from `from` on, for a peer that lacks them: at least one, further ones while their
    /// data stays within `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError::NotInLog`] if the log no longer holds `from`, or holds it without its data
    /// (written in place and overwritten since): the peer needs a resync.
    pub fn entries_from(&self, from: Seq, max_bytes: usize) -> Result<Vec<Entry>> {
        if from <= self.tail_seq || from > self.end().seq {
            return Err(StoreError::NotInLog(from));
        }
        let start = self.records.partition_point(|r| r.position.seq < from);
        let (mut out, mut bytes) = (Vec::new(), 0);
        let entries = self.records.iter().skip(start);
        for record in entries.filter(|r| r.kind == Kind::Entry) {
            if !out.is_empty() && bytes + record.len as usize > max_bytes {
                break;
            }
            match self.entry_of(record) {
                Ok(entry) => {
                    bytes += entry.data_len() + entry.meta_len();
                    out.push(entry);
                    if bytes >= max_bytes {
                        break;
                    }
                }
                // What came before it is still worth sending.
                Err(StoreError::NotInLog(_)) if !out.is_empty() => break,
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    fn entry_of(&self, record: &Logged) -> Result<Entry> {
        let mut raw = BytesMut::zeroed(record.len as usize);
        self.shared.log.read(&mut raw, record.pos)?;
        let raw = raw.freeze();
        let damaged = || {
            let why = format!("operation {} no longer verifies", record.position.seq);
            StoreError::corrupt(log::FILE, why)
        };
        let h = Header::decode(&raw, self.shared.seed, record.pos).ok_or_else(damaged)?;
        let (meta_end, len) = (
            HEADER + h.meta_len as usize,
            h.meta_len as usize + h.data_len as usize,
        );
        let body = raw.get(HEADER..HEADER + len).ok_or_else(damaged)?;
        if crc32c::crc32c(body) != h.body_crc {
            return Err(damaged());
        }
        let meta = &raw[HEADER..meta_end];
        let (ops, sums) = Entry::decode_meta(meta, self.blocks).map_err(|_| damaged())?;
        let (mut data, mut at) = (Vec::new(), meta_end);
        for placed in record.ops.as_slice() {
            let bytes = placed.count as usize * BLOCK_BYTES;
            match placed.what {
                What::Log { .. } => {
                    data.push(raw.slice(at..at + bytes));
                    at += bytes;
                }
                What::Direct { .. } => data.push(self.in_place_data(placed.block, placed.count)?),
                What::Discarded => {}
            }
        }
        let entry = Entry {
            seq: h.seq,
            generation: h.generation,
            ops,
            sums,
            data,
        };
        if record.has_direct() && !self.data_verifies(&entry) {
            return Err(StoreError::NotInLog(entry.seq));
        }
        Ok(entry)
    }

    fn in_place_data(&self, block: u64, count: u64) -> Result<Bytes> {
        let extents = &self.shared.extents;
        let mut data = BytesMut::zeroed(count as usize * BLOCK_BYTES);
        extents.split(block, count, |no, first, n, done| {
            let Some(file) = extents.get(no)? else {
                return Ok(());
            };
            let at = done as usize * BLOCK_BYTES;
            extents.read_data(&file, first, &mut data[at..at + n as usize * BLOCK_BYTES])
        })?;
        Ok(data.freeze())
    }

    fn data_verifies(&self, entry: &Entry) -> bool {
        let volume = self.region().volume;
        let blocks = entry.ops.iter().flat_map(|op| match *op {
            trivet_protocol::Op::Write { block, count } => block.0..block.0 + u64::from(count),
            trivet_protocol::Op::Discard { .. } => 0..0,
        });
        let contents = entry.data.iter().flat_map(|s| s.chunks_exact(BLOCK_BYTES));
        blocks
            .zip(contents)
            .zip(&entry.sums)
            .all(|((block, content), sum)| Checksum::of(volume, Block(block), content) == *sum)
    }

    /// Forgets every operation after `to`: they are of a history that lost. Durable when it
    /// returns; everything up to `to` then is, too.
    ///
    /// # Errors
    /// [`StoreError::CutTooFar`] if some of it is known to be committed, is in the extent files
    /// already, or in the part that a running checkpoint moves; or the disk fails.
    pub fn cut(&mut self, to: Seq) -> Result<()> {
        self.usable()?;
        let moved = self.checkpoint.map_or(self.checkpointed.seq, |c| c.upto);
        let moved = moved.max(self.commit);
        if to < moved {
            return Err(StoreError::CutTooFar {
                to,
                checkpointed: moved,
            });
        }
        if to >= self.end().seq {
            return Ok(());
        }
        // What stays must be durable before the head calls the new end the start of an epoch.
        self.sync()?;
        let keep = self.records.partition_point(|r| r.position.seq <= to);
        let end = self.records.get(keep).map_or(self.end, |r| r.pos);
        let mut table = self.table.clone();
        table.cut(to);
        let commit = self.commit.min(to);
        let copies_lost = to < self.shared.head().state().whole_from;
        self.update_head(|h| {
            if copies_lost {
                h.mixed = Some(None);
            }
            h.epoch += 1;
            h.epoch_start = end;
            h.synced_to = end;
            h.commit = commit;
        })?;
        let dropped: Vec<Logged> = self.records.drain(keep..).collect();
        self.epoch = self.shared.head().state().epoch;
        (self.end, self.table, self.commit) = (end, table, commit);
        (self.synced_to, self.durable) = (end, to);
        self.rounds += 1;
        self.rebuild_overlay();
        self.write_end_mark().map_err(|e| self.poisoned_by(e))?;
        self.give_back(&dropped);
        self.sync().map(|_| ())
    }

    fn rebuild_overlay(&mut self) {
        self.overlay = crate::overlay::Overlay::default();
        let from = self.checkpointed_to;
        for record in self.records.iter().filter(|r| r.pos >= from) {
            for op in record.ops.as_slice() {
                self.overlay.put(op, record);
            }
        }
    }

    /// Punches what cut operations had written in place. Only space is at stake: the blocks are
    /// unwritten again, so a failure costs nothing but that.
    fn give_back(&self, dropped: &[Logged]) {
        let extents = &self.shared.extents;
        for op in dropped.iter().flat_map(|r| r.ops.as_slice()) {
            if !matches!(op.what, What::Direct { .. }) {
                continue;
            }
            let done = extents.split(op.block, op.count, |no, first, n, _| {
                let Some(file) = extents.get(no)? else {
                    return Ok(());
                };
                extents.punch(&file, first, n)
            });
            if done.is_err() {
                self.shared
                    .recorder
                    .count("downstairs.store.not_given_back", 1);
            }
        }
    }
}
