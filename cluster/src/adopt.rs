//! Taking a volume that was made on one machine ([`crate::Embedded`]) into a cluster.
//!
//! Its three regions stay where they are, and its identity stays what it is; nothing is copied.
//! What changes is what its record calls the nodes of its members, and the name of its
//! description, so that nobody opens it as before. From then on nodes of these names serve the
//! regions, and replicas move to other hosts like those of any volume.
//!
//! A crash leaves a volume that opens as before, with some names changed or all; the same call
//! again goes on.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use trivet_protocol::{MemberId, VolumeId};

use crate::embedded::{Embedded, Options};
use crate::error::{ClusterError, Result};
use crate::volume_file::{FILE, VolumeFile, sync_parent};

/// Appended to the name of the description.
const ADOPTED: &str = ".adopted";
/// All three are level within this time, or it is not the moment.
const LEVEL: Duration = Duration::from_secs(30);

/// A volume that can be taken over.
#[derive(Clone, Debug)]
pub struct Adoptable {
    dir: PathBuf,
    /// Its identity.
    pub volume: VolumeId,
    /// Its replicas and the directories of their pools, absolute.
    pub replicas: Vec<(MemberId, PathBuf)>,
}

impl Adoptable {
    /// Looks at the description in `dir`, and at nothing else.
    ///
    /// # Errors
    /// There is none, or it is not one of three replicas.
    pub fn look(dir: &Path) -> Result<Adoptable> {
        let io = ClusterError::io("find", dir);
        let dir = dir.canonicalize().map_err(io)?;
        let path = dir.join(FILE);
        let refused = |why: &str| ClusterError::Adopt {
            dir: dir.clone(),
            why: why.to_owned(),
        };
        let file = VolumeFile::load(&path)?.ok_or_else(|| {
            refused(match path.with_extension("toml.adopted").exists() {
                true => "it was taken over before; its regions are those of a cluster now",
                false => "no `trivet up` has made one there (there is no volume.toml)",
            })
        })?;
        let replicas: Vec<_> = file
            .replicas()
            .map(|p| (p.id, VolumeFile::pool(p, &path)))
            .collect();
        if replicas.len() != 3 || file.member.len() != 3 {
            return Err(refused("it is not one of three replicas"));
        }
        Ok(Adoptable {
            volume: file.volume,
            replicas,
            dir,
        })
    }

    /// Gives the nodes of its members these names, in the order of [`Adoptable::replicas`].
    ///
    /// # Errors
    /// Somebody has it open, not all its replicas are in sync, or a disk fails.
    pub fn rename(&self, nodes: &[String]) -> Result<()> {
        let refused = |why: String| ClusterError::Adopt {
            dir: self.dir.clone(),
            why,
        };
        let embedded = Embedded::open(&self.dir, Options::default())?;
        let deadline = Instant::now() + LEVEL;
        let level = |e: &Embedded| {
            let status = e.status();
            let in_sync = status.members.iter().filter(|m| m.up && m.in_sync).count();
            in_sync == self.replicas.len()
        };
        while !level(&embedded) && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(20));
        }
        let renamed = match level(&embedded) {
            true => self.rename_in(&embedded, nodes),
            false => {
                let told: Vec<_> = embedded
                    .problems()
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                Err(refused(format!(
                    "not all of its replicas are in sync; have `trivet up` run until they are. {}",
                    told.join("; ")
                )))
            }
        };
        let closed = embedded.close();
        renamed.and(closed)
    }

    fn rename_in(&self, embedded: &Embedded, nodes: &[String]) -> Result<()> {
        let volume = embedded.volume();
        for ((member, _), node) in self.replicas.iter().zip(nodes) {
            volume.rename_node(*member, node)?;
        }
        Ok(())
    }

    /// Renames the description: `trivet up` refuses the directory from now on.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(&self) -> Result<()> {
        let path = self.dir.join(FILE);
        let mut adopted = path.clone().into_os_string();
        adopted.push(ADOPTED);
        std::fs::rename(&path, adopted).map_err(ClusterError::io("rename", &path))?;
        sync_parent(&path)
    }
}
