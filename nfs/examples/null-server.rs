//! Serves a file system without files, to measure everything but a file system:
//! `cargo run --release -p trivet-nfs --example null-server -- 127.0.0.1:20490`, and in another
//! terminal `trivet bench nfs nfs://127.0.0.1:20490/vm`.

#[path = "../tests/common/null.rs"]
#[allow(dead_code)]
mod null;

use std::sync::Arc;

use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::VolumeInfo;
use trivet_replica::volume::VolumeId;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen = std::env::args().nth(1).unwrap_or("127.0.0.1:20490".into());
    let config = NfsConfig {
        listen: listen.parse()?,
        discovery: Discovery::None,
        exports: vec![ExportSpec {
            name: "/vm".into(),
            directory: "/".into(),
            clients: vec!["127.0.0.0/8(rw,no_root_squash,insecure)".into()],
        }],
        limits: PoolLimits::default(),
        drop_locks_after: None,
    };
    let info = VolumeInfo {
        id: VolumeId::from_bytes([7; 16]),
        blocks: 1,
        generation: 1,
        losses: 0,
    };
    let server = NfsServer::start(config, null::NullFs::new(), Arc::new(move || info))?;
    println!("{}", server.mount_line(server.address().ip()));
    loop {
        std::thread::park();
    }
}
