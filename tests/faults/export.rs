//! Disks that hang beneath an export.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trivet_fs::{Fs, MkfsOptions, Settings, Vfs, mkfs};
use trivet_nfs::client::nfs::{Fh, NfsClient, NfsResult, Url};
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::Volume;
use trivet_replica::upstairs::Notice;

use crate::world::{Between, World, wait_for};

/// Two leases and a half.
const HANG: Duration = Duration::from_secs(5);
/// What Proxmox VE gives a storage to tell its size before it is shown as unknown.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients of each kind, more together than the server has threads.
const CLIENTS: usize = 16;

fn serve(fs: Arc<dyn Vfs>, volume: Arc<dyn Volume>) -> NfsServer {
    let config = NfsConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        discovery: Discovery::None,
        exports: vec![ExportSpec {
            name: "/vm".into(),
            directory: "/".into(),
            clients: vec!["127.0.0.0/8(rw,no_root_squash,insecure)".into()],
        }],
        limits: PoolLimits::default(),
        drop_locks_after: None,
    };
    NfsServer::start(config, fs, Arc::new(move || volume.info())).unwrap()
}

/// One more change by client `i`: a durable small write, a large write and COMMIT, or a new name
/// and its end.
fn change(c: &mut NfsClient, fh: &[u8], i: usize, n: u64) -> NfsResult<()> {
    match i % 3 {
        0 => c.write(fh, n % 64 * 4096, &[n as u8; 4096], 2).map(|_| ()),
        1 => {
            c.write(fh, 0, &vec![n as u8; 256 << 10], 0)?;
            c.commit(fh).map(|_| ())
        }
        _ => {
            let (root, name) = (c.root.clone(), format!("new-{i}"));
            c.create(&root, name.as_bytes(), None)?;
            c.remove(&root, name.as_bytes())
        }
    }
}

/// Everything that `df` and a mount ask for; the longest that one of them took.
fn ask(c: &mut NfsClient, root: &Fh, file: &Fh) -> Duration {
    let mut longest = Duration::ZERO;
    for (procedure, name) in [
        (18, "FSSTAT"),
        (19, "FSINFO"),
        (20, "PATHCONF"),
        (1, "GETATTR"),
    ] {
        for of in [root, file] {
            let began = Instant::now();
            c.call(procedure, name, |e| {
                e.opaque(of);
            })
            .unwrap();
            assert!(began.elapsed() < PATIENCE, "{name} {:?}", began.elapsed());
            longest = longest.max(began.elapsed());
        }
    }
    longest
}

/// The small questions share threads and locks with changes that wait.
#[test]
fn while_disks_hang_an_export_tells_its_size() {
    let Some(world) = World::new("export", Between::Nothing) else {
        return;
    };
    // Given an export with clients that write, create and remove without a pause.
    let Ok(attached) = Arc::try_unwrap(world.attach()) else {
        unreachable!("nobody else has it");
    };
    let (volume, notices) = attached.apart();
    mkfs(&*volume, &MkfsOptions::default()).unwrap();
    let fs = Fs::mount(volume.clone(), Settings::default()).unwrap();
    let server = serve(fs, volume.clone());
    let url: Url = format!("nfs://{}/vm", server.address()).parse().unwrap();
    let mut c = NfsClient::mount(&url, false).unwrap();
    let root = c.root.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut files = Vec::new();
    let clients: Vec<_> = (0..3 * CLIENTS)
        .map(|i| {
            let fh = c
                .create(&root, format!("file-{i}").as_bytes(), None)
                .unwrap();
            files.push(fh.clone());
            let (url, stop, done) = (url.clone(), stop.clone(), done.clone());
            std::thread::spawn(move || {
                let mut c = NfsClient::mount(&url, false).unwrap();
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    change(&mut c, &fh, i, n).unwrap();
                    n += 1;
                    done.fetch_add(1, Ordering::AcqRel);
                }
            })
        })
        .collect();
    wait_for("some changes", || done.load(Ordering::Acquire) > 500);

    // When the disks of two replicas hang in every sync, for longer than two leases...
    world.disk(0).rule("hang sync").unwrap();
    world.disk(1).rule("hang sync").unwrap();
    wait_for("all are held up", || {
        let before = done.load(Ordering::Acquire);
        std::thread::park_timeout(Duration::from_millis(500));
        done.load(Ordering::Acquire) == before
    });
    let held_up = done.load(Ordering::Acquire);
    let began = Instant::now();
    let (mut asked, mut longest) = (0, Duration::ZERO);
    while began.elapsed() < HANG {
        // ... what a mount asks is answered, of what changes, too.
        for file in &files {
            longest = longest.max(ask(&mut c, &root, file));
            asked += 1;
        }
    }
    assert_eq!(done.load(Ordering::Acquire), held_up);
    assert!(!notices.lock().unwrap().contains(&Notice::LeaseLapsed));
    for i in 0..2 {
        world.disk(i).clear();
        world.disk(i).release();
    }

    // Then all go on, and none of them had an error.
    wait_for("more changes", || {
        done.load(Ordering::Acquire) > held_up + 500
    });
    println!("{asked} rounds of questions while hung, the slowest answer {longest:?}");
    stop.store(true, Ordering::Release);
    for client in clients {
        client.join().unwrap();
    }
    drop(server);
    volume.hand_back().unwrap();
}
