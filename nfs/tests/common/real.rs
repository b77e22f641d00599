//! A real file system on a plain file, which can be closed and opened again as after a restart.

use std::sync::Arc;

use trivet_fs::{Fs, MkfsOptions, Settings, mkfs};
use trivet_replica::volume::{PlainVolume, Volume, VolumeId};

/// Blocks of the volume: 512 MiB, sparse.
const BLOCKS: u64 = 131_072;

/// See the module.
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    pub fn new() -> Disk {
        let disk = Disk {
            dir: tempfile::tempdir().unwrap(),
        };
        mkfs(disk.volume().as_ref(), &MkfsOptions::default()).unwrap();
        disk
    }

    fn volume(&self) -> Arc<PlainVolume> {
        let path = self.dir.path().join("volume");
        Arc::new(PlainVolume::open(&path, VolumeId::from_bytes([7; 16]), BLOCKS).unwrap())
    }

    pub fn mount(&self) -> Arc<Fs> {
        let volume: Arc<dyn Volume> = self.volume();
        Fs::mount(volume, Settings::default()).unwrap()
    }
}
