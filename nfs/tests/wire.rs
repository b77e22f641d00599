//! RPC, MOUNT and hostile input, against a server without files.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::null::{HELD_OFFSET, NullFs};
use common::{EXPORT, config, export, serve, serve_with, url};
use trivet_fs::STREAM;
use trivet_nfs::NfsServer;
use trivet_nfs::client::nfs::{Fh, NfsClient, get_post, mount, put_sattr, put_write};
use trivet_nfs::client::rpc::{ClientError, RpcClient, next_xid};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::rpc::message::{Credential, decode_reply};
use trivet_nfs::xdr::Enc;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Number of the program MOUNT.
const MOUNT: u32 = 100_005;

#[test]
fn an_export_is_mounted_read_and_written() {
    let server = serve(NullFs::new());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let (fh, attr) = c.lookup(&root, b"disk").unwrap();
    assert_eq!(attr.unwrap().kind, 1);
    let (data, eof) = c.read(&fh, 4096, 70_001).unwrap();
    assert_eq!((data.len(), eof), (70_001, false));
    let (n, committed, verifier) = c.write(&fh, 0, &[7; 5001], 0).unwrap();
    assert_eq!((n, committed), (5001, 0));
    let (_, committed, again) = c.write(&fh, 0, &[7; 1 << 20], 1).unwrap();
    assert_eq!((committed, again), (2, verifier));
    assert_eq!(c.commit(&fh).unwrap(), verifier);
}

/// A server, a client that mounted it, and a file there.
fn with_disk() -> (Arc<NullFs>, NfsServer, NfsClient, Fh) {
    let fs = NullFs::new();
    let server = serve(fs.clone());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let (fh, _) = c.lookup(&root, b"disk").unwrap();
    (fs, server, c, fh)
}

#[test]
fn a_write_that_waits_holds_up_nothing_else_on_its_connection() {
    let (fs, server, mut c, fh) = with_disk();
    let held = fs.hold.lock().unwrap();
    let (slow, quick) = (next_xid(), next_xid());
    let put = |e: &mut Enc| put_write(e, &fh, HELD_OFFSET, &[1; 4096], 0);
    c.rpc.send(slow, (PROGRAM, 3, 7), put).unwrap();
    let get = |e: &mut Enc| {
        e.opaque(&fh);
    };
    c.rpc.send(quick, (PROGRAM, 3, 1), get).unwrap();
    let (first, ok) = decode_reply(&mut c.rpc.receive().unwrap()).unwrap();
    assert_eq!((first, ok), (quick, Ok(())));
    drop(held);
    let (second, _) = decode_reply(&mut c.rpc.receive().unwrap()).unwrap();
    assert_eq!(second, slow);
    assert!(server.pool().counters().turns_taken.load(Ordering::Relaxed) >= 1);
}

/// More writes wait than there are threads: attributes are answered all the same.
#[test]
fn while_every_write_waits_questions_are_answered() {
    let (fs, _server, mut c, fh) = with_disk();
    let held = fs.hold.lock().unwrap();
    for _ in 0..200 {
        let put = |e: &mut Enc| put_write(e, &fh, HELD_OFFSET, &[1; 512], 2);
        c.rpc.send(next_xid(), (PROGRAM, 3, 7), put).unwrap();
    }
    let begin = Instant::now();
    let quick = next_xid();
    let get = |e: &mut Enc| {
        e.opaque(&fh);
    };
    c.rpc.send(quick, (PROGRAM, 3, 18), get).unwrap();
    let (first, _) = decode_reply(&mut c.rpc.receive().unwrap()).unwrap();
    assert_eq!(first, quick);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "FSSTAT within 2 s"
    );
    drop(held);
    for _ in 0..200 {
        c.rpc.receive().unwrap();
    }
}

