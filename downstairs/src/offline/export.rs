//! A region becomes a plain file again, to the byte, holes staying holes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use trivet_protocol::{BLOCK_BYTES, Checksum};

use super::{Progress, for_each_chunk, host, inspect, mismatches};
use crate::error::{Result, StoreError};
use crate::log::replay::Tail;
use crate::store::Store;

/// What to put up with.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Export also what is mixed, damaged or does not verify, as well as can be. For forensics:
    /// blocks that cannot be read are left as holes.
    pub forensic: bool,
}

/// What an export did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Length of the file.
    pub bytes: u64,
    /// Blocks that hold something.
    pub written_blocks: u64,
    /// Blocks that did not verify or could not be read (forensic exports only).
    pub bad_blocks: u64,
}

/// Length to the byte: that of the imported file, as long as the region has not grown since.
fn exact_bytes(store: &Store) -> u64 {
    let whole = store.blocks() * BLOCK_BYTES as u64;
    let same = |b: &u64| b.div_ceil(BLOCK_BYTES as u64) == store.blocks();
    store.region().imported_bytes.filter(same).unwrap_or(whole)
}

/// Writes the content of the region in `dir` to a new file `target`.
///
/// # Errors
/// The target exists, something does not verify, the region is mixed or damaged, or a disk
/// fails.
pub fn export(
    dir: &Path,
    target: &Path,
    options: ExportOptions,
    progress: Progress<'_>,
) -> Result<Exported> {
    let (store, tail) = inspect(dir)?;
    if !options.forensic {
        refuse_unsound(&store, &tail)?;
    }
    let io = host("write", target);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(target)
        .map_err(host("create", target))?;
    let mut done = Exported {
        bytes: exact_bytes(&store),
        ..Exported::default()
    };
    file.set_len(done.bytes).map_err(&io)?;
    for_each_chunk(&store, progress, |first, count, got| {
        let got = match got {
            Err(StoreError::CorruptBlocks { .. }) if options.forensic => {
                done.bad_blocks += u64::from(count);
                return Ok(());
            }
            other => other?,
        };
        let bad = mismatches(&store, first, &got);
        if let (Some(block), false) = (bad.first(), options.forensic) {
            return Err(StoreError::CorruptBlocks {
                first: *block,
                last: *block,
                why: "content and checksum differ; export another replica, or export for \
                      forensics"
                    .to_owned(),
            });
        }
        done.bad_blocks += bad.len() as u64;
        let mut at = 0;
        while at < got.sums.len() {
            let unwritten = got.sums[at].is_unwritten();
            let same = |s: &&Checksum| s.is_unwritten() == unwritten;
            let run = got.sums[at..].iter().take_while(same).count();
            if !unwritten {
                let offset = (first + at as u64) * BLOCK_BYTES as u64;
                let end = (offset + (run * BLOCK_BYTES) as u64).min(done.bytes);
                let from = at * BLOCK_BYTES;
                let part = &got.data[from..from + end.saturating_sub(offset) as usize];
                file.write_all_at(part, offset).map_err(&io)?;
                done.written_blocks += run as u64;
            }
            at += run;
        }
        Ok(())
    })?;
    file.sync_all().map_err(&io)?;
    Ok(done)
}

pub(super) fn refuse_unsound(store: &Store, tail: &Tail) -> Result<()> {
    if store.mixed().is_some() {
        return Err(StoreError::WrongState(
            "a resync was under way, its content is of several moments; export another replica, \
             or export for forensics",
        ));
    }
    if store.damaged() || matches!(tail, Tail::Damaged(_)) {
        return Err(StoreError::WrongState(
            "its log is damaged, the newest operations are missing; export another replica, or \
             export for forensics",
        ));
    }
    Ok(())
}
