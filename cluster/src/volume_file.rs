//! `volume.toml`: identity, size and members of a volume made on this machine, readable by a
//! person.
//!
//! It says whom to expect where, and nothing else: who is a member *now*, who is in sync and how
//! large the volume has grown is in the record on the members, and the file never overrides it.
//! Written durably under another name first: a crash leaves no file, the file of a creation under
//! way ([`CREATING`]), or the whole file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trivet_protocol::limits::{MAX_IN_SYNC, MAX_MEMBERS, MAX_VOLUME_BLOCKS};
use trivet_protocol::{BLOCK_BYTES, MemberId, MemberKind, VolumeId};

use crate::error::{ClusterError, Result};

/// Its usual name.
pub const FILE: &str = "volume.toml";
/// Appended to its name while the regions are being made.
pub const CREATING: &str = ".creating";
/// Version of the format.
const FORMAT: u32 = 1;
/// Bytes of the file, at most.
const MAX_FILE: u64 = 16 * 1024;

/// One replica or witness and where it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Who.
    pub id: MemberId,
    /// Name of its node.
    pub node: String,
    /// Its pool's directory, relative to the file's own unless absolute.
    pub pool: PathBuf,
    /// Replica, unless said otherwise.
    #[serde(default = "replica", skip_serializing_if = "is_replica")]
    pub kind: MemberKind,
}

fn replica() -> MemberKind {
    MemberKind::Replica
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn is_replica(kind: &MemberKind) -> bool {
    *kind == MemberKind::Replica
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Format version.
    format: u32,
    /// Identity.
    pub volume: VolumeId,
    /// Size in blocks at creation.
    pub blocks: u64,
    /// The members that it was made with.
    pub member: Vec<Place>,
}

impl VolumeFile {
    /// A new volume of `bytes` (rounded up to whole blocks) in these pools, with fresh
    /// identities. `pools` are (name of the node, directory).
    ///
    /// # Errors
    /// The size is impossible.
    pub fn new(bytes: u64, pools: impl IntoIterator<Item = (String, PathBuf)>) -> Result<Self> {
        let blocks = bytes.div_ceil(BLOCK_BYTES as u64);
        if blocks == 0 || blocks > MAX_VOLUME_BLOCKS {
            let why = "it must be at least one block, and at most 2^38 blocks of 4 KiB";
            return Err(ClusterError::Size { bytes, why });
        }
        let member = pools.into_iter().map(|(node, pool)| Place {
            id: MemberId::random(),
            node,
            pool,
            kind: MemberKind::Replica,
        });
        Ok(VolumeFile {
            format: FORMAT,
            volume: VolumeId::random(),
            blocks,
            member: member.collect(),
        })
    }

    /// The same with a witness on another node.
    #[must_use]
    pub fn with_witness(mut self, node: String, pool: PathBuf) -> Self {
        self.member.push(Place {
            id: MemberId::random(),
            node,
            pool,
            kind: MemberKind::Witness,
        });
        self
    }

    /// The members that keep data.
    pub fn replicas(&self) -> impl Iterator<Item = &Place> {
        self.member.iter().filter(|p| p.kind == MemberKind::Replica)
    }

    /// The directory of a member's pool, for a volume described in `file`.
    pub fn pool(place: &Place, file: &Path) -> PathBuf {
        file.parent().unwrap_or(Path::new("")).join(&place.pool)
    }

    /// Reads it; `None` if there is no such file.
    ///
    /// # Errors
    /// It cannot be read or makes no sense.
    pub fn load(path: &Path) -> Result<Option<VolumeFile>> {
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => file
                .take(MAX_FILE + 1)
                .read_to_string(&mut text)
                .map_err(ClusterError::io("read", path))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ClusterError::io("open", path)(e)),
        };
        let bad = |why: String| ClusterError::VolumeFile {
            path: path.to_path_buf(),
            why,
        };
        if text.len() as u64 > MAX_FILE {
            return Err(bad(format!("it is larger than {MAX_FILE} bytes")));
        }
        let file: VolumeFile = toml::from_str(&text).map_err(|e| bad(e.message().to_owned()))?;
        match file.problem() {
            Some(why) => Err(bad(why)),
            None => Ok(Some(file)),
        }
    }

    fn problem(&self) -> Option<String> {
        let replicas = self.replicas().count();
        if self.format != FORMAT {
            let format = self.format;
            Some(format!(
                "its format is {format}, this program knows {FORMAT}"
            ))
        } else if self.blocks == 0 || self.blocks > MAX_VOLUME_BLOCKS {
            Some(format!("it gives the volume {} blocks", self.blocks))
        } else if replicas == 0 || replicas > MAX_IN_SYNC {
            Some(format!(
                "it lists {replicas} replicas; 1 to {MAX_IN_SYNC} are possible"
            ))
        } else if self.member.len() > MAX_MEMBERS {
            Some(format!(
                "it lists {} members; {MAX_MEMBERS} are possible",
                self.member.len()
            ))
        } else {
            None
        }
    }

    /// Writes it durably, replacing what was there.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let body = toml::to_string(self).map_err(|e| ClusterError::VolumeFile {
            path: path.to_path_buf(),
            why: e.to_string(),
        })?;
        let text = format!(
            "# What this Trivet volume was made of. Keep it: without it a lost replica\n\
             # cannot be told from one that never was.\n{body}"
        );
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let mut file = File::create(&temporary).map_err(ClusterError::io("create", &temporary))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(ClusterError::io("write", path))?;
        sync_parent(path)
    }
}

/// Makes the name of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(ClusterError::io("sync", parent))
}
