//! The clients of each volume, for whoever takes it over, also after all nodes were without power.
//!
//! The nodes tell each other who is connected. Addresses alone outlive the daemon, in a file of its
//! own, written when another one comes or an old one is forgotten. It is no matter of safety: a
//! client that is not told waits for its own time-out, a minute in Linux.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use trivet_protocol::VolumeId;

use super::{Node, lock};
use crate::error::{NodeError, Result};
use crate::known::Known;

const FILE: &str = "clients.json";
/// Bytes of the file, at most: more than 256 addresses of each of 256 volumes take.
const MAX_FILE: u64 = 4 << 20;

/// What the file holds.
pub(super) type Addresses = BTreeMap<VolumeId, Vec<IpAddr>>;

/// Those that an earlier life of this daemon knew; none if that cannot be read.
pub(super) fn recall(dir: &Path) -> BTreeMap<VolumeId, Known> {
    let path = dir.join(FILE);
    let mut raw = Vec::new();
    let read = std::fs::File::open(&path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut raw));
    let all: Addresses = match read.map(|_| serde_json::from_slice(&raw)) {
        Ok(Ok(all)) => all,
        Err(e) if e.kind() == ErrorKind::NotFound => return BTreeMap::new(),
        Ok(Err(e)) => return forgotten(&path, &e.to_string()),
        Err(e) => return forgotten(&path, &e.to_string()),
    };
    let now = Instant::now();
    let known = |addresses: Vec<IpAddr>| Known::recalled(&addresses, now);
    all.into_iter().map(|(v, a)| (v, known(a))).collect()
}

fn forgotten(path: &Path, why: &str) -> BTreeMap<VolumeId, Known> {
    let path = path.display();
    tracing::warn!(%path, why, "who the clients were is forgotten; they notice by themselves");
    BTreeMap::new()
}

impl Node {
    /// The clients of whoever was active last, and of those before lately.
    pub fn clients_of(&self, volume: VolumeId) -> Vec<SocketAddr> {
        let clients = lock(&self.clients);
        clients.get(&volume).map_or(Vec::new(), Known::all)
    }

    /// What another node, that is not active, remembers: for this one if it has just started.
    pub(super) fn learn_clients_anew(&self, volume: VolumeId, remembered: &[SocketAddr]) {
        let mut clients = lock(&self.clients);
        let of = clients.entry(volume).or_default();
        if of.is_new() {
            of.learn(remembered, Instant::now());
        }
    }

    /// These are connected to the active node.
    pub fn learn_clients(&self, volume: VolumeId, connected: &[SocketAddr]) {
        let mut clients = lock(&self.clients);
        let of = clients.entry(volume).or_default();
        of.learn(connected, Instant::now());
    }

    /// Stores their addresses if they are not those in `stored`; the disk is waited for.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn keep_clients(&self, stored: &mut Addresses) -> Result<()> {
        let config = self.config();
        let clients = lock(&self.clients);
        let here = clients
            .iter()
            .filter(|(id, _)| config.volumes.iter().any(|v| v.id == **id));
        let now: Addresses = here.map(|(id, k)| (*id, k.addresses())).collect();
        drop(clients);
        if now == *stored {
            return Ok(());
        }
        let path = lock(&self.state).dir().join(FILE);
        let raw = serde_json::to_vec(&now).map_err(|e| NodeError::Config {
            path: path.clone(),
            why: e.to_string(),
        })?;
        crate::state::write(&path, &raw)?;
        *stored = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_recalled_and_a_file_that_makes_no_sense_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recall(dir.path()).is_empty(), "there is none yet");
        let volume = VolumeId::random();
        let client: IpAddr = "10.0.0.7".parse().unwrap();
        let all = Addresses::from([(volume, vec![client])]);
        let path = dir.path().join(FILE);
        crate::state::write(&path, &serde_json::to_vec(&all).unwrap()).unwrap();
        let recalled = recall(dir.path());
        let known = recalled[&volume].all();
        assert_eq!(
            known.iter().map(SocketAddr::ip).collect::<Vec<_>>(),
            [client]
        );
        std::fs::write(&path, b"{").unwrap();
        assert!(recall(dir.path()).is_empty());
    }
}
