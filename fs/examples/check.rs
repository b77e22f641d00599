//! Checks a file system that lives in one plain file: `check FILE`.

use std::path::Path;

use trivet_replica::volume::{PlainVolume, VolumeId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: check FILE")?;
    let id = VolumeId::from_bytes([1; 16]);
    let volume = PlainVolume::open(Path::new(&file), id, 1)?;
    let report = trivet_fs::fsck(&volume)?;
    println!("{report}");
    match report.is_clean() {
        true => Ok(()),
        false => Err("the file system is damaged".into()),
    }
}
