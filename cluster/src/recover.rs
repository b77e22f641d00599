//! A new volume out of one region, when a majority of the old volume's members is gone for ever.
//!
//! Order: the description under a name of its own ([`RECOVERING`]), the regions, their content,
//! their first state as members, the description under its own name. A crash in between leaves
//! regions without a state, which nobody serves, and the description that names them: remove both
//! and start again. The region that it is made of is only read.

use std::path::Path;
use std::sync::Arc;

use trivet_downstairs::member::MemberState;
use trivet_downstairs::offline::{self, Recovered};
use trivet_downstairs::{Region, Store, region};
use trivet_protocol::{Generation, MemberKind, NullRecorder, Record, RecordVersion};

use crate::create::{first_record, open_or_make_pool};
use crate::error::{ClusterError, Result};
use crate::join::make_member;
use crate::volume_file::{VolumeFile, sync_parent};

/// Appended to the description's name while the content is being copied.
const RECOVERING: &str = ".recovering";
/// The generation that the recovered history is of; the first claim is for the one after it.
const HISTORY: u64 = 1;

/// Makes the regions of `volume`, fills them with what the region in `from` holds, and then writes
/// `path`. Pools are made where they are missing.
///
/// # Errors
/// There is something at `path`, an earlier recovery there was cut short, the old region is in use
/// or unsound (unless `forensic`), or a disk fails.
pub fn recover(
    from: &Path,
    path: &Path,
    volume: &VolumeFile,
    forensic: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Recovered> {
    let mut recovering = path.as_os_str().to_owned();
    recovering.push(RECOVERING);
    let recovering = Path::new(&recovering);
    let taken = |path: &Path, why: &str| {
        let (path, why) = (path.to_path_buf(), why.to_owned());
        Err(ClusterError::VolumeFile { path, why })
    };
    if path.exists() {
        return taken(path, "it exists already; choose another name");
    }
    if recovering.exists() {
        let why = "an earlier recovery was cut short; remove it and the regions that it names, \
                   then start again";
        return taken(recovering, why);
    }
    volume.save(recovering)?;
    let mut record = first_record(volume);
    record.version = RecordVersion {
        generation: HISTORY,
        number: 0,
    };
    let mut stores = Vec::new();
    for place in volume.replicas() {
        let pool = open_or_make_pool(&VolumeFile::pool(place, path))?;
        let dir = pool.region_dir(volume.volume, place.id);
        let wrong = || ClusterError::region(&dir);
        let recorder = Arc::new(NullRecorder);
        let disk = pool.make_region(volume.volume, place.id, recorder.clone())?;
        if dir.join(region::FILE).exists() {
            return taken(&dir, "there is a region already");
        }
        let region = Region::new(volume.volume, place.id, volume.blocks);
        Store::create(&disk, &region).map_err(wrong())?;
        let opened = Store::open(disk, Some((volume.volume, place.id)), recorder);
        stores.push(opened.map_err(wrong())?.0);
    }
    let done = offline::recover(from, &mut stores, forensic, progress);
    let done = done.map_err(ClusterError::region(from))?;
    for mut store in stores {
        let dir = Path::new("a new region");
        let raw = state(&store, &record)?;
        store
            .set_member_state(raw)
            .and_then(|()| store.close())
            .map_err(ClusterError::region(dir))?;
    }
    for place in &volume.member {
        if place.kind == MemberKind::Witness {
            let pool = open_or_make_pool(&VolumeFile::pool(place, path))?;
            make_member(&pool, place.kind, place.id, &record)?;
        }
    }
    std::fs::rename(recovering, path).map_err(ClusterError::io("write", path))?;
    sync_parent(path)?;
    Ok(done)
}

/// The first state of a replica whose history there is already: its generation is taken.
fn state(store: &Store, record: &Record) -> Result<Vec<u8>> {
    let mut state = MemberState::new(store.region().member, record.clone());
    state.promise = Generation {
        number: HISTORY,
        claim: 0,
    };
    state.holder = "recovery".to_owned();
    state.handed_back = true;
    serde_json::to_vec(&state).map_err(|e| ClusterError::VolumeFile {
        path: "a new region".into(),
        why: e.to_string(),
    })
}
