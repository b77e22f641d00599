//! A region's identity: `region.toml`, written once at creation and readable by a person.
//!
//! What changes afterwards is in the head. A crash during creation leaves a directory without
//! `region.toml`, which no opening takes for a region: the file is written last.

use serde::{Deserialize, Serialize};
use trivet_protocol::limits::MAX_VOLUME_BLOCKS;
use trivet_protocol::{MemberId, VolumeId};

use crate::disk::Disk;
use crate::error::{Result, StoreError};

/// Version of the on-disk format that this code writes and reads.
pub const FORMAT: u32 = 1;
/// Name of the identity file.
pub const FILE: &str = "region.toml";
/// Bytes of the identity file, at most.
const MAX_FILE: u64 = 16 * 1024;

/// Blocks in an extent by default: 64 MiB of data.
pub const DEFAULT_EXTENT_BLOCKS: u32 = 16_384;
/// Bytes of log by default.
pub const DEFAULT_LOG_BYTES: u64 = 128 << 20;
/// Blocks that an extent may have.
pub const EXTENT_BLOCKS: std::ops::RangeInclusive<u32> = 16..=262_144;
/// Bytes that a log may have; at least a few of the largest records.
pub const LOG_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=16 << 30;

/// Who a region is and how it is laid out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Format version.
    pub format: u32,
    /// Names of features that a reader must know; none exist yet.
    #[serde(default)]
    pub features: Vec<String>,
    /// The volume that it is a replica of.
    pub volume: VolumeId,
    /// Its own identity among the members.
    pub member: MemberId,
    /// Size of the volume in blocks at creation; grown sizes are in the head.
    pub blocks: u64,
    /// Blocks of data in one extent file.
    pub extent_blocks: u32,
    /// Bytes in the log's ring.
    pub log_bytes: u64,
    /// Exact length in bytes of the file that it was imported from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_bytes: Option<u64>,
}

impl Region {
    /// A region with the default layout.
    pub fn new(volume: VolumeId, member: MemberId, blocks: u64) -> Region {
        Region {
            format: FORMAT,
            features: Vec::new(),
            volume,
            member,
            blocks,
            extent_blocks: DEFAULT_EXTENT_BLOCKS,
            log_bytes: DEFAULT_LOG_BYTES,
            imported_bytes: None,
        }
    }

    /// What every checksum of this region's files starts from: files of another region, and data
    /// that a guest wrote to look like ours, do not verify.
    pub fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.member.bytes()), &self.volume.bytes())
    }

    /// Refuses what this code cannot read or what cannot be.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(&self) -> Result<()> {
        let why = if self.format > FORMAT {
            format!(
                "its format {} is newer than this program's {FORMAT}; use a newer trivet",
                self.format
            )
        } else if self.format == 0 {
            "its format is 0, which never existed".to_owned()
        } else if let Some(f) = self.features.first() {
            format!("it needs the feature \"{f}\" that this program lacks; use a newer trivet")
        } else if self.blocks == 0 || self.blocks > MAX_VOLUME_BLOCKS {
            format!(
                "{} blocks; 1 to {MAX_VOLUME_BLOCKS} are possible",
                self.blocks
            )
        } else if !EXTENT_BLOCKS.contains(&self.extent_blocks) {
            format!(
                "{} blocks per extent; {EXTENT_BLOCKS:?} are possible",
                self.extent_blocks
            )
        } else if !LOG_BYTES.contains(&self.log_bytes) || !self.log_bytes.is_multiple_of(4096) {
            format!(
                "a log of {} bytes; {LOG_BYTES:?} in steps of 4096 are possible",
                self.log_bytes
            )
        } else {
            return Ok(());
        };
        Err(foreign(why))
    }

    /// Reads the identity of the region in `disk`.
    ///
    /// # Errors
    /// There is none, it is not readable, or it is not for this program.
    pub fn load(disk: &dyn Disk) -> Result<Region> {
        let file = disk
            .open(FILE)
            .map_err(|e| StoreError::io("open", FILE, e))?;
        let size = file.size().map_err(|e| StoreError::io("read", FILE, e))?;
        if size > MAX_FILE {
            return Err(foreign(format!(
                "it has {size} bytes; at most {MAX_FILE} are sensible"
            )));
        }
        let mut raw = vec![0; size as usize];
        file.read_at(&mut raw, 0)
            .map_err(|e| StoreError::io("read", FILE, e))?;
        let text = std::str::from_utf8(&raw).map_err(|e| foreign(e.to_string()))?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        // The version first: a newer format may have fields that this program does not know.
        let version: Version = toml::from_str(text).map_err(|e| foreign(e.to_string()))?;
        if version.format > FORMAT {
            return Err(foreign(format!(
                "its format {} is newer than this program's {FORMAT}; use a newer trivet",
                version.format
            )));
        }
        let region: Region = toml::from_str(text).map_err(|e| foreign(e.to_string()))?;
        region.check()?;
        Ok(region)
    }

    /// Writes the identity durably; the last step of creating a region.
    ///
    /// # Errors
    /// There is one already, or the disk fails.
    pub(crate) fn save(&self, disk: &dyn Disk) -> Result<()> {
        let body = toml::to_string(self).map_err(|e| foreign(e.to_string()))?;
        let text = format!("# A replica of a Trivet volume. Written once; do not edit.\n{body}");
        let temporary = "region.toml.new";
        let file = disk
            .create(temporary)
            .map_err(|e| StoreError::io("create", temporary, e))?;
        file.write_all_at(text.as_bytes(), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.rename(temporary, FILE))
            .and_then(|()| disk.sync_dir(""))
            .map_err(|e| StoreError::io("write", FILE, e))
    }
}

fn foreign(why: impl Into<String>) -> StoreError {
    StoreError::Foreign {
        what: FILE.to_owned(),
        why: why.into(),
    }
}
