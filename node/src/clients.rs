//! Who uses an export, and what they have locked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use trivet_fs::lock::{LockKind, LockOwner};
use trivet_nfs::NfsServer;
use trivet_nfs::nlm::types::split_host;

use crate::messages::{ClientReport, LockReport, MAX_LOCKS};

/// The locks held, of all doors.
pub fn locks(nfs: &NfsServer) -> Vec<LockReport> {
    let held = nfs.nlm().list(MAX_LOCKS);
    held.into_iter()
        .map(|(id, l)| {
            let (client, address) = match &l.owner {
                LockOwner::Nlm { host, .. } => match split_host(host) {
                    Some((name, address)) => (name.to_vec(), Some(address)),
                    None => (host.to_vec(), None),
                },
                other => (format!("{other:?}").into_bytes(), None),
            };
            LockReport {
                ino: id.ino.0,
                address,
                client: String::from_utf8_lossy(&client).into_owned(),
                shared: l.kind == LockKind::Shared,
                start: l.range.start,
                end: l.range.end,
            }
        })
        .collect()
}

/// The clients: whoever has a connection, said that he mounted something, or holds a lock.
pub fn clients(nfs: &NfsServer) -> Vec<ClientReport> {
    let mut all: BTreeMap<IpAddr, ClientReport> = BTreeMap::new();
    let fresh = |address| ClientReport {
        address,
        connections: 0,
        idle_ms: u64::MAX,
        mounts: Vec::new(),
        locks: 0,
        files: 0,
    };
    for (peer, idle) in nfs.pool().connections() {
        let c = all.entry(peer.ip()).or_insert_with(|| fresh(peer.ip()));
        c.connections += 1;
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        c.idle_ms = c.idle_ms.min(idle);
    }
    for (address, path) in nfs.mount().mounts() {
        if let Ok(ip) = address.parse() {
            all.entry(ip).or_insert_with(|| fresh(ip)).mounts.push(path);
        }
    }
    let mut files: BTreeSet<(IpAddr, u64)> = BTreeSet::new();
    for lock in locks(nfs) {
        if let Some(ip) = lock.address {
            all.entry(ip).or_insert_with(|| fresh(ip)).locks += 1;
            files.insert((ip, lock.ino));
        }
    }
    for (ip, _) in files {
        if let Some(c) = all.get_mut(&ip) {
            c.files += 1;
        }
    }
    all.into_values().collect()
}

/// Drops the locks of a client, named by its address or by what it calls itself; returns how many.
///
/// # Errors
/// Those of the file system.
pub fn clear(nfs: &NfsServer, client: &str) -> trivet_fs::FsResult<usize> {
    let address: Option<IpAddr> = client.parse().ok();
    nfs.nlm()
        .release(|name, from| address == Some(from) || name == client.as_bytes())
}
