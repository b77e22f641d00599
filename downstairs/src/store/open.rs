//! Creating and opening a region.
//!
//! Opening: read the head, replay the log, make durable again whatever is not proven to be (an
//! earlier process may have been told that a sync failed; the page cache then shows what the disk
//! never got, and a second sync would say yes to nothing), and only then start a new epoch. A
//! crash anywhere in it leaves a region that opens again, with the same history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use trivet_protocol::{
    BLOCK_BYTES, Block, Checksum, GenerationTable, MemberId, NullRecorder, Recorder, Seq, VolumeId,
};

use super::reserve::Reserve;
use super::{Shared, Store};
use crate::disk::Disk;
use crate::error::{Result, StoreError};
use crate::extent::{self, Extents};
use crate::head::{self, Head, HeadState};
use crate::log::record::{Kind, Logged, Placed, What};
use crate::log::replay::{Replayed, Tail, replay};
use crate::log::{self, Log};
use crate::overlay::Overlay;
use crate::region::{self, Region};

/// What an opening found.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// How often the region has been opened, this time included.
    pub opens: u64,
    /// How the log ended this time. What earlier openings found and nobody settled is in
    /// [`Store::unsure`] and [`Store::damaged`].
    pub tail: Tail,
    /// Records that were replayed.
    pub records: usize,
    /// Bytes of log that were replayed.
    pub bytes: u64,
    /// Bytes that were not known to be durable and were written again.
    pub rewritten: u64,
}

/// Opens a region again that is in use already, by the same process: [`Store::reopen`].
pub struct Reopen {
    disk: Arc<dyn Disk>,
    who: (VolumeId, MemberId),
    recorder: Arc<dyn Recorder>,
}

impl Reopen {
    pub(super) fn new(shared: &Shared) -> Reopen {
        Reopen {
            disk: Arc::clone(&shared.disk),
            who: (shared.region.volume, shared.region.member),
            recorder: Arc::clone(&shared.recorder),
        }
    }

    /// Opens it, from what is durable.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn run(&self) -> Result<(Store, OpenReport)> {
        Store::open(
            Arc::clone(&self.disk),
            Some(self.who),
            Arc::clone(&self.recorder),
        )
    }
}

