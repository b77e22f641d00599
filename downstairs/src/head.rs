//! The head: what a region must know before it can read its log, in a double-slot file.
//!
//! Holds the opens counter, the epoch and where it starts, the log's tail, what was checkpointed,
//! the generation table as of the tail (replay extends it), flags, and the member's own state as
//! an opaque blob, so that promise, record and region share one mechanism.
//!
//! A crash in an update leaves the head before or after it, never a mixture.

use trivet_protocol::{GenerationTable, Position, Seq};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::Disk;
use crate::error::{Result, StoreError};
use crate::slots::SlotFile;

/// Name of the file.
pub const FILE: &str = "head";
/// Bytes of member state that fit, at most.
pub const MAX_MEMBER_STATE: usize = 24 * 1024;

const VERSION: u32 = 1;
const FLAG_MIXED: u32 = 1;
const FLAG_MIXED_BASE: u32 = 2;
const FLAG_UNSURE: u32 = 4;
const FLAG_DAMAGED: u32 = 8;
const FLAG_CLEAN: u32 = 16;
const KNOWN_FLAGS: u32 = 31;

/// What the head says. Positions in bytes count from the log's first byte ever and never wrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadState {
    /// How often the region was opened.
    pub opens: u64,
    /// Goes up with each opening and each cut, before the first append that follows.
    pub epoch: u64,
    /// Byte position where the epoch's records start; everything before it was synced.
    pub epoch_start: u64,
    /// Byte position of the oldest record that is kept.
    pub tail: u64,
    /// Last operation before the tail.
    pub tail_seq: Seq,
    /// Everything up to here is in the extent files.
    pub checkpointed: Position,
    /// Byte position of the first record that is not in the extent files.
    pub checkpointed_to: u64,
    /// A commit position that was known.
    pub commit: Seq,
    /// Everything in the log before this byte position was synced.
    pub synced_to: u64,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// A resync is under way: content is from several moments. Carries the last position common
    /// with the history that is being copied, if there is one.
    pub mixed: Option<Option<Seq>>,
    /// The last resync jumped to this place, or its last copy stands there: cut back below it, the
    /// region would lack blocks that were copied, and is mixed again; and which blocks changed
    /// before it is not known.
    pub whole_from: Seq,
    /// An opening found the end of the log unsure and no activation has settled it yet.
    pub unsure: bool,
    /// Something that was synced is gone; only a resync ends this.
    pub damaged: bool,
    /// The region was closed in order; nothing follows the end of the log.
    pub clean: bool,
    /// Where each generation ended, up to the tail.
    pub table: GenerationTable,
    /// The member's state: promise, record and so on.
    pub member: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fixed {
    version: U32,
    flags: U32,
    opens: U64,
    epoch: U64,
    epoch_start: U64,
    tail: U64,
    tail_seq: U64,
    checkpointed_generation: U64,
    checkpointed_seq: U64,
    checkpointed_to: U64,
    commit: U64,
    synced_to: U64,
    blocks: U64,
    mixed_base: U64,
    table_floor: U64,
    table_rows: U32,
    member_len: U32,
    whole_from: U64,
}
const _: () = assert!(size_of::<Fixed>() == 128);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Row {
    generation: U64,
    seq: U64,
}
const _: () = assert!(size_of::<Row>() == 16);

impl HeadState {
    /// The bytes kept in a slot.
    pub fn encode(&self) -> Vec<u8> {
        let flag = |on: bool, f: u32| if on { f } else { 0 };
        let base = self.mixed.flatten();
        let fixed = Fixed {
            version: U32::new(VERSION),
            flags: U32::new(
                flag(self.mixed.is_some(), FLAG_MIXED)
                    | flag(base.is_some(), FLAG_MIXED_BASE)
                    | flag(self.unsure, FLAG_UNSURE)
                    | flag(self.damaged, FLAG_DAMAGED)
                    | flag(self.clean, FLAG_CLEAN),
            ),
            opens: self.opens.into(),
            epoch: self.epoch.into(),
            epoch_start: self.epoch_start.into(),
            tail: self.tail.into(),
            tail_seq: self.tail_seq.0.into(),
            checkpointed_generation: self.checkpointed.generation.into(),
            checkpointed_seq: self.checkpointed.seq.0.into(),
            checkpointed_to: self.checkpointed_to.into(),
            commit: self.commit.0.into(),
            synced_to: self.synced_to.into(),
            blocks: self.blocks.into(),
            mixed_base: base.unwrap_or_default().0.into(),
            table_floor: self.table.floor().0.into(),
            table_rows: U32::new(self.table.rows().len() as u32),
            member_len: U32::new(self.member.len() as u32),
            whole_from: self.whole_from.0.into(),
        };
        let mut out = fixed.as_bytes().to_vec();
        for &(generation, seq) in self.table.rows() {
            let row = Row {
                generation: generation.into(),
                seq: seq.0.into(),
            };
            out.extend_from_slice(row.as_bytes());
        }
        out.extend_from_slice(&self.member);
        out
    }

