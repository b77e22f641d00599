//! Ours beside ours: two new volumes, the same calls, and not one difference but in free space.
//! `SEED=n` replays.

// Tests may fail by panic.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use trivet_differential::run::{Options, compare};
use trivet_fs::{Fs, MkfsOptions, Settings, mkfs};
use trivet_nfs::client::nfs::Url;
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::volume::{PlainVolume, Volume, VolumeId};

/// 256 MiB, in a file that is gone with the process.
fn server() -> NfsServer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let plain = PlainVolume::open(&path, VolumeId::from_bytes([5; 16]), 65_536).unwrap();
    let volume: Arc<dyn Volume> = Arc::new(plain);
    mkfs(volume.as_ref(), &MkfsOptions::default()).unwrap();
    let fs = Fs::mount(Arc::clone(&volume), Settings::default()).unwrap();
    let config = NfsConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        discovery: Discovery::None,
        exports: vec![ExportSpec {
            name: "/vm".into(),
            directory: "/".into(),
            clients: vec!["127.0.0.1(rw,no_root_squash,insecure)".into()],
        }],
        limits: PoolLimits::default(),
        drop_locks_after: None,
    };
    NfsServer::start(config, fs, Arc::new(move || volume.info())).unwrap()
}

#[test]
fn two_servers_of_ours_give_the_same_answers() {
    let seed = match std::env::var("SEED") {
        Ok(s) => s.parse().unwrap(),
        Err(_) => std::process::id().into(),
    };
    println!("SEED={seed}");
    let (a, b) = (server(), server());
    let url = |s: &NfsServer| -> Url { format!("nfs://{}/vm", s.address()).parse().unwrap() };
    let options = Options {
        calls: 3_000,
        seed,
        most: 20,
        trace: false,
    };
    let report = compare(&url(&a), &url(&b), &options).unwrap();
    assert_eq!(report.calls, 3_000);
    // Free space may differ for a moment: what was removed is given back a little later.
    let known = report.explained.keys().all(|id| *id == "limits");
    assert!(known, "{}", report.text(true));
    assert!(report.unexplained.is_empty(), "{}", report.text(true));
    // The calls reach something: each procedure, and most of them with success at times.
    assert!(report.by_procedure.len() >= 20);
    assert!(
        report
            .by_procedure
            .values()
            .filter(|(_, ok)| *ok > 0)
            .count()
            >= 19
    );
}
