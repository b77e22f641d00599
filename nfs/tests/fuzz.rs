//! Random messages through decoding and dispatch of every program, on a real file system and
//! without sockets: no panic, no hang, and the file system is whole afterwards.
//!
//! `SEED=n FUZZ_SECONDS=n cargo test -p trivet-nfs --test fuzz -- --nocapture` replays or prolongs.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::real::Disk;
use common::{EXPORT, serve};
use trivet_fs::{InodeId, Vfs};
use trivet_nfs::portmap::Portmap;
use trivet_nfs::rpc::message::{Credential, SysCredential, encode_call};
use trivet_nfs::rpc::pool::Messages;
use trivet_nfs::rpc::{Program, Programs, Replier};
use trivet_nfs::xdr::Enc;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Programs with their version and number of procedures.
const PROGRAMS: [(u32, u32, u32); 5] = [
    (100_003, 3, 23),
    (100_005, 3, 7),
    (100_021, 4, 25),
    (100_024, 1, 8),
    (100_000, 4, 14),
];

/// Arguments that resemble real ones: handles, names, numbers at the edges, in any order.
fn arguments(r: &mut Random, e: &mut Enc, handles: &[Vec<u8>]) {
    for _ in 0..r.below(14) {
        match r.below(8) {
            0..=2 => {
                e.opaque(&handles[r.below(handles.len())].clone());
            }
            3 => {
                let name = r.pick::<&[u8]>(&[b"a", b"b", b"..", b".", b"", b"c/d", &[b'x'; 256]]);
                e.opaque(name);
            }
            4 => {
                let n = r.pick(&[0, 1, 2, 4096, 1 << 63, u64::MAX, u64::MAX - 1]);
                e.u64(n);
            }
            5 => {
                let n = r.below(9000);
                e.opaque(&vec![n as u8; n]);
            }
            _ => {
                let any = r.next();
                let n = r.pick(&[0, 0, 1, 1, 2, 3, 7, 4096, 1 << 20, u32::MAX, any]);
                e.u32(n);
            }
        }
    }
}

fn message(r: &mut Random, handles: &[Vec<u8>]) -> Vec<u8> {
    let mut e = Enc::new();
    let (program, version, procedures) = r.pick(&PROGRAMS);
    let procedure = r.next() % procedures;
    let credential = match r.below(3) {
        0 => Credential::None,
        _ => Credential::Sys(SysCredential {
            machine: b"fuzz".to_vec(),
            uid: r.pick(&[0, 1, 1000, u32::MAX]),
            ..SysCredential::default()
        }),
    };
    let xid = r.next() % 64;
    encode_call(&mut e, xid, (program, version, procedure), &credential);
    arguments(r, &mut e, handles);
    let mut bytes = e.into_vec();
    if r.below(4) == 0 {
        let at = r.below(bytes.len());
        bytes[at] ^= 1 << r.below(8);
    }
    if r.below(6) == 0 {
        bytes.truncate(r.below(bytes.len() + 1));
    }
    bytes
}

#[test]
fn no_message_breaks_anything() {
    let number = |name: &str| std::env::var(name).ok().map(|s| s.parse::<u64>().unwrap());
    let seed = number("SEED").unwrap_or_else(|| std::process::id().into());
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(3));
    println!("SEED={seed}");
    let disk = Disk::new();
    let fs = disk.mount();
    let server = serve(fs.clone());
    let export = crc32c::crc32c(EXPORT.as_bytes());
    let root = server.nfs().seal(export, InodeId::ROOT).to_vec();
    let stale = InodeId {
        ino: trivet_fs::Ino(2),
        generation: 1,
    };
    let handles = vec![
        root.clone(),
        root,
        server.nfs().seal(export, stale).to_vec(),
        vec![0; 32],
        vec![],
        vec![1; 65],
    ];
    let portmap: Vec<Arc<dyn Program>> = vec![Arc::new(Portmap::new(Vec::new(), true))];
    let portmap = Programs::new(portmap, Arc::new(|_| true));
    let main = server.programs();
    let (replies, mut sent) = (Arc::new(AtomicU64::new(0)), 0u64);
    let mut r = Random(seed);
    let begin = Instant::now();
    while begin.elapsed() < time {
        let bytes = Bytes::from(message(&mut r, &handles));
        let peer = r.pick(&["127.0.0.1:700", "127.0.0.1:7000", "10.0.0.1:700"]);
        let replier = || Replier::nowhere(peer.parse().unwrap(), Arc::clone(&replies));
        portmap.message(bytes.clone(), replier());
        main.message(bytes, replier());
        main.turn_ended();
        sent += 1;
    }
    fs.flush(fs.last_mark()).unwrap();
    println!(
        "{sent} messages, {} replies",
        replies.load(Ordering::Relaxed)
    );
    assert!(replies.load(Ordering::Relaxed) > sent / 2);
    assert_eq!(server.pool().bytes_in_flight(), 0);
}