    /// Reads the bytes of a slot, believing nothing.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn decode(raw: &[u8]) -> Result<HeadState> {
        let bad = |why: &str| StoreError::corrupt(FILE, why);
        let (f, rest) = Fixed::ref_from_prefix(raw).map_err(|_| bad("cut short"))?;
        if f.version.get() != VERSION {
            return Err(StoreError::Foreign {
                what: FILE.to_owned(),
                why: format!("version {} is unknown; use a newer trivet", f.version.get()),
            });
        }
        let (count, flags) = (f.table_rows.get() as usize, f.flags.get());
        if flags & !KNOWN_FLAGS != 0 {
            return Err(bad("unknown flags"));
        }
        let has = |flag: u32| flags & flag != 0;
        if count > GenerationTable::MAX {
            return Err(bad("too many generations"));
        }
        let (rows, member) = <[Row]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| bad("generation table cut short"))?;
        let rows = rows.iter().map(|r| (r.generation.get(), Seq(r.seq.get())));
        let table = GenerationTable::from_parts(Seq(f.table_floor.get()), rows.collect())
            .ok_or_else(|| bad("generation table out of order"))?;
        if member.len() != f.member_len.get() as usize || member.len() > MAX_MEMBER_STATE {
            return Err(bad("member state of a wrong length"));
        }
        let state = HeadState {
            opens: f.opens.get(),
            epoch: f.epoch.get(),
            epoch_start: f.epoch_start.get(),
            tail: f.tail.get(),
            tail_seq: Seq(f.tail_seq.get()),
            checkpointed: Position {
                generation: f.checkpointed_generation.get(),
                seq: Seq(f.checkpointed_seq.get()),
            },
            checkpointed_to: f.checkpointed_to.get(),
            commit: Seq(f.commit.get()),
            synced_to: f.synced_to.get(),
            blocks: f.blocks.get(),
            whole_from: Seq(f.whole_from.get()),
            mixed: has(FLAG_MIXED).then(|| has(FLAG_MIXED_BASE).then_some(Seq(f.mixed_base.get()))),
            unsure: has(FLAG_UNSURE),
            damaged: has(FLAG_DAMAGED),
            clean: has(FLAG_CLEAN),
            table,
            member: member.to_vec(),
        };
        if state.tail_seq > state.checkpointed.seq
            || state.tail > state.checkpointed_to
            || state.table.end().seq != state.tail_seq
        {
            return Err(bad("positions contradict each other"));
        }
        Ok(state)
    }
}

/// The head and its file.
pub struct Head {
    /// `None`: opened for reading only.
    slots: Option<SlotFile>,
    state: HeadState,
}

impl Head {
    /// Creates the file with a first state.
    ///
    /// # Errors
    /// As [`SlotFile::create`].
    pub fn create(disk: &dyn Disk, seed: u32, state: HeadState) -> Result<Head> {
        let slots = Some(SlotFile::create(disk, FILE, seed, &state.encode())?);
        Ok(Head { slots, state })
    }

    /// Opens the file.
    ///
    /// # Errors
    /// As [`SlotFile::open`] and [`HeadState::decode`].
    pub fn open(disk: &dyn Disk, seed: u32) -> Result<Head> {
        let (slots, raw) = SlotFile::open(disk, FILE, seed)?;
        let state = HeadState::decode(&raw)?;
        let slots = Some(slots);
        Ok(Head { slots, state })
    }

    /// One that cannot be updated.
    pub fn read_only(state: HeadState) -> Head {
        Head { slots: None, state }
    }

    /// Reads the file without changing anything, not even by repairing it.
    ///
    /// # Errors
    /// As [`Head::open`].
    pub fn peek(disk: &dyn Disk, seed: u32) -> Result<HeadState> {
        HeadState::decode(&SlotFile::peek(disk, FILE, seed)?)
    }

    /// What it says.
    pub fn state(&self) -> &HeadState {
        &self.state
    }

    /// Changes it, durably when this returns.
    ///
    /// # Errors
    /// The disk failed; the state is as before as far as this process is concerned, and every
    /// later update is refused.
    pub fn update(&mut self, change: impl FnOnce(&mut HeadState)) -> Result<()> {
        let mut next = self.state.clone();
        change(&mut next);
        let Some(slots) = &mut self.slots else {
            return Err(StoreError::WrongState("it was opened for reading only"));
        };
        slots.write(&next.encode())?;
        self.state = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_there_and_back_and_no_cut_is_accepted() {
        let state = HeadState {
            opens: 3,
            tail_seq: Seq(12),
            checkpointed: Position {
                generation: 2,
                seq: Seq(14),
            },
            checkpointed_to: 4096,
            tail: 512,
            mixed: Some(Some(Seq(7))),
            unsure: true,
            table: GenerationTable::from_parts(Seq(0), vec![(1, Seq(10)), (2, Seq(12))]).unwrap(),
            member: vec![9; 100],
            ..HeadState::default()
        };
        let raw = state.encode();
        assert_eq!(HeadState::decode(&raw).unwrap(), state);
        for n in 0..raw.len() {
            assert!(HeadState::decode(&raw[..n]).is_err(), "{n} bytes");
        }
    }
}