/// More large writes wait than may be inside: small ones and COMMIT are answered all the same.
#[test]
fn small_writes_do_not_wait_behind_large_ones() {
    let (fs, _server, mut c, fh) = with_disk();
    let held = fs.hold.lock().unwrap();
    for _ in 0..40 {
        let put = |e: &mut Enc| put_write(e, &fh, HELD_OFFSET, &vec![1; STREAM], 0);
        c.rpc.send(next_xid(), (PROGRAM, 3, 7), put).unwrap();
    }
    let (small, commit) = (next_xid(), next_xid());
    let put = |e: &mut Enc| put_write(e, &fh, 0, &[1; 4096], 2);
    c.rpc.send(small, (PROGRAM, 3, 7), put).unwrap();
    let put = |e: &mut Enc| {
        e.opaque(&fh).u64(0).u32(0);
    };
    c.rpc.send(commit, (PROGRAM, 3, 21), put).unwrap();
    let mut answered = [0; 2];
    for xid in &mut answered {
        *xid = decode_reply(&mut c.rpc.receive().unwrap()).unwrap().0;
    }
    answered.sort_unstable();
    assert_eq!(answered, [small, commit]);
    drop(held);
    for _ in 0..40 {
        c.rpc.receive().unwrap();
    }
}

/// Sends a guarded CREATE.
fn create(c: &mut RpcClient, xid: u32, dir: &Fh, name: &[u8]) {
    c.send(xid, (PROGRAM, 3, 8), |e| {
        e.opaque(dir).opaque(name).u32(1);
        put_sattr(e, None, None);
    })
    .unwrap();
}

/// Looks until it is so.
fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < end, "{what}: never");
        std::thread::yield_now();
    }
}

/// A client whose connection broke repeats its call on another one while the first still runs:
/// it has its effect once, and the repetition is answered.
#[test]
fn a_repetition_of_a_running_call_is_joined_to_it() {
    let fs = NullFs::new();
    let server = serve(fs.clone());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let xid = next_xid();
    let create = |c: &mut RpcClient| create(c, xid, &root, b"held");
    let held = fs.hold.lock().unwrap();
    create(&mut c.rpc);
    until("it is begun", || fs.creations.load(Ordering::SeqCst) > 0);
    drop(c);
    let mut second = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    let mut third = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    create(&mut second);
    create(&mut third);
    let joined = || server.nfs().replays().joined.load(Ordering::SeqCst);
    until("both are joined", || joined() == 2);
    drop(held);
    for c in [&mut second, &mut third] {
        let mut d = c.receive().unwrap();
        assert_eq!(decode_reply(&mut d).unwrap(), (xid, Ok(())));
        assert_eq!(d.u32().unwrap(), 0);
    }
    assert_eq!(fs.creations.load(Ordering::SeqCst), 1);
}

/// A call whose connection ends before it is begun is dropped; a repetition that had been joined
/// to it was dropped with it, and its client waited for a minute.
#[test]
fn a_repetition_of_a_call_that_is_never_begun_is_answered() {
    let fs = NullFs::new();
    let server = serve(fs.clone());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let xid = next_xid();
    let create = |c: &mut RpcClient| create(c, xid, &root, b"file");
    let looked = || fs.looked.load(Ordering::SeqCst);
    let joined = || server.nfs().replays().joined.load(Ordering::SeqCst);
    let connections = || server.pool().connections().len();
    let store = fs.store.lock().unwrap();
    create(&mut c.rpc);
    until("it is looked for", || looked() == 1);
    let mut second = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    create(&mut second);
    until("the repetition is joined", || joined() == 1);
    drop(c);
    until("the first one is gone", || connections() == 1);
    drop(store);
    let mut d = second.receive().unwrap();
    assert_eq!(decode_reply(&mut d).unwrap(), (xid, Ok(())));
    // And nothing of it is left: without anybody who waits, the next one begins anew.
    let store = fs.store.lock().unwrap();
    create(&mut second);
    until("it is looked for again", || looked() == 2);
    drop(second);
    until("nobody is left", || connections() == 0);
    drop(store);
    let mut third = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    create(&mut third);
    let mut d = third.receive().unwrap();
    assert_eq!(decode_reply(&mut d).unwrap(), (xid, Ok(())));
}

