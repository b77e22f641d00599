//! What the tests of the server share: a server of their own on a loopback port.
// Not every test uses everything; a test may fail by panic.
#![allow(dead_code, clippy::unwrap_used)]

pub mod null;
pub mod real;

use std::sync::Arc;

use trivet_fs::Vfs;
use trivet_nfs::client::nfs::Url;
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::VolumeInfo;
use trivet_replica::volume::VolumeId;

pub const EXPORT: &str = "/vm";

pub fn export(name: &str, directory: &str, clients: &[&str]) -> ExportSpec {
    ExportSpec {
        name: name.into(),
        directory: directory.into(),
        clients: clients.iter().map(|c| (*c).into()).collect(),
    }
}

pub fn config(exports: Vec<ExportSpec>) -> NfsConfig {
    NfsConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        discovery: Discovery::None,
        exports,
        limits: PoolLimits::default(),
        drop_locks_after: None,
    }
}

pub fn info(generation: u64, losses: u64) -> VolumeInfo {
    VolumeInfo {
        id: VolumeId::from_bytes([7; 16]),
        blocks: 1 << 20,
        generation,
        losses,
    }
}

pub fn serve(fs: Arc<dyn Vfs>) -> NfsServer {
    let exports = vec![export(
        EXPORT,
        "/",
        &["127.0.0.0/8(rw,no_root_squash,insecure)"],
    )];
    serve_with(config(exports), fs)
}

pub fn serve_with(config: NfsConfig, fs: Arc<dyn Vfs>) -> NfsServer {
    NfsServer::start(config, fs, Arc::new(|| info(1, 0))).unwrap()
}

pub fn url(server: &NfsServer, path: &str) -> Url {
    format!("nfs://{}{path}", server.address()).parse().unwrap()
}
