//! The content of one region becomes the content of a new volume's regions, when a majority of the
//! old volume's members is gone for ever.
//!
//! The new volume has an identity of its own, and so every block's checksum is made anew, from
//! content that verified under the old one. All new regions get the same history, of generation 1.
//! The old region is only read. A crash leaves new regions without a member's state, which nobody
//! serves.

use std::path::Path;

use bytes::Bytes;
use trivet_protocol::entry::{Batch, BatchOp};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, Entry, MemberId, Position, VolumeId};

use super::export::refuse_unsound;
use super::import::settle;
use super::{Progress, for_each_chunk, inspect, mismatches};
use crate::error::{Result, StoreError};
use crate::log::replay::Tail;
use crate::member::MemberState;
use crate::store::Store;

/// What a region knows of itself and of the volume that it was a replica of.
#[derive(Clone, Debug)]
pub struct Assessment {
    /// The old volume.
    pub volume: VolumeId,
    /// Who the region is.
    pub member: MemberId,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// The last operation that it has.
    pub end: Position,
    /// Up to here it knew operations to be durable on enough replicas.
    pub commit: u64,
    /// What people must know before they go on, most important first.
    pub may_be_missing: Vec<String>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Blocks that hold something.
    pub written_blocks: u64,
    /// Blocks that did not verify or could not be read, left as zeros (forensic only).
    pub bad_blocks: u64,
}

/// Looks at the region in `dir` and says what a volume made of it may lack.
///
/// # Errors
/// It cannot be read, or a daemon uses it.
pub fn assess(dir: &Path) -> Result<Assessment> {
    let (store, tail) = inspect(dir)?;
    let region = store.region();
    let mut lines = Vec::new();
    if store.mixed().is_some() {
        lines.push(
            "a resync was under way: its content is of several moments, and of no use but for \
             forensics"
                .to_owned(),
        );
    }
    if store.damaged() || matches!(tail, Tail::Damaged(_)) {
        lines.push("its log is damaged: its newest operations are missing".to_owned());
    } else if tail != Tail::Sure {
        lines.push(
            "its log ends in a torn record: the operation that was being written is missing"
                .to_owned(),
        );
    }
    match serde_json::from_slice::<MemberState>(&store.member_state()) {
        Ok(state) => about_members(&state, &mut lines),
        Err(_) => lines.push("it does not know who else was a member of its volume".to_owned()),
    }
    Ok(Assessment {
        volume: region.volume,
        member: region.member,
        blocks: store.blocks(),
        end: store.end(),
        commit: store.commit().0,
        may_be_missing: lines,
    })
}

fn about_members(state: &MemberState, lines: &mut Vec<String>) {
    let record = &state.record;
    let others: Vec<&str> = record
        .replicas()
        .filter(|m| m.id != state.member && record.in_sync.contains(&m.id))
        .map(|m| m.node.as_str())
        .collect();
    if state.removed {
        lines.push("it was removed from the volume: everything written since is missing".into());
    } else if !record.in_sync.contains(&state.member) {
        lines.push(
            "it was out of sync when its record was written: everything flushed since it fell \
             behind may be missing"
                .to_owned(),
        );
    }
    if others.is_empty() {
        lines.push("no other replica was in sync, as far as it knows".to_owned());
    } else {
        lines.push(format!(
            "replicas on {} were in sync too, and may have flushed writes, or a newer record, that \
             this one never saw: use the region with the newest last operation",
            others.join(", ")
        ));
    }
}

/// Copies the content of the region in `dir` into fresh regions of one new volume, of the same
/// size or larger. Each then ends with the same operation, durable and out of the log.
///
/// # Errors
/// The region is mixed, damaged, or something in it does not verify, unless `forensic`; the new
/// regions are not of one volume, or too small; or a disk fails.
pub fn recover(
    dir: &Path,
    targets: &mut [Store],
    forensic: bool,
    progress: Progress<'_>,
) -> Result<Recovered> {
    let (source, tail) = inspect(dir)?;
    if !forensic {
        refuse_unsound(&source, &tail)?;
    }
    let Some(volume) = targets.first().map(|t| t.region().volume) else {
        return Err(StoreError::WrongState("there is no region to recover into"));
    };
    let fits = |t: &Store| t.region().volume == volume && t.blocks() >= source.blocks();
    if !targets.iter().all(fits) {
        return Err(StoreError::WrongState(
            "the new regions are of several volumes, or too small",
        ));
    }
    let mut done = Recovered::default();
    for_each_chunk(&source, progress, |first, count, got| {
        let got = match got {
            Err(StoreError::CorruptBlocks { .. }) if forensic => {
                done.bad_blocks += u64::from(count);
                return Ok(());
            }
            other => other?,
        };
        let bad = mismatches(&source, first, &got);
        if let (Some(block), false) = (bad.first(), forensic) {
            let why = "content and checksum differ; recover from another region, or pass \
                       --forensic and lose such blocks";
            return Err(StoreError::CorruptBlocks {
                first: *block,
                last: *block,
                why: why.to_owned(),
            });
        }
        done.bad_blocks += bad.len() as u64;
        let ops = runs(first, &got.sums, &bad, &Bytes::from(got.data));
        if ops.is_empty() {
            return Ok(());
        }
        let batch = Batch { ops };
        done.written_blocks += batch.data_blocks() as u64;
        put(targets, volume, batch)
    })?;
    targets.iter_mut().try_for_each(settle)?;
    Ok(done)
}

/// Runs of blocks that are written and good.
fn runs(first: u64, sums: &[Checksum], bad: &[u64], data: &Bytes) -> Vec<BatchOp> {
    let good = |i: usize| !sums[i].is_unwritten() && !bad.contains(&(first + i as u64));
    let (mut ops, mut at) = (Vec::new(), 0);
    while at < sums.len() {
        let run = (at..sums.len()).take_while(|i| good(*i)).count();
        if run > 0 {
            ops.push(BatchOp::Write {
                block: Block(first + at as u64),
                data: data.slice(at * BLOCK_BYTES..(at + run) * BLOCK_BYTES),
            });
        }
        at += run.max(1);
    }
    ops
}

fn put(targets: &mut [Store], volume: VolumeId, batch: Batch) -> Result<()> {
    let next = targets.first().map(|t| t.end().seq.next());
    let entry = Entry::new(volume, next.unwrap_or_default(), 1, batch);
    for store in targets {
        match store.append(&entry) {
            Err(StoreError::LogFull { .. }) => {
                settle(store)?;
                store.append(&entry)?;
            }
            other => other?,
        }
    }
    Ok(())
}
