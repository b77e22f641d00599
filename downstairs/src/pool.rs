//! A pool: a directory on some disk that holds regions.
//!
//! ```text
//! POOL/pool.toml                      who the pool is
//! POOL/VOLUME-ID/MEMBER-ID/           one region, or one witness
//! ```
//!
//! The id file is what tells a mounted disk from an empty mount point: a pool without it is
//! refused, never made anew on the root disk. Creating one is an explicit act.
//!
//! A region that is thrown away is renamed first (`MEMBER-ID.gone`), durably: a crash leaves it as
//! it was, or under a name that nobody serves and the next start clears away.
//!
//! A region in use is locked (flock on its directory), so that two daemons, or a daemon and an
//! offline tool, never work on the same one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trivet_protocol::{MemberId, Recorder, VolumeId};
use uuid::Uuid;

use crate::disk::{Disk, RealDisk, Space};
use crate::error::{Result, StoreError};
use crate::region::Region;
use crate::witness;

/// Name of the id file.
pub const FILE: &str = "pool.toml";
/// Version of the layout of a pool.
pub const FORMAT: u32 = 1;
/// Appended to the name of a region or witness that is being thrown away.
const GONE: &str = ".gone";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    id: Uuid,
    /// Its file system copies on write, which is not seen from its kind (a disk image on btrfs):
    /// set by hand. Then overwrites need space, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    copies_on_write: bool,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Pool {
    dir: PathBuf,
    id: Uuid,
    copies_on_write: bool,
}

/// A region as found in a pool, without opening it.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub dir: PathBuf,
    /// Who it is, or why that cannot be told.
    pub region: Result<Region>,
}

/// A witness as found in a pool, without opening it.
#[derive(Debug)]
pub struct FoundWitness {
    /// Its directory.
    pub dir: PathBuf,
    /// Who it is, or why that cannot be told.
    pub witness: Result<witness::Identity>,
}

impl Pool {
    /// Makes `dir` (created if need be, but not its parents) a pool.
    ///
    /// # Errors
    /// It is one already, is not empty, or the disk fails.
    pub fn create(dir: &Path) -> Result<Pool> {
        let what = dir.display().to_string();
        let io = |e| StoreError::io("create pool", what.clone(), e);
        match std::fs::create_dir(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(io(e)),
            _ => {}
        }
        let others = std::fs::read_dir(dir).map_err(io)?;
        for other in others {
            let name = other.map_err(io)?.file_name();
            // A new file system has this one.
            if name != "lost+found" {
                return Err(StoreError::Foreign {
                    what: what.clone(),
                    why: format!("it already holds {}; a new pool is empty", name.display()),
                });
            }
        }
        let identity = Identity {
            format: FORMAT,
            id: Uuid::new_v4(),
            copies_on_write: false,
        };
        let text = toml::to_string(&identity).map_err(|e| StoreError::Foreign {
            what: what.clone(),
            why: e.to_string(),
        })?;
        let text =
            format!("# A Trivet pool. A daemon that does not find this file refuses.\n{text}");
        let disk = RealDisk::new(dir, Arc::new(trivet_protocol::NullRecorder));
        let file = disk.create(FILE).map_err(io)?;
        file.write_all_at(text.as_bytes(), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.sync_dir(""))
            .map_err(io)?;
        Ok(Pool {
            dir: dir.to_path_buf(),
            id: identity.id,
            copies_on_write: identity.copies_on_write,
        })
    }