#[test]
fn programs_versions_and_procedures_that_are_not_served_are_named_so() {
    let server = serve(NullFs::new());
    let mut c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    let refused = |r: Result<_, ClientError>| match r {
        Err(ClientError::Refused(n)) => n,
        other => panic!("{:?}", other.map(|_: trivet_nfs::xdr::Dec| ())),
    };
    // NFSACL: unavailable; NFSv4: mismatch; procedure 22: unavailable.
    assert_eq!(refused(c.call((100_227, 3, 0), |_| ())), 1);
    assert_eq!(refused(c.call((PROGRAM, 4, 0), |_| ())), 2);
    assert_eq!(refused(c.call((PROGRAM, 2, 0), |_| ())), 2);
    assert_eq!(refused(c.call((PROGRAM, 3, 22), |_| ())), 3);
    // Garbage does not end the connection.
    assert_eq!(refused(c.call((PROGRAM, 3, 1), |_| ())), 4);
    c.credential = Credential::None;
    assert!(c.call((PROGRAM, 3, 0), |_| ()).is_ok());
}

#[test]
fn the_mismatch_says_that_version_3_is_served() {
    let server = serve(NullFs::new());
    let mut c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    c.send(77, (PROGRAM, 4, 0), |_| ()).unwrap();
    let mut d = c.receive().unwrap();
    let words: Vec<u32> = (0..8).map(|_| d.u32().unwrap()).collect();
    assert_eq!(words, [77, 1, 0, 0, 0, 2, 3, 3]);
}

#[test]
fn only_listed_clients_mount_and_names_are_taken_as_they_are() {
    let exports = vec![
        export("/open", "/", &["127.0.0.0/8(rw,insecure)"]),
        export("/other", "/", &["10.0.0.0/8(rw,insecure)"]),
        export("/low", "/", &["127.0.0.1"]),
    ];
    let server = serve_with(config(exports), NullFs::new());
    let status = |path: &str| match mount(&url(&server, path), false) {
        Ok(_) => 0,
        Err(trivet_nfs::client::nfs::NfsClientError::Status { status, .. }) => status,
        Err(e) => panic!("{e}"),
    };
    assert_eq!(status("/open"), 0);
    assert_eq!(status("/open/"), 0);
    assert_eq!(status("/other"), 13);
    assert_eq!(status("/low"), 1);
    assert_eq!(status("/"), 2);
    assert_eq!(status("/openly"), 2);
    // The null file system's only file is not a directory.
    assert_eq!(status("/open/file"), 20);
    assert_eq!(status("/open/.."), 13);
    assert_eq!(server.mount().mounts().len(), 2);
    // A client that is taken from the list is refused at its next call, not its next mount.
    let mut c = NfsClient::mount(&url(&server, "/open"), false).unwrap();
    let root = c.root.clone();
    assert!(c.getattr(&root).is_ok());
    let specs = [export("/open", "/", &["10.0.0.0/8(rw,insecure)"])];
    server.reload(&specs).unwrap();
    let e = c.getattr(&root).unwrap_err().to_string();
    assert!(e.contains("status 13"), "{e}");
    let back = [export("/open", "/", &["127.0.0.0/8(ro,insecure)"])];
    server.reload(&back).unwrap();
    assert!(c.getattr(&root).is_ok());
    let e = c.write(&root, 0, b"x", 0).unwrap_err().to_string();
    assert!(e.contains("status 30"), "a read-only export: {e}");
}

