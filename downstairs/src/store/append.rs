//! Appending to the log: one gathered write per record, or per batch of records that arrived
//! together ([`Store::hold`]).
//!
//! Payload bytes move once, from the caller's buffers to the page cache. The END mark and the
//! rest of its page go along: the next append overwrites them, and the kernel never has to read a
//! page of the ring before it can change a part of it.

use std::io::IoSlice;

use bytes::Bytes;
use trivet_protocol::breaks::{self, Break};
use trivet_protocol::{BLOCK_BYTES, Checksum, Entry, EntryError, Op, Position, Seq};

use super::{DIRECT_BLOCKS, Store};
use crate::disk::SECTOR;
use crate::error::{Result, StoreError};
use crate::log::MARGIN;
use crate::log::record::{HEADER, Header, InPlace, Kind, Logged, Ops, What, place};
use crate::overlay::Span;

const PAGE: u64 = 4096;

/// The END mark to stand at `pos`, filled up with zeros to the end of its page.
pub(super) fn end_mark(
    seed: u32,
    pos: u64,
    epoch: u64,
    seq: Seq,
    commit: Seq,
    synced_to: u64,
) -> Vec<u8> {
    let header = Header {
        kind: Kind::End,
        pos,
        epoch,
        synced_to,
        seq,
        generation: 0,
        commit,
        total_len: SECTOR as u32,
        meta_len: 0,
        data_len: 0,
        in_place: InPlace::NONE,
        body_crc: 0,
    };
    let len = (pos + SECTOR).next_multiple_of(PAGE) - pos;
    let mut out = vec![0; len as usize];
    out[..HEADER].copy_from_slice(&header.encode(seed));
    out
}

/// Zeros to fill a record up to whole sectors.
static PADDING: [u8; SECTOR as usize] = [0; SECTOR as usize];

/// Records that are in the history and not yet in the file. Only ever between [`Store::hold`] and
/// [`Store::let_go`], that is under one lock of the owner's.
#[derive(Default)]
pub(super) struct Held {
    /// Appends are collected.
    on: bool,
    /// Byte position of the first part.
    from: u64,
    /// In the order of the log; payload is shared, not copied.
    parts: Vec<Bytes>,
}

/// Hands out the data of consecutive operations from an entry's segments, without copying.
struct Segments<'a> {
    rest: &'a [Bytes],
    used: usize,
}

impl Segments<'_> {
    fn take(&mut self, mut bytes: usize, out: &mut Vec<Bytes>) {
        while bytes > 0 {
            let Some((first, rest)) = self.rest.split_first() else {
                return;
            };
            let now = (first.len() - self.used).min(bytes);
            if now > 0 {
                out.push(first.slice(self.used..self.used + now));
            }
            bytes -= now;
            self.used += now;
            if self.used == first.len() {
                (self.rest, self.used) = (rest, 0);
            }
        }
    }
}

impl Store {
    /// From now on appends are collected, to be written in one go by [`Store::let_go`]. Until then
    /// nothing may be read or synced.
    pub fn hold(&mut self) {
        self.held.on = true;
    }

    /// Writes what was collected and collects no longer.
    ///
    /// # Errors
    /// The disk fails; the store is poisoned.
    pub fn let_go(&mut self) -> Result<()> {
        self.held.on = false;
        self.write_held()
    }

    pub(super) fn nothing_held(&self) -> bool {
        self.held.parts.is_empty()
    }

    /// Writes what was collected so far.
    ///
    /// # Errors
    /// The disk fails; the store is poisoned.
    pub fn write_held(&mut self) -> Result<()> {
        if self.held.parts.is_empty() {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.held.parts);
        let (seq, commit, synced) = (self.end().seq, self.commit, self.synced_to);
        let mark = end_mark(self.shared.seed, self.end, self.epoch, seq, commit, synced);
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        slices.push(IoSlice::new(&mark));
        let written = self.shared.log.write(&mut slices, self.held.from);
        // Also without space: they are in the history, and in no file.
        written.map_err(|e| self.poison_hard(e))
    }

    /// Appends the next operation of the history. It is visible to reads on return, and durable
    /// once a sync that began later has finished.
    ///
    /// # Errors
    /// [`StoreError::LogFull`] and [`StoreError::NoSpace`] change nothing: wait for a checkpoint,
    /// or for space, and offer it again. Nothing is changed either when the entry does not
    /// follow or cannot be. Any other error poisons the store.
    pub fn append(&mut self, entry: &Entry) -> Result<()> {
        let end = self.end();
        if entry.seq != end.seq.next() {
            return Err(StoreError::BadSeq {
                expected: end.seq.next(),
                got: entry.seq,
            });
        }
        if entry.generation < end.generation.max(1) {
            return Err(StoreError::GenerationDown {
                have: end.generation,
                got: entry.generation,
            });
        }
        self.write_record(Kind::Entry, entry)
    }

