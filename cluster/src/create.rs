//! Making a volume: regions, and perhaps a witness, that name each other in their first record.
//!
//! Order: the description under its temporary name, the regions, the description under its own
//! name. A crash in between leaves the temporary one: nothing was ever served, and the next
//! creation finishes it with the same identities.

use std::path::Path;

use trivet_downstairs::pool::{self, Pool};
use trivet_protocol::limits::DEFAULT_LEASE_MS;
use trivet_protocol::{MemberId, MemberInfo, Millis, Position, Record, RecordVersion};

use crate::error::{ClusterError, Result};
use crate::join::make_member;
use crate::volume_file::{CREATING, VolumeFile, sync_parent};

/// Makes the regions of `volume` and then writes `path`. Directories of pools are made where they
/// are missing. If an earlier creation at `path` was cut short, that one is finished and its
/// volume returned.
///
/// # Errors
/// There is a volume at `path`, a pool holds a region that nobody describes or is in use, or a
/// disk fails.
pub fn create(path: &Path, volume: VolumeFile) -> Result<VolumeFile> {
    if path.exists() {
        return Err(ClusterError::VolumeFile {
            path: path.to_path_buf(),
            why: "it exists already; choose another name".into(),
        });
    }
    let mut creating = path.as_os_str().to_owned();
    creating.push(CREATING);
    let creating = Path::new(&creating);
    let volume = match VolumeFile::load(creating)? {
        Some(begun) => begun,
        None => {
            refuse_orphans(path, &volume)?;
            volume.save(creating)?;
            volume
        }
    };
    let record = first_record(&volume);
    for place in &volume.member {
        let pool = open_or_make_pool(&VolumeFile::pool(place, path))?;
        make_member(&pool, place.kind, place.id, &record)?;
    }
    std::fs::rename(creating, path).map_err(ClusterError::io("write", path))?;
    sync_parent(path)?;
    Ok(volume)
}

/// A region of another volume is welcome in a pool; in a pool of its own volume file it can only
/// mean that the file was lost.
fn refuse_orphans(path: &Path, volume: &VolumeFile) -> Result<()> {
    for place in &volume.member {
        // A shared pool, named by its absolute path, may well hold other volumes.
        if place.pool.is_absolute() {
            continue;
        }
        let pool = VolumeFile::pool(place, path);
        if !pool.join(pool::FILE).exists() {
            continue;
        }
        let found = Pool::open(&pool)?.regions()?;
        if let Some(Ok(region)) = found.first().map(|f| &f.region) {
            return Err(ClusterError::Orphan {
                path: pool,
                volume: region.volume,
            });
        }
    }
    Ok(())
}

pub(crate) fn first_record(volume: &VolumeFile) -> Record {
    let replicas = volume.replicas().count();
    let members = volume.member.iter().map(|p| MemberInfo {
        id: p.id,
        node: p.node.clone(),
        kind: p.kind,
        opens: 0,
        durable: Position::default(),
    });
    Record {
        version: RecordVersion::default(),
        volume: volume.volume,
        blocks: volume.blocks,
        members: members.collect(),
        in_sync: volume.replicas().map(|p| p.id).collect(),
        // Two and a witness go on with one copy, and say so loudly: that is what a witness is for.
        min_copies: match volume.member.len() > replicas {
            true => 1,
            false => replicas.min(2) as u8,
        },
        lease: Millis(DEFAULT_LEASE_MS),
        losses: 0,
    }
}

/// Making a volume is an explicit act, and so its pools are made along with it.
pub(crate) fn open_or_make_pool(dir: &Path) -> Result<Pool> {
    if dir.join(pool::FILE).exists() {
        return Ok(Pool::open(dir)?);
    }
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(ClusterError::io("create", parent))?;
    }
    let pool = Pool::create(dir)?;
    sync_parent(dir)?;
    Ok(pool)
}

/// Makes one member of a new volume in the pool at `dir` (which is made if it is not there), as its
/// first record says. If it is there already, that is as good.
///
/// # Errors
/// The record is no first one or does not list the member, or the disk fails.
pub fn make_first_member(dir: &Path, record: &Record, member: MemberId) -> Result<()> {
    let first = record.version == RecordVersion::default() && record.problem().is_none();
    let Some(info) = record.member(member).filter(|_| first) else {
        return Err(ClusterError::NotFirst {
            volume: record.volume,
            member,
        });
    };
    make_member(&open_or_make_pool(dir)?, info.kind, member, record)
}
