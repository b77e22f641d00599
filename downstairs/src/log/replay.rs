//! Reading the log back after a stop of any kind, and telling a torn tail from damage.
//!
//! From the tail on, each record must stand where the one before ended, verify, follow in the
//! history, and be of the right epoch: older than the current one before the epoch's start,
//! exactly the current one after it. Where this ends there is
//! - an END mark that verifies: the end is **sure**;
//! - something else: the end is **unsure**. It may be an append that a power cut tore, which
//!   nobody was told of; but it may be damage that looks the same. One more replica must be heard;
//! - something else, at a place that is proven to have been synced, by the head or by any record
//!   that survived further on: **damage**. The region has lost what it had promised to keep.
//!
//! Bounded by the ring: nothing is read twice, and no more than its size in all.

use std::collections::VecDeque;

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::{BLOCK_BYTES, Entry, GenerationTable, Op, Position, Seq};

use super::Log;
use super::record::{HEADER, Header, Kind, Logged, MAGIC, Ops, place};
use crate::disk::SECTOR;
use crate::error::Result;
use crate::head::HeadState;

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// How the log ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With an END mark: nothing that was synced is missing.
    Sure,
    /// With a record that does not verify; carries what was found.
    Unsure(String),
    /// Something that was synced is gone; carries the proof.
    Damaged(String),
}

/// What the log holds.
#[derive(Debug)]
pub struct Replayed {
    /// The records, oldest first.
    pub records: VecDeque<Logged>,
    /// Byte position after the last one.
    pub end: u64,
    /// Where each generation ended.
    pub table: GenerationTable,
    /// Everything before this byte position was synced.
    pub synced_to: u64,
    /// Highest commit position that any record carries.
    pub commit: Seq,
    /// How it ended.
    pub tail: Tail,
}

/// A window over the log that only moves forward.
struct Window<'a> {
    log: &'a Log,
    buf: Vec<u8>,
    start: u64,
    limit: u64,
}

impl Window<'_> {
    /// The bytes from `pos` on, `need` of them; `None` beyond the ring.
    fn get(&mut self, pos: u64, need: u64) -> Result<Option<&[u8]>> {
        if pos + need > self.limit {
            return Ok(None);
        }
        if pos + need > self.start + self.buf.len() as u64 {
            let keep = (pos - self.start).min(self.buf.len() as u64) as usize;
            self.buf.drain(..keep);
            let have = self.buf.len();
            self.start = pos;
            let end = (pos + need.max(CHUNK)).min(self.limit);
            self.buf.resize((end - pos) as usize, 0);
            self.log.read(&mut self.buf[have..], pos + have as u64)?;
        }
        let at = (pos - self.start) as usize;
        Ok(Some(&self.buf[at..at + need as usize]))
    }
}

/// Reads the log as `head` describes it.
///
/// # Errors
/// The disk fails.
pub fn replay(log: &Log, seed: u32, head: &HeadState) -> Result<Replayed> {
    let mut window = Window {
        log,
        buf: Vec::new(),
        start: head.tail,
        limit: head.tail + log.ring(),
    };
    let mut out = Replayed {
        records: VecDeque::new(),
        end: head.tail,
        table: head.table.clone(),
        synced_to: head.synced_to.max(head.epoch_start),
        commit: head.commit,
        tail: Tail::Sure,
    };
    let mut epoch = 0;
    let why = loop {
        match next(&mut window, seed, head, &mut out, &mut epoch)? {
            Next::Record => {}
            Next::End => break None,
            Next::Bad(why) => break Some(why),
        }
    };
    let from = out.end + SECTOR;
    if !(head.clean && why.is_none()) {
        scan_for_proof(&mut window, seed, head, from, &mut out.synced_to)?;
    }
    let at = format!(
        "after operation {} (byte {} of the log)",
        out.table.end().seq,
        out.end
    );
    let damaged = out.synced_to > out.end && !breaks::on(Break::DamageTakenForTorn);
    out.tail = match why {
        why if damaged => Tail::Damaged(format!(
            "{at}: {}, but the log had been synced up to byte {}",
            why.unwrap_or("an end"),
            out.synced_to
        )),
        Some(why) => Tail::Unsure(format!("{at}: {why}")),
        None => Tail::Sure,
    };
    out.synced_to = out.synced_to.min(out.end);
    Ok(out)
}

