//! Mounts a file system that lives in one plain file: `plain FILE MEGABYTES DIRECTORY`. For trying
//! the file system without replicas, and for measuring what they add. Ends when unmounted.

use std::path::Path;
use std::sync::Arc;

use trivet_fs::fuse::{FuseOptions, mount};
use trivet_fs::{Fs, MkfsOptions, Settings, mkfs};
use trivet_replica::volume::{PlainVolume, Volume, VolumeId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, file, megabytes, dir] = &args[..] else {
        return Err("usage: plain FILE MEGABYTES DIRECTORY".into());
    };
    let (path, new) = (Path::new(file), !Path::new(file).exists());
    let blocks = megabytes.parse::<u64>()? * 256;
    let id = VolumeId::from_bytes([1; 16]);
    let volume: Arc<dyn Volume> = Arc::new(PlainVolume::open(path, id, blocks)?);
    if new {
        mkfs(&*volume, &MkfsOptions::default())?;
    }
    let fs = Fs::mount(volume, Settings::default())?;
    let mounted = mount(fs.clone(), Path::new(dir), &FuseOptions::default())?;
    println!("mounted on {dir}; unmount it to end");
    while mounted.is_alive() {
        // The kernel tells nobody who waits; late by this much hurts nobody.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    mounted.unmount()?;
    fs.close()?;
    Ok(())
}
