//! Tools for one region alone, without a daemon: one replica is enough to get the data out.
//!
//! All of them lock the region's directory, so none runs beside a daemon that uses it. Export,
//! verify and dump change nothing in it.

use std::path::Path;
use std::sync::Arc;

use trivet_protocol::{BLOCK_BYTES, Block};

use crate::disk::RealDisk;
use crate::error::{Result, StoreError};
use crate::log::replay::Tail;
use crate::store::{Blocks, Store};

mod dump;
mod export;
mod import;
mod reader;
mod recover;
mod verify;

pub use dump::dump;
pub use export::{ExportOptions, Exported, export};
pub use import::{ImportOptions, Imported, create, import};
pub use reader::Reader;
pub use recover::{Assessment, Recovered, assess, recover};
pub use verify::{Problem, Verified, verify};

/// Told how far a tool is: bytes done, of bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Blocks handled at once: 1 MiB.
const CHUNK_BLOCKS: u64 = 256;

/// Opens a region's directory for reading only.
fn inspect(dir: &Path) -> Result<(Store, Tail)> {
    Store::inspect(Arc::new(RealDisk::locked_for_reading(dir)?))
}

/// Calls `f(first block, what was read)` for every chunk of the region that may hold anything,
/// in order.
fn for_each_chunk(
    store: &Store,
    progress: Progress<'_>,
    mut f: impl FnMut(u64, u32, Result<Blocks>) -> Result<()>,
) -> Result<()> {
    let (blocks, per) = (store.blocks(), u64::from(store.region().extent_blocks));
    let total = blocks * BLOCK_BYTES as u64;
    let mut at = 0;
    while at < blocks {
        let Some(no) = store.next_extent(at) else {
            break;
        };
        at = at.max(u64::from(no.0) * per);
        let end = ((u64::from(no.0) + 1) * per).min(blocks);
        while at < end {
            let count = (end - at).min(CHUNK_BLOCKS) as u32;
            f(at, count, store.read(Block(at), count))?;
            at += u64::from(count);
            progress(at * BLOCK_BYTES as u64, total);
        }
    }
    progress(total, total);
    Ok(())
}

/// Blocks of a chunk whose content does not match its checksum.
fn mismatches(store: &Store, first: u64, got: &Blocks) -> Vec<u64> {
    got.mismatches(store.region().volume, first)
}

fn host(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let what = path.display().to_string();
    move |e| StoreError::io(action, what.clone(), e)
}