impl Store {
    /// Creates an empty region. Explicit, never a side effect of opening one.
    ///
    /// # Errors
    /// There is a region already, the layout is impossible, or the disk fails or is full.
    pub fn create(disk: &Arc<dyn Disk>, region: &Region) -> Result<()> {
        region.check()?;
        let names = disk
            .list("")
            .map_err(|e| StoreError::io("list", "the region", e))?;
        if names.iter().any(|n| n == region::FILE) {
            return Err(StoreError::Foreign {
                what: region::FILE.to_owned(),
                why: "there is a region in this directory already".to_owned(),
            });
        }
        // Without its identity file it never was a region: a creation was cut short.
        for name in [log::FILE, head::FILE, "region.toml.new"] {
            if names.iter().any(|n| n == name) {
                disk.remove(name)
                    .map_err(|e| StoreError::io("remove", name, e))?;
            }
        }
        match disk.create_dir(extent::DIR) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create", extent::DIR, e));
            }
            _ => {}
        }
        let log = Log::create(&**disk, region.log_bytes)?;
        let mark = super::append::end_mark(region.seed(), 0, 1, Seq::ZERO, Seq::ZERO, 0);
        log.write(&mut [std::io::IoSlice::new(&mark)], 0)?;
        log.sync()?;
        let state = HeadState {
            epoch: 1,
            blocks: region.blocks,
            clean: true,
            ..HeadState::default()
        };
        Head::create(&**disk, region.seed(), state)?;
        region.save(&**disk)
    }

    /// Opens a region and replays its log. `expected` is whom the caller means to find.
    ///
    /// # Errors
    /// It is another's, newer than this program, damaged beyond its log, or the disk fails.
    /// Damage in the log is no error but reported: the region can then be resynced or exported.
    pub fn open(
        disk: Arc<dyn Disk>,
        expected: Option<(VolumeId, MemberId)>,
        recorder: Arc<dyn Recorder>,
    ) -> Result<(Store, OpenReport)> {
        let region = Region::load(&*disk)?;
        if let Some((volume, member)) = expected
            && (volume, member) != (region.volume, region.member)
        {
            return Err(StoreError::Foreign {
                what: region::FILE.to_owned(),
                why: format!(
                    "it is replica {} of volume {}, not replica {member} of volume {volume}",
                    region.member, region.volume
                ),
            });
        }
        let seed = region.seed();
        let head = Head::open(&*disk, seed)?;
        let log = Log::open(&*disk, region.log_bytes)?;
        let extents = Extents::open(Arc::clone(&disk), &region)?;
        let mut replayed = replay(&log, seed, head.state())?;
        let reserve = Reserve::open(&*disk, region.log_bytes);
        let shared = Shared {
            disk,
            region,
            seed,
            log,
            extents,
            head: Mutex::new(head),
            reserve,
            recorder,
        };
        drop_unverified(&shared, &mut replayed)?;
        let rewritten = harden(&shared, &replayed)?;
        Self::begin_epoch(shared, replayed, rewritten)
    }

    fn begin_epoch(
        shared: Shared,
        mut replayed: Replayed,
        rewritten: u64,
    ) -> Result<(Store, OpenReport)> {
        let mut head = shared.head();
        // Damage in a part of the log that the extents have already: what follows it is of no
        // use, and the place where the log goes on must not be below what they hold.
        let skip = matches!(replayed.tail, Tail::Damaged(_))
            && replayed.end < head.state().checkpointed_to;
        if skip {
            replayed.records.clear();
            replayed.end = head.state().checkpointed_to;
        }
        let (end, commit) = (replayed.end, replayed.commit);
        let table = replayed.table.clone();
        head.update(|h| {
            if skip {
                (h.tail, h.tail_seq) = (end, table.end().seq);
                h.table = table;
            }
            h.opens += 1;
            h.epoch += 1;
            h.epoch_start = end;
            h.synced_to = end;
            h.commit = commit;
            h.clean = false;
            h.unsure |= matches!(replayed.tail, Tail::Unsure(_));
            h.damaged |= matches!(replayed.tail, Tail::Damaged(_));
        })?;
        let h = head.state().clone();
        drop(head);
        let report = OpenReport {
            opens: h.opens,
            tail: replayed.tail,
            records: replayed.records.len(),
            bytes: end - h.tail,
            rewritten,
        };
        let store = Self::assemble(shared, h, replayed.records, replayed.table, end);
        // From now on an END of this epoch stands at the end, so that the next opening is sure.
        store.write_end_mark()?;
        store.shared.log.sync()?;
        Ok((store, report))
    }

    /// Opens a region for reading only and changes nothing in it, for offline tools. What follows
    /// an unsure end of the log is not shown.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn inspect(disk: Arc<dyn Disk>) -> Result<(Store, Tail)> {
        let region = Region::load(&*disk)?;
        let seed = region.seed();
        let state = Head::peek(&*disk, seed)?;
        let log = Log::open(&*disk, region.log_bytes)?;
        let extents = Extents::open(Arc::clone(&disk), &region)?;
        let mut replayed = replay(&log, seed, &state)?;
        let shared = Shared {
            disk,
            region,
            seed,
            log,
            extents,
            head: Mutex::new(Head::read_only(state.clone())),
            reserve: Reserve::none(),
            recorder: Arc::new(NullRecorder),
        };
        drop_unverified(&shared, &mut replayed)?;
        let (records, table) = (replayed.records, replayed.table);
        let mut store = Self::assemble(shared, state, records, table, replayed.end);
        store.poison = Some("it was opened for reading only".to_owned());
        Ok((store, replayed.tail))
    }

    fn assemble(
        shared: Shared,
        h: HeadState,
        records: VecDeque<Logged>,
        table: GenerationTable,
        end: u64,
    ) -> Store {
        let mut overlay = Overlay::default();
        for record in records.iter().filter(|r| r.pos >= h.checkpointed_to) {
            for op in record.ops.as_slice() {
                overlay.put(op, record);
            }
        }
        let last = table.end().seq;
        let round_bytes = shared.log.ring() / 32;
        Store {
            round_bytes,
            shared: Arc::new(shared),
            overlay,
            records,
            end,
            table,
            tail: h.tail,
            tail_seq: h.tail_seq,
            checkpointed: h.checkpointed,
            checkpointed_to: h.checkpointed_to,
            commit: h.commit.min(last),
            trim: h.tail_seq,
            synced_to: end,
            durable: last,
            epoch: h.epoch,
            blocks: h.blocks,
            dirty: BTreeMap::new(),
            checkpoint: None,
            rounds: 0,
            poison: None,
            held: super::append::Held::default(),
        }
    }
}

