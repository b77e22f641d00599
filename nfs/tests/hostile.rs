//! Clients in number that do next to nothing, or do it slowly: memory stays within its limit, and
//! others are served meanwhile.

// Tests may fail by panic, their helpers too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::null::NullFs;
use common::{EXPORT, config, export, serve, serve_with, url};
use trivet_nfs::client::nfs::{NfsClient, put_write};
use trivet_nfs::client::rpc::{next_xid, root_credential};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::rpc::message::encode_call;
use trivet_nfs::rpc::record::mark;
use trivet_nfs::xdr::Enc;

const IDLE: usize = 10_000;
const ENOUGH: Duration = Duration::from_secs(60);

/// Both measure this process.
static ALONE: Mutex<()> = Mutex::new(());

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The other end of the next test: a process of its own, for its own limit of open files.
#[test]
#[ignore = "started by the next test, with an address"]
fn holds_connections_until_its_input_ends() {
    let Ok(address) = std::env::var("TRIVET_TEST_IDLE") else {
        return;
    };
    let held: Vec<TcpStream> = (0..IDLE)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    println!("held {}", held.len());
    std::io::stdout().flush().unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_stop_nobody() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = serve(NullFs::new());
    let before = resident_bytes();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "holds_connections_until_its_input_ends",
            "--ignored",
            "--nocapture",
        ])
        .env("TRIVET_TEST_IDLE", server.address().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + ENOUGH;
    while server.pool().counters().accepted.load(Ordering::Relaxed) < IDLE as u64 {
        assert!(holder.try_wait().unwrap().is_none(), "the holder failed");
        assert!(Instant::now() < end, "not all are accepted");
        std::thread::yield_now();
    }
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let begin = Instant::now();
    for _ in 0..100 {
        c.getattr(&root).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes for {IDLE} idle connections"
    );
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

/// Each has sent all of a 1 MiB WRITE but its end.
#[test]
fn slow_writers_hold_no_more_memory_than_the_limit() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const TOTAL: usize = 32 << 20;
    let mut cfg = config(vec![export(EXPORT, "/", &["127.0.0.0/8(rw,insecure)"])]);
    cfg.limits.total_bytes = TOTAL;
    let server = serve_with(cfg, NullFs::new());
    let mut c = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = c.root.clone();
    let (fh, _) = c.lookup(&root, b"f").unwrap();
    let mut call = Enc::new();
    encode_call(&mut call, next_xid(), (PROGRAM, 3, 7), &root_credential());
    put_write(&mut call, &fh, 0, &vec![7; 1 << 20], 2);
    let bytes = [&mark(call.len()).to_be_bytes()[..], call.bytes()].concat();
    let (most, rest) = bytes.split_at(bytes.len() - 5);
    let before = resident_bytes();
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut s = TcpStream::connect(server.address()).unwrap();
        s.set_read_timeout(Some(ENOUGH)).unwrap();
        s.set_write_timeout(Some(ENOUGH)).unwrap();
        // The server may have ended it by now, as it must end some.
        let sent = s.write_all(most);
        slow.push((s, sent.is_ok()));
        c.getattr(&root).unwrap();
    }
    let grown = resident_bytes().saturating_sub(before);
    // What the allocator keeps of buffers that were given back is not the server's.
    assert!(
        grown < 3 * TOTAL as u64,
        "{} MiB for 200 slow writers",
        grown >> 20
    );
    // The last ones are still there, and are served to the end; those that were in the way longest
    // are gone, and would connect again.
    let mut served = 0;
    for (mut s, sent) in slow {
        let mut head = [0; 4];
        let ok = sent && s.write_all(rest).is_ok() && s.read_exact(&mut head).is_ok();
        served += u32::from(ok);
    }
    assert!((20..=60).contains(&served), "{served} of 200 were served");
    assert!(server.pool().counters().ended_slow.load(Ordering::Relaxed) >= 140);
}
