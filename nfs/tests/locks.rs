//! NLM and NSM on a real file system. Call-backs to clients are tested with a real kernel's client
//! (tests/vm), because they need its port 111.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::real::Disk;
use common::{EXPORT, config, export, serve, serve_with, url};
use trivet_nfs::NfsServer;
use trivet_nfs::client::nfs::NfsClient;
use trivet_nfs::client::rpc::{RpcClient, call_udp};
use trivet_nfs::nlm::types::{Lock, PROGRAM, VERSION};
use trivet_nfs::xdr::{Dec, Enc};

const TIMEOUT: Duration = Duration::from_secs(10);
const GRANTED: u32 = 0;
const DENIED: u32 = 1;
const BLOCKED: u32 = 3;

struct Locker {
    rpc: RpcClient,
    handle: Vec<u8>,
    name: &'static [u8],
    svid: u32,
}

impl Locker {
    fn new(server: &NfsServer, handle: &[u8], name: &'static [u8], svid: u32) -> Locker {
        Locker {
            rpc: RpcClient::connect(server.address(), TIMEOUT, false).unwrap(),
            handle: handle.to_vec(),
            name,
            svid,
        }
    }

    fn lock_of(&self, offset: u64, len: u64) -> Lock {
        Lock {
            caller: self.name.to_vec(),
            handle: self.handle.clone(),
            owner: format!("{}@x", self.svid).into_bytes(),
            svid: self.svid,
            offset,
            len,
        }
    }

    fn call(&mut self, procedure: u32, args: impl FnOnce(&mut Enc)) -> Dec {
        let mut d = self.rpc.call((PROGRAM, VERSION, procedure), args).unwrap();
        assert_eq!(d.opaque(99).unwrap(), b"cookie");
        d
    }

    fn lock(&mut self, exclusive: bool, offset: u64, len: u64) -> u32 {
        let l = self.lock_of(offset, len);
        let mut d = self.call(2, |e| {
            e.opaque(b"cookie").bool(false).bool(exclusive);
            l.put(e);
            e.bool(false).u32(3);
        });
        d.u32().unwrap()
    }

    fn unlock(&mut self, offset: u64, len: u64) -> u32 {
        let l = self.lock_of(offset, len);
        let mut d = self.call(4, |e| {
            e.opaque(b"cookie");
            l.put(e);
        });
        d.u32().unwrap()
    }

    /// The holder in the way: (exclusive, svid, offset, length).
    fn test(&mut self, exclusive: bool, offset: u64, len: u64) -> Option<(bool, u32, u64, u64)> {
        let l = self.lock_of(offset, len);
        let mut d = self.call(1, |e| {
            e.opaque(b"cookie").bool(exclusive);
            l.put(e);
        });
        match d.u32().unwrap() {
            GRANTED => {
                assert!(d.is_empty());
                None
            }
            DENIED => {
                let (exclusive, svid) = (d.bool().unwrap(), d.u32().unwrap());
                d.opaque(1024).unwrap();
                Some((exclusive, svid, d.u64().unwrap(), d.u64().unwrap()))
            }
            other => panic!("status {other}"),
        }
    }
}

fn file(server: &NfsServer) -> Vec<u8> {
    let mut c = NfsClient::mount(&url(server, EXPORT), false).unwrap();
    let root = c.root.clone();
    c.create(&root, b"image", None).unwrap()
}

#[test]
fn ranges_are_split_and_the_holder_is_told_exactly() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &fh, b"one", 1);
    let mut b = Locker::new(&server, &fh, b"one", 2);
    assert_eq!(a.lock(true, 100, 100), GRANTED);
    assert_eq!(a.unlock(140, 20), GRANTED);
    assert_eq!(b.test(true, 0, 0), Some((true, 1, 100, 40)));
    assert_eq!(b.test(true, 140, 20), None);
    assert_eq!(b.lock(true, 140, 20), GRANTED);
    assert_eq!(b.lock(false, 139, 1), DENIED);
    assert_eq!(b.test(false, 160, 0), Some((true, 1, 160, 40)));
    // To the end, by length 0 and by a length that passes the end of numbers.
    assert_eq!(a.lock(false, u64::MAX - 1, u64::MAX), GRANTED);
    assert_eq!(b.lock(true, 1 << 62, 0), DENIED);
    assert_eq!(b.lock(false, 1 << 62, 0), GRANTED);
    // Shared locks of others are in the way of an exclusive one alone.
    assert_eq!(a.test(true, 1 << 62, 1), Some((false, 2, 1 << 62, 0)));
    assert_eq!(a.test(false, 1 << 62, 1), None);
}

/// Invariant 9: no grace period, nothing to reclaim.
#[test]
fn locks_are_there_after_a_restart() {
    let disk = Disk::new();
    let mut server = serve(disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &fh, b"one", 1);
    assert_eq!(a.lock(true, 0, 0), GRANTED);
    drop(a);
    server.stop();
    drop(server);
    let server = serve(disk.mount());
    let mut b = Locker::new(&server, &fh, b"two", 1);
    assert_eq!(b.lock(true, 5, 1), DENIED);
    assert_eq!(b.test(true, 5, 1), Some((true, 1, 0, 0)));
    let mut a = Locker::new(&server, &fh, b"one", 1);
    assert_eq!(a.lock(true, 0, 0), GRANTED, "its own again, at once");
    assert_eq!(a.unlock(0, 0), GRANTED);
    assert_eq!(b.lock(true, 5, 1), GRANTED);
}