/// Ends the log before the first record whose data in the extent files is not what it says,
/// looking only at records that are not known to have been synced.
fn drop_unverified(shared: &Shared, replayed: &mut Replayed) -> Result<()> {
    let synced = replayed.synced_to;
    let start = replayed.records.partition_point(|r| r.pos < synced);
    let mut bad = None;
    for (i, record) in replayed.records.iter().enumerate().skip(start) {
        if !direct_ops(record)
            .map(|op| verifies(shared, op))
            .try_fold(true, |all, ok| ok.map(|ok| all && ok))?
        {
            bad = Some(i);
            break;
        }
    }
    let Some(i) = bad else { return Ok(()) };
    let dropped: Vec<Logged> = replayed.records.drain(i..).collect();
    let Some(first) = dropped.first() else {
        return Ok(());
    };
    replayed.end = first.pos;
    let first_seq = match first.kind {
        Kind::Entry => Seq(first.position.seq.0.saturating_sub(1)),
        _ => first.position.seq,
    };
    replayed.table.cut(first_seq);
    replayed.commit = replayed.commit.min(first_seq);
    if !matches!(replayed.tail, Tail::Damaged(_)) {
        replayed.tail = Tail::Unsure(format!(
            "after operation {first_seq}: data written in place that does not verify"
        ));
    }
    Ok(())
}

fn direct_ops(record: &Logged) -> impl Iterator<Item = &Placed> {
    let ops = record.ops.as_slice().iter();
    ops.filter(|op| matches!(op.what, What::Direct { .. }))
}

fn verifies(shared: &Shared, op: &Placed) -> Result<bool> {
    let What::Direct { sums } = op.what else {
        return Ok(true);
    };
    let mut raw = vec![0; op.count as usize * Checksum::BYTES];
    shared.log.read(&mut raw, sums)?;
    let (mut data, mut good) = (Vec::new(), true);
    let volume = shared.region.volume;
    shared
        .extents
        .split(op.block, op.count, |no, first, n, done| {
            let Some(file) = shared.extents.get(no)? else {
                good = false;
                return Ok(());
            };
            data.resize(n as usize * BLOCK_BYTES, 0);
            shared.extents.read_data(&file, first, &mut data)?;
            for (i, content) in data.chunks_exact(BLOCK_BYTES).enumerate() {
                let at = done as usize + i;
                let sum = Checksum::of(volume, Block(op.block + at as u64), content);
                good &= sum.0 == raw[at * Checksum::BYTES..(at + 1) * Checksum::BYTES];
            }
            Ok(())
        })?;
    Ok(good)
}

/// Writes again what is not known to be synced, and syncs it: whatever an earlier process was
/// told, from here on everything replayed is durable. Returns the bytes written again.
fn harden(shared: &Shared, replayed: &Replayed) -> Result<u64> {
    let mut bytes = 0;
    let mut buf = vec![0; 1 << 20];
    let mut at = replayed.synced_to.min(replayed.end);
    let start = replayed.records.partition_point(|r| r.pos < at);
    for op in replayed.records.iter().skip(start).flat_map(direct_ops) {
        shared
            .extents
            .split(op.block, op.count, |no, first, n, _| {
                let Some(file) = shared.extents.get(no)? else {
                    return Ok(());
                };
                let part = n as usize * BLOCK_BYTES;
                buf.resize(buf.len().max(part), 0);
                let data = &mut buf[..part];
                shared.extents.read_data(&file, first, data)?;
                let mut parts = [std::io::IoSlice::new(data)];
                shared.extents.write_data(&file, first, &mut parts)?;
                bytes += part as u64;
                shared.extents.sync(&file)
            })?;
    }
    while at < replayed.end {
        let now = (replayed.end - at).min(buf.len() as u64) as usize;
        shared.log.read(&mut buf[..now], at)?;
        shared
            .log
            .write(&mut [std::io::IoSlice::new(&buf[..now])], at)?;
        at += now as u64;
        bytes += now as u64;
    }
    // An earlier process may have created extent files and not come to sync their names.
    if !shared.head().state().clean {
        shared
            .disk
            .sync_dir(extent::DIR)
            .map_err(|e| StoreError::io("sync", extent::DIR, e))?;
    }
    if bytes > 0 {
        shared.log.sync()?;
    }
    Ok(bytes)
}
