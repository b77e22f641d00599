//! Where `trivet fs` reads from: one region, or an image that `region export` made. Both as a
//! volume that takes no writes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use trivet_downstairs::offline::Reader;
use trivet_fs::{Fs, FsError, Settings};
use trivet_replica::volume::{
    BLOCK_BYTES, Batch, Block, FlushDone, ReadDone, Receipt, SpaceInfo, Ticket, Volume,
    VolumeError, VolumeId, VolumeInfo, check_read,
};

use crate::error::CliError;

/// Which one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// Directory of one replica (`POOL/VOLUME/MEMBER`); no other is needed
    #[arg(long, value_name = "DIR")]
    region: Option<PathBuf>,
    /// A file that `trivet region export` made
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

impl SourceArgs {
    /// The file system in it.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or holds no file system.
    pub fn open(&self) -> Result<Arc<Fs>, CliError> {
        let (volume, path): (Arc<dyn Volume>, _) = match (&self.region, &self.image) {
            (Some(dir), _) => (Arc::new(region(dir)?), dir),
            (None, Some(file)) => (Arc::new(image(file)?), file),
            (None, None) => return Err(CliError::usage("one of --region and --image is needed")),
        };
        Fs::look(volume, Settings::default())
            .map_err(|e| CliError::failed(format_args!("{}: {e}", path.display())))
    }
}

fn region(dir: &Path) -> Result<Offline<Reader>, CliError> {
    let reader = Reader::open(dir).map_err(|e| {
        CliError::failed(format_args!("region {}: {e}", dir.display()))
            .hint("give the directory that has region.toml, and stop whoever serves it")
    })?;
    if !reader.is_sound() {
        tracing::warn!(
            "region {} is damaged or amid a resync: its content may be of several moments; use \
             another replica if there is one",
            dir.display()
        );
    }
    let (id, blocks) = (reader.volume(), reader.blocks());
    Ok(Offline {
        id,
        blocks,
        from: reader,
    })
}

fn image(path: &Path) -> Result<Offline<File>, CliError> {
    let failed =
        |e: std::io::Error| CliError::failed(format_args!("cannot read {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok(Offline {
        id: VolumeId::from_bytes([0; 16]),
        blocks: bytes.div_ceil(BLOCK_BYTES as u64),
        from: file,
    })
}

/// Reads whole blocks.
trait Blocks: Send + Sync {
    fn blocks(&self, first: u64, out: &mut [u8]) -> Result<(), String>;
}

impl Blocks for Reader {
    fn blocks(&self, first: u64, out: &mut [u8]) -> Result<(), String> {
        let count = (out.len() / BLOCK_BYTES) as u32;
        let data = self.read(first, count).map_err(|e| e.to_string())?;
        out.copy_from_slice(&data);
        Ok(())
    }
}

impl Blocks for File {
    fn blocks(&self, first: u64, out: &mut [u8]) -> Result<(), String> {
        let (mut at, mut offset) = (0, first * BLOCK_BYTES as u64);
        while at < out.len() {
            match self.read_at(&mut out[at..], offset) {
                // An image may end within its last block.
                Ok(0) => break,
                Ok(n) => {
                    at += n;
                    offset += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        out[at..].fill(0);
        Ok(())
    }
}

/// A volume of which nobody else knows.
struct Offline<T> {
    id: VolumeId,
    blocks: u64,
    from: T,
}

fn read_only() -> VolumeError {
    VolumeError::BadRequest("it is opened for reading only".into())
}

impl<T: Blocks> Volume for Offline<T> {
    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            id: self.id,
            blocks: self.blocks,
            generation: 0,
            losses: 0,
        }
    }

    fn space(&self) -> SpaceInfo {
        SpaceInfo::default()
    }

    fn holds(&self) -> bool {
        true
    }

    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError> {
        check_read(block, out.len(), self.blocks)?;
        self.from.blocks(block.0, out).map_err(VolumeError::Io)
    }

    fn read_then(&self, block: Block, count: u32, done: ReadDone) {
        let mut out = vec![0; count as usize * BLOCK_BYTES];
        done(self.read(block, &mut out).map(|()| out.into()));
    }

    fn submit(&self, _: Batch) -> Result<Ticket, VolumeError> {
        Err(read_only())
    }

    fn flush_then(&self, upto: Ticket, done: FlushDone) {
        // Nothing was ever taken.
        done(Ok(Receipt::by_flush_path(upto)));
    }

    fn last_ticket(&self) -> Ticket {
        Ticket::default()
    }

    fn grow(&self, _: u64) -> Result<(), VolumeError> {
        Err(read_only())
    }
}

/// A file system's error about a path, for people.
pub fn about(path: &str, e: &FsError) -> CliError {
    CliError::failed(format_args!("{path}: {e}"))
}