/// DUMP, after MNT, UMNT and UMNTALL (RFC 1813, 5.2.2 to 5.2.4).
#[test]
fn the_list_of_mounts_follows_what_clients_say() {
    let names = ["/a", "/b", "/c"];
    let exports = names.map(|n| export(n, "/", &["127.0.0.0/8(rw,insecure)"]));
    let server = serve_with(config(exports.to_vec()), NullFs::new());
    for name in names.iter().chain(&["/a/", "/c"]) {
        mount(&url(&server, name), false).unwrap();
    }
    let mut c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    let dump = |c: &mut RpcClient| {
        let mut d = c.call((MOUNT, 3, 2), |_| ()).unwrap();
        let mut paths = Vec::new();
        while d.bool().unwrap() {
            assert_eq!(&d.opaque(255).unwrap()[..], b"127.0.0.1");
            paths.push(String::from_utf8(d.opaque(1024).unwrap().to_vec()).unwrap());
        }
        assert!(d.is_empty());
        paths
    };
    assert_eq!(dump(&mut c), ["/a", "/a/", "/b", "/c"]);
    for gone in ["/b", "/never"] {
        let put = |e: &mut Enc| {
            e.opaque(gone.as_bytes());
        };
        assert!(c.call((MOUNT, 3, 3), put).unwrap().is_empty());
    }
    assert_eq!(dump(&mut c), ["/a", "/a/", "/c"]);
    assert!(c.call((MOUNT, 3, 4), |_| ()).unwrap().is_empty());
    assert_eq!(dump(&mut c), [""; 0]);
}

#[test]
fn handles_that_are_not_ours_are_refused_and_counted() {
    let server = serve(NullFs::new());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let mut status = |fh: &[u8]| match c.getattr(fh) {
        Err(trivet_nfs::client::nfs::NfsClientError::Status { status, .. }) => status,
        Ok(_) => 0,
        Err(e) => panic!("{e}"),
    };
    let good = server
        .nfs()
        .seal(crc32c::crc32c(EXPORT.as_bytes()), trivet_fs::InodeId::ROOT);
    assert_eq!(status(&good), 0);
    assert_eq!(status(&[]), 10_001);
    assert_eq!(status(&good[..20]), 10_001);
    let mut forged = good;
    forged[15] ^= 1;
    assert_eq!(status(&forged), 70);
    // A seal of ours for an export that does not exist.
    let elsewhere = server.nfs().seal(1, trivet_fs::InodeId::ROOT);
    assert_eq!(status(&elsewhere), 13);
    assert_eq!(server.nfs().counters.bad_handles.load(Ordering::Relaxed), 3);
}

#[test]
fn offsets_at_the_end_of_numbers_are_answered() {
    let server = serve(NullFs::new());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let (fh, _) = c.lookup(&root, b"f").unwrap();
    for offset in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1] {
        let e = c.write(&fh, offset, &[0; 2], 0).unwrap_err().to_string();
        assert!(e.contains("status 27"), "{offset}: {e}");
        c.read(&fh, offset, 10).unwrap();
    }
    // A read of more than the largest transfer is a short read.
    assert_eq!(c.read(&fh, 0, u32::MAX).unwrap().0.len(), 1 << 20);
    // More data than announced.
    let e = c.call(7, "WRITE", |e| {
        e.opaque(&fh).u64(0).u32(9).u32(0).opaque(b"12345");
    });
    assert!(e.unwrap_err().to_string().contains("status 22"));
    // A stability that does not exist is garbage.
    let e = c.call(7, "WRITE", |e| {
        e.opaque(&fh).u64(0).u32(1).u32(3).opaque(b"1");
    });
    assert!(e.unwrap_err().to_string().contains("accept_stat 4"));
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Headers that claim gigabytes, messages that stop in the middle, and many idle connections:
/// no memory for any of them, and others are served meanwhile.
#[test]
fn memory_is_for_bytes_that_came() {
    let server = serve(NullFs::new());
    let before = resident_bytes();
    let mut idle = Vec::new();
    for n in 0..600 {
        let mut s = TcpStream::connect(server.address()).unwrap();
        match n % 3 {
            // Claims 1 MiB and sends 8 bytes of it.
            0 => s.write_all(&[0x80, 0x10, 0, 0, 1, 2, 3, 4]).unwrap(),
            // Half a header.
            1 => s.write_all(&[0x80, 0]).unwrap(),
            _ => {}
        }
        idle.push(s);
    }
    for claim in [[0xff; 4], [0x7f, 0xff, 0xff, 0xff], [0x80, 0x20, 0, 0]] {
        let mut s = TcpStream::connect(server.address()).unwrap();
        s.set_read_timeout(Some(TIMEOUT)).unwrap();
        s.write_all(&claim).unwrap();
        assert_eq!(s.read(&mut [0; 8]).unwrap(), 0, "closed at once");
    }
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    c.getattr(&root).unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for 600 idle connections");
    assert_eq!(
        server.pool().counters().ended_bad.load(Ordering::Relaxed),
        3
    );
}

