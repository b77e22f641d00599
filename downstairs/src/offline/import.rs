//! A plain or sparse file becomes a fresh region: holes stay holes, zero blocks stay unwritten.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::SeekFrom;
use trivet_protocol::entry::{Batch, BatchOp};
use trivet_protocol::{BLOCK_BYTES, Block, Entry, MemberId, NullRecorder, Seq, VolumeId};

use super::{CHUNK_BLOCKS, Progress, host};
use crate::disk::{Disk, RealDisk};
use crate::error::{Result, StoreError};
use crate::region::Region;
use crate::store::Store;

/// How to make the region.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The volume that it becomes a replica of; `None`: a new one.
    pub volume: Option<VolumeId>,
    /// Its own identity; `None`: a new one.
    pub member: Option<MemberId>,
    /// Size in bytes if larger than the file.
    pub bytes: Option<u64>,
    /// Bytes of log; `None`: the default.
    pub log_bytes: Option<u64>,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Who the region is.
    pub region: Region,
    /// Blocks that hold something.
    pub written_blocks: u64,
}

/// Creates an empty region in `dir`, which is made if need be but not its parents.
///
/// # Errors
/// There is a region already, the layout is impossible, or the disk fails.
pub fn create(dir: &Path, region: &Region) -> Result<()> {
    open_new(dir, region).map(|_| ())
}

fn open_new(dir: &Path, region: &Region) -> Result<Arc<dyn Disk>> {
    region.check()?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(host("create", dir)(e));
        }
        _ => {}
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        let synced = File::open(parent).and_then(|d| d.sync_all());
        synced.map_err(host("sync", parent))?;
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::locked(dir, Arc::new(NullRecorder))?);
    Store::create(&disk, region)?;
    Ok(disk)
}

/// Makes a region in `dir` of the file or block device `source`. Its history is then one of
/// generation 1. A crash leaves a region with a part of the content; remove it and start again.
///
/// # Errors
/// The source cannot be read, or as for [`create`].
pub fn import(
    source: &Path,
    dir: &Path,
    options: &ImportOptions,
    progress: Progress<'_>,
) -> Result<Imported> {
    let file = File::open(source).map_err(host("open", source))?;
    // The end by seeking: a block device has no length of its own.
    let bytes =
        rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| host("read", source)(e.into()))?;
    let size = options.bytes.unwrap_or(0).max(bytes);
    let (volume, member) = (
        options.volume.unwrap_or_else(VolumeId::random),
        options.member.unwrap_or_else(MemberId::random),
    );
    let mut region = Region::new(volume, member, size.div_ceil(BLOCK_BYTES as u64));
    region.imported_bytes = Some(size);
    region.log_bytes = options.log_bytes.unwrap_or(region.log_bytes);
    let disk = open_new(dir, &region)?;
    let (mut store, _) = Store::open(disk, None, Arc::new(NullRecorder))?;
    let mut written_blocks = 0;
    let mut at = 0;
    while let Some(start) = next_data(&file, at, bytes) {
        let start = start - start % BLOCK_BYTES as u64;
        let chunk = (bytes - start).min(CHUNK_BLOCKS * BLOCK_BYTES as u64);
        let data = read_padded(&file, start, chunk).map_err(host("read", source))?;
        let ops = runs(&data, start / BLOCK_BYTES as u64);
        if !ops.is_empty() {
            written_blocks += put(&mut store, ops)?;
        }
        at = start + chunk;
        progress(at, bytes);
    }
    settle(&mut store)?;
    store.close()?;
    progress(bytes, bytes);
    Ok(Imported {
        region,
        written_blocks,
    })
}

/// The next byte at or after `at` that may not be in a hole. File systems that know no holes
/// say "here".
fn next_data(file: &File, at: u64, bytes: u64) -> Option<u64> {
    if at >= bytes {
        return None;
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(found) => (found < bytes).then_some(found.max(at)),
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => Some(at),
    }
}

fn read_padded(file: &File, at: u64, bytes: u64) -> std::io::Result<Bytes> {
    let mut buf = BytesMut::zeroed((bytes as usize).next_multiple_of(BLOCK_BYTES));
    file.read_exact_at(&mut buf[..bytes as usize], at)?;
    Ok(buf.freeze())
}

/// The runs of blocks that are not all zeros.
fn runs(data: &Bytes, first: u64) -> Vec<BatchOp> {
    let zero: Vec<bool> = data
        .chunks_exact(BLOCK_BYTES)
        .map(|b| b.iter().all(|x| *x == 0))
        .collect();
    let (mut ops, mut at) = (Vec::new(), 0);
    while at < zero.len() {
        let same = zero[at..].iter().take_while(|z| **z == zero[at]).count();
        if !zero[at] {
            ops.push(BatchOp::Write {
                block: Block(first + at as u64),
                data: data.slice(at * BLOCK_BYTES..(at + same) * BLOCK_BYTES),
            });
        }
        at += same;
    }
    ops
}

fn put(store: &mut Store, ops: Vec<BatchOp>) -> Result<u64> {
    let batch = Batch { ops };
    let blocks = batch.data_blocks() as u64;
    let entry = Entry::new(store.region().volume, store.end().seq.next(), 1, batch);
    match store.append(&entry) {
        Err(StoreError::LogFull { .. }) => {
            settle(store)?;
            store.append(&entry)?;
        }
        other => other?,
    }
    Ok(blocks)
}

/// Empties the log into the extent files.
pub(super) fn settle(store: &mut Store) -> Result<()> {
    let end: Seq = store.sync()?;
    store.set_commit(end);
    store.set_trim(end);
    store.checkpoint_now().map(|_| ())
}