    pub(super) fn write_record(&mut self, kind: Kind, entry: &Entry) -> Result<()> {
        self.usable()?;
        check_entry(entry, self.blocks)?;
        let mut in_place = self.choose_in_place(entry);
        let (mut data_len, mut total) = self.fits(entry, &in_place)?;
        // In place first: if the disk is full nothing has happened yet, the blocks are unwritten,
        // and the log, which has its space, takes the data.
        match self.write_in_place(entry, &in_place) {
            Err(StoreError::NoSpace { .. }) => {
                in_place = InPlace::NONE;
                (data_len, total) = self.fits(entry, &in_place)?;
            }
            other => other?,
        }
        self.collect_record(kind, entry, in_place, total, data_len);
        self.note_record(kind, entry, &in_place, total);
        if !self.held.on {
            self.write_held()?;
        }
        let recorder = &self.shared.recorder;
        recorder.count("downstairs.log.records", 1);
        recorder.count("downstairs.log.bytes", total);
        recorder.count(
            "downstairs.log.direct_bytes",
            (entry.data_len() - data_len) as u64,
        );
        recorder.gauge("downstairs.log.used_bytes", self.end - self.tail);
        Ok(())
    }

    /// Bytes of data and in all that the entry takes in the log, if there is room for it.
    fn fits(&self, entry: &Entry, in_place: &InPlace) -> Result<(usize, u64)> {
        let data_len = in_log_bytes(entry, in_place);
        let total = ((HEADER + entry.meta_len() + data_len) as u64).next_multiple_of(SECTOR);
        if total <= self.log_free() {
            return Ok((data_len, total));
        }
        Err(StoreError::LogFull {
            need: total + MARGIN,
            free: self.log_free() + MARGIN,
            durable: self.durable,
            commit: self.commit,
            checkpointed: self.checkpointed.seq,
            trim: self.trim,
        })
    }

    /// Which operations' data goes straight to the extent files: long runs of blocks that are
    /// unwritten there, and about which the log has nothing to say.
    fn choose_in_place(&self, entry: &Entry) -> InPlace {
        let mut in_place = InPlace::NONE;
        for (i, op) in entry.ops.iter().enumerate() {
            let Op::Write { block, count } = *op else {
                continue;
            };
            let (from, to) = (block.0, block.0 + u64::from(count));
            if u64::from(count) >= DIRECT_BLOCKS
                && !others_overlap(&entry.ops, i, from, to)
                && self.may_go_in_place(from, to)
            {
                in_place.set(i);
            }
        }
        in_place
    }

    fn may_go_in_place(&self, from: u64, to: u64) -> bool {
        if breaks::on(Break::DiscardPunchedLate) {
            let gone = |s: &Span| s.what == What::Discarded && s.clip(from, to) == s.clip(0, to);
            let mut spans = self.overlay.spans_in(from, to).peekable();
            if spans.peek().is_some() && spans.all(gone) {
                return true;
            }
        }
        // Metadata that cannot be read is not a reason to fail: the log takes the data.
        !self.overlay.touches(from, to)
            && matches!(self.shared.extents.all_unwritten(from, to - from), Ok(true))
    }