/// A client that sends and does not read: it is not received from any more, its memory stays
/// within its window, and others go on.
#[test]
fn a_client_that_does_not_read_stops_itself_alone() {
    let mut cfg = config(vec![export(EXPORT, "/", &["127.0.0.0/8(rw,insecure)"])]);
    cfg.limits.connection_bytes = 4 << 20;
    let server = serve_with(cfg, NullFs::new());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let (fh, _) = c.lookup(&root, b"f").unwrap();
    for _ in 0..100 {
        let get = |e: &mut Enc| {
            e.opaque(&fh).u64(0).u32(1 << 20);
        };
        c.rpc.send(next_xid(), (PROGRAM, 3, 6), get).unwrap();
    }
    let mut other = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let end = Instant::now() + TIMEOUT;
    while server.pool().counters().stalls.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < end, "never stalled");
        other.getattr(&root).unwrap();
    }
    assert!(server.pool().bytes_in_flight() < 8 << 20);
    for _ in 0..100 {
        let mut d = c.rpc.receive().unwrap();
        decode_reply(&mut d).unwrap().1.unwrap();
        assert_eq!(d.u32().unwrap(), 0);
        get_post(&mut d).unwrap();
    }
    let end = Instant::now() + TIMEOUT;
    while server.pool().bytes_in_flight() != 0 {
        assert!(Instant::now() < end, "all bytes are given back");
        std::thread::yield_now();
    }
}

/// Random bytes, random cuts and random changes of good calls: the server answers or closes, and
/// lives. `SEED=n` replays one run.
#[test]
fn no_message_ends_the_server() {
    let seed = match std::env::var("SEED") {
        Ok(s) => s.parse().unwrap(),
        Err(_) => std::process::id().into(),
    };
    println!("SEED={seed}");
    let mut state: u64 = seed;
    let mut random = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let server = serve(NullFs::new());
    let good = server
        .nfs()
        .seal(crc32c::crc32c(EXPORT.as_bytes()), trivet_fs::InodeId::ROOT);
    let mut c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
    for _ in 0..3000 {
        let mut e = Enc::new();
        let program = [PROGRAM, 100_005, 100_021, 100_024, random()][random() as usize % 5];
        let version = [3, 3, 4, 1, random()][random() as usize % 5];
        let what = (program, version, random() % 24);
        trivet_nfs::rpc::message::encode_call(&mut e, random(), what, &Credential::None);
        e.opaque(&good);
        for _ in 0..random() % 12 {
            e.u32([0, 1, 2, 4, random(), u32::MAX][random() as usize % 6]);
        }
        let mut bytes = e.into_vec();
        if random() % 3 == 0 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        if random() % 4 == 0 {
            bytes.truncate(random() as usize % (bytes.len() + 1));
        }
        let mark = trivet_nfs::rpc::record::mark(bytes.len()).to_be_bytes();
        if c.send_raw(&[&mark[..], &bytes].concat()).is_err() {
            c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
        }
    }
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    c.getattr(&root).unwrap();
}
