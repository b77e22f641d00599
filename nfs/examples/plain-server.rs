//! Serves a file system on one plain file, for tests with real clients before (and without) a
//! replicated volume: `plain-server FILE MIB ADDRESS:PORT [discover] [CLIENT...]`.
//! Clients are as in exports(5); without any, 127.0.0.0/8 may do everything. Ends on end of input.

use std::path::Path;
use std::sync::Arc;

use trivet_fs::{Fs, MkfsOptions, Settings, mkfs};
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::volume::{PlainVolume, Volume, VolumeId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("FILE is missing")?;
    let mib: u64 = args.next().ok_or("MIB is missing")?.parse()?;
    let listen = args.next().ok_or("ADDRESS:PORT is missing")?.parse()?;
    let mut clients: Vec<String> = args.collect();
    let discovery = match clients.first().map(String::as_str) {
        Some("discover") => {
            clients.remove(0);
            Discovery::Auto
        }
        _ => Discovery::None,
    };
    if clients.is_empty() {
        clients.push("127.0.0.0/8(rw,no_root_squash,insecure)".into());
    }
    let new = !Path::new(&file).exists();
    let id = VolumeId::from_bytes([9; 16]);
    let plain = PlainVolume::open(Path::new(&file), id, mib * 256)?;
    let volume: Arc<dyn Volume> = Arc::new(plain);
    if new {
        mkfs(volume.as_ref(), &MkfsOptions::default())?;
    }
    let fs = Fs::mount(Arc::clone(&volume), Settings::default())?;
    let config = NfsConfig {
        listen,
        discovery,
        exports: vec![ExportSpec {
            name: "/vm".into(),
            directory: "/".into(),
            clients,
        }],
        limits: PoolLimits::default(),
        drop_locks_after: None,
    };
    // A plain file has no generations; each start of this program is one.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let start = now.as_nanos() as u64;
    let identity = move || {
        let mut info = volume.info();
        info.generation = start;
        info
    };
    let mut server = NfsServer::start(config, Arc::clone(&fs) as _, Arc::new(identity))?;
    println!("{}", server.mount_line(server.address().ip()));
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.stop();
    fs.close()?;
    Ok(())
}
