//! One call of any program, by a listed client or a stranger, through decoding and dispatch on a
//! real file system (a small one, made at the start). The first byte chooses program, procedure
//! and caller; `H` in the arguments (0x48 0x48 0x48 0x48) is replaced by the root's handle, which
//! no fuzzer could seal.
#![no_main]

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trivet_fs::{Fs, InodeId, MkfsOptions, Settings, mkfs};
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::Replier;
use trivet_nfs::rpc::message::{Credential, SysCredential, encode_call};
use trivet_nfs::rpc::pool::{Messages, PoolLimits};
use trivet_nfs::xdr::Enc;
use trivet_nfs::{Discovery, NfsConfig, NfsServer};
use trivet_replica::volume::{PlainVolume, Volume, VolumeId};

struct World {
    server: NfsServer,
    programs: Arc<dyn Messages>,
    root: Vec<u8>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("trivet-fuzz-nfs-{}", std::process::id()));
        let id = VolumeId::from_bytes([3; 16]);
        let plain = PlainVolume::open(&path, id, 16_384).unwrap();
        std::fs::remove_file(&path).unwrap();
        let volume: Arc<dyn Volume> = Arc::new(plain);
        mkfs(volume.as_ref(), &MkfsOptions::default()).unwrap();
        let fs = Fs::mount(Arc::clone(&volume), Settings::default()).unwrap();
        let config = NfsConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            discovery: Discovery::None,
            exports: vec![ExportSpec {
                name: "/vm".into(),
                directory: "/".into(),
                clients: vec!["127.0.0.1(rw,no_root_squash)".into()],
            }],
            limits: PoolLimits::default(),
            drop_locks_after: None,
        };
        let server = NfsServer::start(config, fs, Arc::new(move || volume.info())).unwrap();
        let root = server
            .nfs()
            .seal(crc32c::crc32c(b"/vm"), InodeId::ROOT)
            .to_vec();
        let programs = server.programs();
        World {
            server,
            programs,
            root,
        }
    })
}

fuzz_target!(|data: &[u8]| {
    let [which, procedure, xid, args @ ..] = data else {
        return;
    };
    let w = world();
    let (program, version) =
        [(100_003, 3), (100_005, 3), (100_021, 4), (100_024, 1)][usize::from(which & 3)];
    let credential = match which & 4 {
        0 => Credential::None,
        _ => Credential::Sys(SysCredential::default()),
    };
    let mut e = Enc::new();
    let what = (program, version, u32::from(procedure % 26));
    encode_call(&mut e, u32::from(*xid), what, &credential);
    for word in args.chunks(4) {
        match word {
            b"HHHH" => {
                e.opaque(&w.root);
            }
            other => {
                e.raw(other);
            }
        }
    }
    let peer = if which & 8 == 0 {
        "127.0.0.1:700"
    } else {
        "10.0.0.1:700"
    };
    let replier = Replier::nowhere(peer.parse().unwrap(), Arc::new(AtomicU64::new(0)));
    w.programs.message(Bytes::from(e.into_vec()), replier);
    w.programs.turn_ended();
    assert_eq!(w.server.pool().bytes_in_flight(), 0);
});