    /// Opens a pool.
    ///
    /// # Errors
    /// There is no id file (is the disk mounted?), or it is not for this program.
    pub fn open(dir: &Path) -> Result<Pool> {
        let what = dir.display().to_string();
        let foreign = |why: String| StoreError::Foreign {
            what: format!("pool {what}"),
            why,
        };
        let text = match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(foreign(format!(
                    "it has no {FILE}: if its disk is not mounted, mount it; \
                     if this is to be a new pool, create it first"
                )));
            }
            Err(e) => return Err(StoreError::io("open pool", what, e)),
        };
        let identity: Identity = toml::from_str(&text).map_err(|e| foreign(e.to_string()))?;
        if identity.format != FORMAT {
            return Err(foreign(format!(
                "its format is {}, this program knows {FORMAT}",
                identity.format
            )));
        }
        Ok(Pool {
            dir: dir.to_path_buf(),
            id: identity.id,
            copies_on_write: identity.copies_on_write,
        })
    }

    /// Identity of the pool.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of a region or witness.
    pub fn region_dir(&self, volume: VolumeId, member: MemberId) -> PathBuf {
        self.dir.join(volume.to_string()).join(member.to_string())
    }

    /// The directory of a region or witness that exists, locked.
    ///
    /// # Errors
    /// There is none, or another process uses it.
    pub fn region(
        &self,
        volume: VolumeId,
        member: MemberId,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Arc<dyn Disk>> {
        self.disk(&self.region_dir(volume, member), recorder)
    }

    fn disk(&self, dir: &Path, recorder: Arc<dyn Recorder>) -> Result<Arc<dyn Disk>> {
        let mut disk = RealDisk::locked(dir, recorder)?;
        if self.copies_on_write {
            disk.set_copies_on_write();
        }
        Ok(Arc::new(disk))
    }

    /// Makes the directory for a new region or witness, locked, its name durable.
    ///
    /// # Errors
    /// The disk fails, or another process uses it.
    pub fn make_region(
        &self,
        volume: VolumeId,
        member: MemberId,
        recorder: Arc<dyn Recorder>,
    ) -> Result<Arc<dyn Disk>> {
        let dir = self.region_dir(volume, member);
        let io = |e| StoreError::io("create", dir.display().to_string(), e);
        std::fs::create_dir_all(&dir).map_err(io)?;
        for parent in [&self.dir, &self.dir.join(volume.to_string())] {
            let synced = std::fs::File::open(parent).and_then(|d| d.sync_all());
            synced.map_err(io)?;
        }
        self.disk(&dir, recorder)
    }

    /// Throws a region or witness away, for good; true if there was one. Nobody may use it any
    /// more.
    ///
    /// # Errors
    /// The disk fails. What is left has a name that nobody serves.
    pub fn discard(&self, volume: VolumeId, member: MemberId) -> Result<bool> {
        let dir = self.region_dir(volume, member);
        let io = |e| StoreError::io("throw away", dir.display().to_string(), e);
        let mut gone = dir.clone().into_os_string();
        gone.push(GONE);
        match std::fs::rename(&dir, &gone) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            renamed => renamed.map_err(io)?,
        }
        let parent = self.dir.join(volume.to_string());
        let synced = std::fs::File::open(&parent).and_then(|d| d.sync_all());
        synced
            .and_then(|()| std::fs::remove_dir_all(&gone))
            .map_err(io)?;
        // Fails while another member of the volume is here.
        let _ = std::fs::remove_dir(&parent);
        Ok(true)
    }

    /// Clears away what [`Pool::discard`] left when it was cut short. Returns how many.
    ///
    /// # Errors
    /// The disk fails.
    pub fn clear_discarded(&self) -> Result<usize> {
        let io = |e| StoreError::io("clear", self.dir.display().to_string(), e);
        let mut cleared = 0;
        for volume in ids_in(&self.dir)? {
            for entry in std::fs::read_dir(&volume).map_err(io)? {
                let entry = entry.map_err(io)?;
                let name = entry.file_name();
                let id = name.to_str().and_then(|n| n.strip_suffix(GONE));
                if id.is_some_and(|id| Uuid::parse_str(id).is_ok()) {
                    std::fs::remove_dir_all(entry.path()).map_err(io)?;
                    cleared += 1;
                }
            }
            // Fails unless that was the last one.
            let _ = std::fs::remove_dir(&volume);
        }
        Ok(cleared)
    }

    /// All regions in the pool, sorted by directory.
    ///
    /// # Errors
    /// The pool cannot be listed.
    pub fn regions(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for volume in ids_in(&self.dir)? {
            for dir in ids_in(&volume)? {
                if dir.join(witness::FILE).exists() {
                    continue;
                }
                let disk = RealDisk::read_only(&dir);
                let region = Region::load(&disk);
                found.push(Found { dir, region });
            }
        }
        Ok(found)
    }

    /// All witnesses in the pool, sorted by directory.
    ///
    /// # Errors
    /// The pool cannot be listed.
    pub fn witnesses(&self) -> Result<Vec<FoundWitness>> {
        let mut found = Vec::new();
        for volume in ids_in(&self.dir)? {
            for dir in ids_in(&volume)? {
                if dir.join(witness::FILE).exists() {
                    let witness = witness::Identity::load(&RealDisk::read_only(&dir));
                    found.push(FoundWitness { dir, witness });
                }
            }
        }
        Ok(found)
    }

    /// Room in the pool.
    ///
    /// # Errors
    /// The disk fails.
    pub fn space(&self) -> Result<Space> {
        RealDisk::read_only(&self.dir)
            .space()
            .map_err(|e| StoreError::io("ask for space in", self.dir.display().to_string(), e))
    }
}