#[test]
fn a_client_that_restarted_loses_its_locks_once_per_restart() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &fh, b"pve1", 1);
    let mut b = Locker::new(&server, &fh, b"pve2", 1);
    let notify = |name: &[u8], state: u32| {
        call_udp(server.address(), TIMEOUT, (100_024, 1, 6), |e| {
            e.opaque(name).u32(state);
        })
        .unwrap();
    };
    assert_eq!(a.lock(true, 0, 10), GRANTED);
    assert_eq!(b.lock(true, 20, 10), GRANTED);
    notify(b"pve1.example.org", 5);
    assert_eq!(b.lock(true, 0, 10), GRANTED, "pve1's lock is gone");
    assert_eq!(a.lock(true, 20, 10), DENIED, "pve2's is not");
    assert_eq!(a.lock(true, 40, 10), GRANTED);
    notify(b"pve1.example.org", 5);
    assert_eq!(b.lock(true, 40, 10), DENIED, "a repetition drops nothing");
    notify(b"pve1.example.org", 7);
    assert_eq!(b.lock(true, 40, 10), GRANTED);
    assert_eq!(server.nlm().list(10).len(), 3);
    let free = |e: &mut Enc| {
        e.opaque(b"pve2").u32(0);
    };
    b.rpc.call((PROGRAM, VERSION, 23), free).unwrap();
    assert!(server.nlm().list(10).is_empty());
}

#[test]
fn locks_of_a_client_without_connections_end_when_asked_for() {
    let disk = Disk::new();
    let rules = ["127.0.0.0/8(rw,no_root_squash,insecure)"];
    let mut cfg = config(vec![export(EXPORT, "/", &rules)]);
    cfg.drop_locks_after = Some(Duration::from_millis(400));
    let server = serve_with(cfg, disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &fh, b"one", 1);
    assert_eq!(a.lock(true, 0, 0), GRANTED);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        assert_eq!(server.nlm().list(9).len(), 1, "connected: it stays");
        std::thread::yield_now();
    }
    drop(a);
    let gone = Instant::now();
    while !server.nlm().list(9).is_empty() {
        assert!(gone.elapsed() < TIMEOUT, "never dropped");
        std::thread::yield_now();
    }
    assert!(gone.elapsed() > Duration::from_millis(200));
}

#[test]
fn shares_deny_what_they_say() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let fh = file(&server);
    let share = |name: &[u8], procedure: u32, deny: u32, access: u32| {
        let mut c = RpcClient::connect(server.address(), TIMEOUT, false).unwrap();
        let mut d = c
            .call((PROGRAM, VERSION, procedure), |e| {
                e.opaque(b"c").opaque(name).opaque(&fh).opaque(b"o");
                e.u32(deny).u32(access).bool(false);
            })
            .unwrap();
        d.opaque(9).unwrap();
        d.u32().unwrap()
    };
    assert_eq!(share(b"a", 20, 2, 1), GRANTED);
    assert_eq!(share(b"b", 20, 0, 2), DENIED);
    assert_eq!(share(b"b", 20, 0, 1), GRANTED);
    assert_eq!(share(b"a", 21, 2, 1), GRANTED);
    assert_eq!(share(b"b", 20, 0, 2), GRANTED);
}

#[test]
fn locks_need_a_handle_of_ours_and_a_listed_address() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &[1; 32], b"one", 1);
    assert_eq!(a.lock(true, 0, 0), 7);
    let mut a = Locker::new(&server, &fh, &[b'n'; 300], 1);
    assert_eq!(a.lock(true, 0, 0), 2, "a name too long to keep");
    let mut a = Locker::new(&server, &fh, b"one", 1);
    server
        .reload(&[export(EXPORT, "/", &["10.0.0.1(rw)"])])
        .unwrap();
    assert_eq!(a.lock(true, 0, 0), 9);
    server
        .reload(&[export(EXPORT, "/", &["127.0.0.1(ro)"])])
        .unwrap();
    assert_eq!(a.lock(true, 0, 0), 6);
    assert_eq!(a.lock(false, 0, 0), GRANTED);
}

/// A wait that is given up gets nothing later, and a repeated CANCEL finds nothing.
#[test]
fn a_wait_that_is_cancelled_is_over() {
    let disk = Disk::new();
    let server = serve(disk.mount());
    let fh = file(&server);
    let mut a = Locker::new(&server, &fh, b"one", 1);
    let mut b = Locker::new(&server, &fh, b"two", 2);
    let mut c = Locker::new(&server, &fh, b"three", 3);
    assert_eq!(a.lock(true, 0, 10), GRANTED);
    let l = b.lock_of(0, 10);
    let mut blocked = b.call(2, |e| {
        e.opaque(b"cookie").bool(true).bool(true);
        l.put(e);
        e.bool(false).u32(3);
    });
    assert_eq!(blocked.u32().unwrap(), BLOCKED);
    let mut cancel = || {
        let mut d = b.call(3, |e| {
            e.opaque(b"cookie").bool(true).bool(true);
            l.put(e);
        });
        d.u32().unwrap()
    };
    assert_eq!(cancel(), GRANTED);
    assert_eq!(cancel(), DENIED);
    assert_eq!(a.unlock(0, 10), GRANTED);
    // Nobody has it, so the third can.
    assert_eq!(server.nlm().list(9).len(), 0);
    assert_eq!(c.lock(true, 0, 10), GRANTED);
}