enum Next {
    Record,
    End,
    Bad(&'static str),
}

fn next(
    window: &mut Window<'_>,
    seed: u32,
    head: &HeadState,
    out: &mut Replayed,
    epoch: &mut u64,
) -> Result<Next> {
    let pos = out.end;
    let Some(sector) = window.get(pos, SECTOR)? else {
        return Ok(Next::Bad("the ring is full"));
    };
    let Some(h) = Header::decode(sector, seed, pos) else {
        return Ok(Next::Bad("no record that verifies"));
    };
    let end = out.table.end();
    if h.kind == Kind::End {
        // At the very start of an epoch the mark of the one before still stands.
        let right = h.epoch == head.epoch || (pos == head.epoch_start && h.epoch < head.epoch);
        if pos < head.epoch_start || !right || h.seq != end.seq {
            return Ok(Next::Bad("an END mark of another time"));
        }
        out.synced_to = out.synced_to.max(h.synced_to);
        out.commit = out.commit.max(h.commit);
        return Ok(Next::End);
    }
    let right = if pos < head.epoch_start {
        h.epoch < head.epoch && h.epoch >= *epoch
    } else {
        h.epoch == head.epoch
    };
    if !right || h.synced_to > pos {
        return Ok(Next::Bad("a record of another time"));
    }
    let follows = match h.kind {
        Kind::Entry => h.seq == end.seq.next() && h.generation >= end.generation,
        _ => h.seq == end.seq,
    };
    if !follows {
        return Ok(Next::Bad("a record that does not follow"));
    }
    let Some(whole) = window.get(pos, u64::from(h.total_len))? else {
        return Ok(Next::Bad("a record longer than the ring"));
    };
    let body = &whole[HEADER..HEADER + h.meta_len as usize + h.data_len as usize];
    if crc32c::crc32c(body) != h.body_crc {
        return Ok(Next::Bad("a record whose content does not verify"));
    }
    let Ok((ops, sums)) = Entry::decode_meta(&body[..h.meta_len as usize], head.blocks) else {
        return Ok(Next::Bad("a record that cannot be read"));
    };
    let in_log = ops.iter().enumerate().map(|(i, op)| match op {
        Op::Write { count, .. } if !h.in_place.has(i) => *count as usize * BLOCK_BYTES,
        _ => 0,
    });
    if in_log.sum::<usize>() != h.data_len as usize {
        return Ok(Next::Bad("a record of a wrong length"));
    }
    if h.kind == Kind::Entry && !out.table.extend(h.generation, h.seq) {
        return Ok(Next::Bad("a record that does not follow"));
    }
    *epoch = h.epoch;
    out.synced_to = out.synced_to.max(h.synced_to);
    out.commit = out.commit.max(h.commit);
    out.records.push_back(Logged {
        kind: h.kind,
        position: Position {
            generation: h.generation,
            seq: h.seq,
        },
        pos,
        len: h.total_len,
        ops: Ops::from(place(&ops, &sums, &h.in_place, pos, h.meta_len)),
    });
    out.end = h.end();
    Ok(Next::Record)
}

/// Looks behind the end for headers of the current epoch: they tell what had been synced.
fn scan_for_proof(
    window: &mut Window<'_>,
    seed: u32,
    head: &HeadState,
    from: u64,
    synced_to: &mut u64,
) -> Result<()> {
    let mut pos = from;
    while let Some(sector) = window.get(pos, SECTOR)? {
        if sector.starts_with(&MAGIC)
            && let Some(h) = Header::decode(sector, seed, pos)
            && h.epoch == head.epoch
            && pos > head.epoch_start
        {
            *synced_to = (*synced_to).max(h.synced_to.min(pos));
        }
        pos += SECTOR;
    }
    Ok(())
}
