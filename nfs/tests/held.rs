//! Invariant 2 at this door: while the volume is not held nothing about files leaves, and what was
//! asked is answered on the same connection when it is held again.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::null::NullFs;
use common::{EXPORT, serve, url};
use trivet_nfs::client::nfs::{NfsClient, NfsClientError};
use trivet_nfs::client::rpc::RpcClient;

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;

#[test]
fn silence_while_the_volume_is_not_held() {
    let fs = NullFs::new();
    let server = serve(fs.clone());
    let mut client = NfsClient::mount(&url(&server, EXPORT), false).unwrap();
    let root = client.root.clone();
    client.getattr(&root).unwrap();

    let clients: Vec<NfsClient> = (0..3)
        .map(|_| NfsClient::mount(&url(&server, EXPORT), false).unwrap())
        .collect();

    fs.held.store(false, Ordering::Release);
    // Looking, finding, changing: each on a connection of its own.
    let asked: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(i, mut client)| {
            let root = root.clone();
            std::thread::spawn(move || match i {
                0 => client.getattr(&root).map(|_| ()),
                1 => client.lookup(&root, b"none").map(|_| ()),
                _ => client.remove(&root, b"none").map(|_| ()),
            })
        })
        .collect();
    // What is not about files is answered all the while.
    let minute = Duration::from_secs(60);
    let mut other = RpcClient::connect(server.address(), minute, false).unwrap();
    other.call((NFS, 3, 0), |_| ()).unwrap();
    other.call((MOUNT, 3, 5), |_| ()).unwrap();
    while server.silent() < 3 {
        assert!(asked.iter().all(|a| !a.is_finished()), "an answer left");
        std::thread::yield_now();
    }
    // Long enough for an answer that was queued all the same to arrive.
    std::thread::sleep(Duration::from_millis(50));
    assert!(asked.iter().all(|a| !a.is_finished()), "an answer left");

    fs.held.store(true, Ordering::Release);
    for (i, a) in asked.into_iter().enumerate() {
        let answer = a.join().unwrap();
        // Whatever the null file system says, it says it now, on the same connection.
        let answered = matches!(answer, Ok(()) | Err(NfsClientError::Status { .. }));
        assert!(answered, "call {i}: {answer:?}");
    }
    client.getattr(&root).unwrap();
}