    fn write_in_place(&mut self, entry: &Entry, in_place: &InPlace) -> Result<()> {
        if !in_place.any() {
            return Ok(());
        }
        let mut segments = Segments {
            rest: &entry.data,
            used: 0,
        };
        let (extents, dirty, record) = (&self.shared.extents, &mut self.dirty, self.end);
        for (i, op) in entry.ops.iter().enumerate() {
            let Op::Write { block, count } = *op else {
                continue;
            };
            let mut parts = Vec::new();
            if !in_place.has(i) {
                segments.take(count as usize * BLOCK_BYTES, &mut parts);
                continue;
            }
            extents.split(block.0, u64::from(count), |no, first, n, _| {
                let file = extents.get_or_create(no)?;
                parts.clear();
                segments.take(n as usize * BLOCK_BYTES, &mut parts);
                let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
                extents.write_data(&file, first, &mut slices)?;
                dirty.insert(no.0, (file, record));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn collect_record(
        &mut self,
        kind: Kind,
        entry: &Entry,
        in_place: InPlace,
        total: u64,
        data_len: usize,
    ) {
        let meta = entry.encode_meta();
        let mut segments = Segments {
            rest: &entry.data,
            used: 0,
        };
        if self.held.parts.is_empty() {
            self.held.from = self.end;
        }
        let parts = &mut self.held.parts;
        let first = parts.len();
        // Header and meta go here, when the checksum is known.
        parts.push(Bytes::new());
        let mut skipped = Vec::new();
        for (i, op) in entry.ops.iter().enumerate() {
            if let Op::Write { count, .. } = *op {
                let skip = in_place.has(i);
                let out = if skip { &mut skipped } else { &mut *parts };
                segments.take(count as usize * BLOCK_BYTES, out);
            }
        }
        let mut body_crc = crc32c::crc32c(&meta);
        for part in &parts[first + 1..] {
            body_crc = crc32c::crc32c_append(body_crc, part);
        }
        let header = Header {
            kind,
            pos: self.end,
            epoch: self.epoch,
            synced_to: self.synced_to,
            seq: entry.seq,
            generation: entry.generation,
            commit: self.commit,
            total_len: total as u32,
            meta_len: meta.len() as u32,
            data_len: data_len as u32,
            in_place,
            body_crc,
        };
        let mut head = Vec::with_capacity(HEADER + meta.len());
        head.extend_from_slice(&header.encode(self.shared.seed));
        head.extend_from_slice(&meta);
        parts[first] = Bytes::from(head);
        let padding = total as usize - HEADER - meta.len() - data_len;
        parts.push(Bytes::from_static(&PADDING[..padding]));
    }

    fn note_record(&mut self, kind: Kind, entry: &Entry, in_place: &InPlace, total: u64) {
        let meta_len = entry.meta_len() as u32;
        let placed = match (entry.ops.as_slice(), entry.sums.as_slice()) {
            // The common case without a list.
            ([Op::Write { block, count: 1 }], [sum]) => Ops::One(crate::log::record::Placed {
                block: block.0,
                count: 1,
                what: What::Log {
                    data: self.end + (HEADER as u64) + u64::from(meta_len),
                    sums: crate::log::record::Sums::One(*sum),
                },
            }),
            (ops, sums) => Ops::from(place(ops, sums, in_place, self.end, meta_len)),
        };
        let record = Logged {
            kind,
            position: Position {
                generation: entry.generation,
                seq: entry.seq,
            },
            pos: self.end,
            len: total as u32,
            ops: placed,
        };
        for op in record.ops.as_slice() {
            self.overlay.put(op, &record);
        }
        if kind == Kind::Entry {
            let follows = self.table.extend(entry.generation, entry.seq);
            debug_assert!(follows, "append() checked it");
        }
        self.records.push_back(record);
        self.end += total;
    }

    pub(super) fn write_end_mark(&self) -> Result<()> {
        let (seq, synced) = (self.end().seq, self.synced_to);
        let mark = end_mark(
            self.shared.seed,
            self.end,
            self.epoch,
            seq,
            self.commit,
            synced,
        );
        self.shared.log.write(&mut [IoSlice::new(&mark)], self.end)
    }
}

/// Checks what the network may have sent: sizes that fit together and blocks that exist.
fn check_entry(entry: &Entry, blocks: u64) -> Result<()> {
    use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS};
    if entry.ops.len() > MAX_BATCH_OPS {
        return Err(EntryError::TooManyOps(entry.ops.len()).into());
    }
    let mut written = 0usize;
    for (op, o) in entry.ops.iter().enumerate() {
        let (first, count) = match *o {
            Op::Write { block, count } => {
                written = written.saturating_add(count as usize);
                (block.0, u64::from(count))
            }
            Op::Discard { block, count } => (block.0, count),
        };
        if count == 0 || first.checked_add(count).is_none_or(|end| end > blocks) {
            return Err(EntryError::OutOfRange {
                op,
                first,
                count,
                blocks,
            }
            .into());
        }
    }
    if written > MAX_BATCH_BLOCKS {
        return Err(EntryError::TooManyBlocks(written).into());
    }
    let have = entry.data.iter().map(Bytes::len).sum::<usize>();
    let need = written * BLOCK_BYTES;
    if have != need || entry.sums.len() != written {
        let have = have.min(entry.sums.len() * BLOCK_BYTES);
        return Err(EntryError::Data { have, need }.into());
    }
    let odd = |s: &Bytes| !s.len().is_multiple_of(BLOCK_BYTES);
    if let Some((op, s)) = entry.data.iter().enumerate().find(|(_, s)| odd(s)) {
        return Err(EntryError::NotWholeBlocks { op, bytes: s.len() }.into());
    }
    debug_assert!(!entry.sums.contains(&Checksum::UNWRITTEN));
    Ok(())
}

fn in_log_bytes(entry: &Entry, in_place: &InPlace) -> usize {
    let ops = entry.ops.iter().enumerate();
    ops.map(|(i, op)| match op {
        Op::Write { count, .. } if !in_place.has(i) => *count as usize * BLOCK_BYTES,
        _ => 0,
    })
    .sum()
}

/// Whether another operation of the same batch has to do with these blocks.
fn others_overlap(ops: &[Op], but: usize, from: u64, to: u64) -> bool {
    ops.iter().enumerate().any(|(i, op)| {
        let (first, count) = match *op {
            Op::Write { block, count } => (block.0, u64::from(count)),
            Op::Discard { block, count } => (block.0, count),
        };
        i != but && first < to && first + count > from
    })
}