/// Directories in `dir` whose names are ids, sorted.
fn ids_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| StoreError::io("list", dir.display().to_string(), e);
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let id = entry
            .file_name()
            .to_str()
            .and_then(|n| Uuid::parse_str(n).ok());
        if id.is_some() && entry.file_type().map_err(io)?.is_dir() {
            out.push(entry.path());
        }
    }
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use trivet_protocol::NullRecorder;

    #[test]
    fn a_pool_that_is_not_mounted_is_refused_and_regions_are_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        std::fs::create_dir(&path).unwrap();
        let e = Pool::open(&path).unwrap_err();
        assert!(e.to_string().contains("mount it"), "{e}");
        let pool = Pool::create(&path).unwrap();
        assert!(Pool::create(&path).is_err(), "a second creation");
        assert_eq!(Pool::open(&path).unwrap().id(), pool.id());

        let (volume, member) = (VolumeId::random(), MemberId::random());
        let mut region = Region::new(volume, member, 1000);
        region.log_bytes = 1 << 20;
        let disk = pool
            .make_region(volume, member, Arc::new(NullRecorder))
            .unwrap();
        Store::create(&disk, &region).unwrap();
        let again = pool.region(volume, member, Arc::new(NullRecorder));
        let e = again.err().unwrap();
        assert!(e.to_string().contains("in use"), "{e}");
        drop(disk);
        let found = pool.regions().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].region.as_ref().unwrap(), &region);
        pool.region(volume, member, Arc::new(NullRecorder)).unwrap();
    }

    #[test]
    fn what_is_thrown_away_is_gone_also_after_a_crash_half_way() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::create(&dir.path().join("pool")).unwrap();
        let (volume, member) = (VolumeId::random(), MemberId::random());
        let make = || {
            let mut region = Region::new(volume, member, 1000);
            region.log_bytes = 1 << 20;
            let recorder = Arc::new(NullRecorder);
            let disk = pool.make_region(volume, member, recorder).unwrap();
            Store::create(&disk, &region).unwrap();
        };
        make();
        assert!(pool.discard(volume, member).unwrap());
        assert!(!pool.discard(volume, member).unwrap(), "a second time");
        assert!(pool.regions().unwrap().is_empty());
        assert!(!dir.path().join("pool").join(volume.to_string()).exists());

        make();
        let at = pool.region_dir(volume, member);
        std::fs::rename(&at, at.with_file_name(format!("{member}{GONE}"))).unwrap();
        assert!(pool.regions().unwrap().is_empty());
        assert_eq!(pool.clear_discarded().unwrap(), 1);
        assert_eq!(std::fs::read_dir(pool.dir()).unwrap().count(), 1, "its id");
    }
}
