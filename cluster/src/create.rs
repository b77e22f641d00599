//! Making a volume: three regions that name each other in their first record.
//!
//! Order: the description under its temporary name, the regions, the description under its own
//! name. A crash in between leaves the temporary one: nothing was ever served, and the next
//! creation finishes it with the same identities.

use std::path::Path;
use std::sync::Arc;

use trivet_downstairs::disk::{Disk, RealDisk};
use trivet_downstairs::member::MemberState;
use trivet_downstairs::{Region, Store, region};
use trivet_protocol::limits::DEFAULT_LEASE_MS;
use trivet_protocol::{
    MemberInfo, MemberKind, Millis, NullRecorder, Position, Record, RecordVersion,
};

use crate::error::{ClusterError, Result};
use crate::host::{lock_pool, region_dir, regions};
use crate::volume_file::{CREATING, Place, VolumeFile, sync_parent};

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
        let pool = VolumeFile::pool(place, path);
        std::fs::create_dir_all(&pool).map_err(ClusterError::io("create", &pool))?;
        let _lock = lock_pool(&pool)?;
        make_region(&pool, &volume, place, &record)?;
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
        if let Some((dir, other)) = regions(&pool)?.into_iter().next() {
            return Err(ClusterError::Orphan {
                path: dir,
                volume: other,
            });
        }
    }
    Ok(())
}

fn first_record(volume: &VolumeFile) -> Record {
    let members = volume.member.iter().map(|p| MemberInfo {
        id: p.id,
        node: p.node.clone(),
        kind: MemberKind::Replica,
        opens: 0,
        durable: Position::default(),
    });
    Record {
        version: RecordVersion::default(),
        volume: volume.volume,
        blocks: volume.blocks,
        members: members.collect(),
        in_sync: volume.member.iter().map(|p| p.id).collect(),
        min_copies: volume.member.len().min(2) as u8,
        lease: Millis(DEFAULT_LEASE_MS),
        losses: 0,
    }
}

fn make_region(pool: &Path, volume: &VolumeFile, place: &Place, record: &Record) -> Result<()> {
    let dir = region_dir(pool, volume.volume);
    std::fs::create_dir_all(&dir).map_err(ClusterError::io("create", &dir))?;
    sync_parent(&dir)?;
    let recorder = Arc::new(NullRecorder);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&dir, recorder.clone()));
    let wrong = || ClusterError::region(&dir);
    if !dir.join(region::FILE).exists() {
        let region = Region::new(volume.volume, place.id, volume.blocks);
        Store::create(&disk, &region).map_err(wrong())?;
    }
    let expected = Some((volume.volume, place.id));
    let (mut store, _) = Store::open(disk, expected, recorder).map_err(wrong())?;
    if store.member_state().is_empty() {
        let state = MemberState::new(place.id, record.clone());
        let raw = serde_json::to_vec(&state).map_err(|e| ClusterError::VolumeFile {
            path: dir.clone(),
            why: e.to_string(),
        })?;
        store.set_member_state(raw).map_err(wrong())?;
    }
    store.close().map_err(wrong())
}
