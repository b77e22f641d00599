//! Who may connect, and as what. The list can be replaced while everything runs.
//!
//! Invariant: from the moment [`Peers::replace`] returns, no connection of a key that the new list
//! does not hold, or holds as somebody else, stands or comes to stand. Looking a key up and
//! registering its connection are one step under one lock for that.

use std::collections::HashMap;
use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use trivet_protocol::limits::MAX_NAME;

use crate::error::{Result, TransportError};
use crate::key::PublicKey;

/// Peers in a list, at most.
pub const MAX_PEERS: usize = 256;
/// Bytes of a file with a list, at most.
const MAX_FILE: u64 = 256 * 1024;

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Hosts members, uses volumes, calls.
    Node,
    /// Uses volumes and calls; hosts no member and so has no vote.
    Exporter,
    /// Calls only.
    Operator,
    /// Unnamed, without a key, in this process or on this machine: a plain loopback connection.
    /// As trusted as whoever may log in here. Never in a list.
    #[serde(skip)]
    Local,
}

impl Role {
    /// Whether it may run an upstairs: claim, read and write volumes.
    pub fn may_use_volumes(self) -> bool {
        match self {
            Role::Node | Role::Exporter | Role::Local => true,
            Role::Operator => false,
        }
    }

    /// Whether it may be asked for members of volumes.
    pub fn hosts_members(self) -> bool {
        match self {
            Role::Node | Role::Local => true,
            Role::Exporter | Role::Operator => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Node => "a node",
            Role::Exporter => "an exporter",
            Role::Operator => "an operator",
            Role::Local => "local",
        })
    }
}

/// Somebody on the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What the list calls it; `local` without a key.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The key that it proved to have; `None` only for [`Role::Local`].
    pub key: Option<PublicKey>,
}

impl Peer {
    /// Whoever is on the other end of a plain loopback connection.
    pub fn local() -> Peer {
        Peer {
            name: "local".into(),
            role: Role::Local,
            key: None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.name, self.role)
    }
}

/// One entry of a list, as a file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name, unique.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its public key, unique.
    pub key: PublicKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peer: Vec<Entry>,
}

/// A list of peers, checked: names and keys are unique, and within bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSet {
    by_key: HashMap<PublicKey, Peer>,
    by_name: HashMap<String, PublicKey>,
}

impl PeerSet {
    /// Checks a list.
    ///
    /// # Errors
    /// Two entries share a name or a key, or one is out of bounds.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Result<PeerSet> {
        let mut set = PeerSet::default();
        let bad = |why: String| Err(TransportError::Peers(why));
        for Entry { name, role, key } in entries {
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return bad(format!(
                    "{name:?} is no name: it should have 1 to {MAX_NAME} bytes"
                ));
            }
            if role == Role::Local {
                return bad(format!("{name} has a role that cannot be listed"));
            }
            if set.by_name.len() == MAX_PEERS {
                return bad(format!("more than {MAX_PEERS} entries"));
            }
            if let Some(other) = set.by_key.get(&key) {
                return bad(format!("{} and {name} have the same key", other.name));
            }
            if set.by_name.insert(name.clone(), key).is_some() {
                return bad(format!("{name} is there twice"));
            }
            let peer = Peer {
                name,
                role,
                key: Some(key),
            };
            set.by_key.insert(key, peer);
        }
        Ok(set)
    }

    /// Reads a TOML file with `[[peer]]` tables of `name`, `role` (`node`, `exporter`,
    /// `operator`) and `key`.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub fn load(path: &Path) -> Result<PeerSet> {
        use std::io::Read;
        let bad = |why: String| TransportError::PeersFile {
            path: path.to_path_buf(),
            why,
        };
        let file = std::fs::File::open(path).map_err(TransportError::io("open", path))?;
        let mut text = String::new();
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(TransportError::io("read", path))?;
        if text.len() as u64 > MAX_FILE {
            return Err(bad(format!("it is larger than {MAX_FILE} bytes")));
        }
        let file: File = toml::from_str(&text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start).min(text.len());
            let line = text.as_bytes()[..at]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            bad(format!("line {line}: {}", e.message()))
        })?;
        PeerSet::new(file.peer).map_err(|e| match e {
            TransportError::Peers(why) => bad(why),
            other => other,
        })
    }

    /// Writes a list in the form that [`PeerSet::load`] reads, replacing what was there.
    ///
    /// # Errors
    /// The list makes no sense, or the disk fails.
    pub fn save(path: &Path, entries: Vec<Entry>) -> Result<()> {
        PeerSet::new(entries.clone())?;
        let text = toml::to_string(&File { peer: entries })
            .map_err(|e| TransportError::Peers(e.to_string()))?;
        std::fs::write(path, text).map_err(TransportError::io("write", path))
    }

    /// The peer with this key.
    pub fn by_key(&self, key: &PublicKey) -> Option<&Peer> {
        self.by_key.get(key)
    }

    /// The peer with this name.
    pub fn by_name(&self, name: &str) -> Option<&Peer> {
        self.by_key.get(self.by_name.get(name)?)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_key.values()
    }
}

#[derive(Default)]
struct State {
    set: Arc<PeerSet>,
    /// What stands, to be closed when its peer is taken out.
    open: HashMap<u64, (Peer, TcpStream)>,
    next: u64,
}

/// The list that is in force. Clones share it.
#[derive(Clone, Default)]
pub struct Peers {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let names: Vec<_> = state.set.by_name.keys().collect();
        f.debug_tuple("Peers").field(&names).finish()
    }
}

/// A connection's entry among those that stand; taken out when dropped.
pub(crate) struct Registered {
    peers: Peers,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.peers.lock().open.remove(&self.id);
    }
}

impl Peers {
    /// This list, in force.
    pub fn new(set: PeerSet) -> Peers {
        let peers = Peers::default();
        peers.replace(set);
        peers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: a panic elsewhere cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list as it is now.
    pub fn current(&self) -> Arc<PeerSet> {
        self.lock().set.clone()
    }

    /// Puts another list in force, and ends the connections of those who are not in it, or are
    /// in it under another name or role; these may come back as who they are now.
    pub fn replace(&self, set: PeerSet) {
        let mut state = self.lock();
        state.set = Arc::new(set);
        let State { set, open, .. } = &mut *state;
        open.retain(|_, (peer, socket)| {
            let stays = peer.key.and_then(|k| set.by_key(&k)) == Some(peer);
            if !stays {
                tracing::info!(peer = %peer, "taken out of the list of peers: disconnected");
                // Closed already is as good.
                let _ = socket.shutdown(Shutdown::Both);
            }
            stays
        });
    }

    /// Who has this key, with the connection registered to be closed when that changes.
    pub(crate) fn admit(
        &self,
        key: &PublicKey,
        socket: &TcpStream,
    ) -> std::io::Result<Option<(Peer, Registered)>> {
        let socket = socket.try_clone()?;
        let mut state = self.lock();
        let Some(peer) = state.set.by_key(key).cloned() else {
            return Ok(None);
        };
        state.next += 1;
        let id = state.next;
        state.open.insert(id, (peer.clone(), socket));
        drop(state);
        let peers = self.clone();
        Ok(Some((peer, Registered { peers, id })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Identity;

    fn entry(name: &str, role: Role) -> Entry {
        Entry {
            name: name.into(),
            role,
            key: Identity::generate().unwrap().public(),
        }
    }

    #[test]
    fn a_list_is_read_from_a_file() {
        let entries = [
            entry("pve1", Role::Node),
            entry("ct7", Role::Exporter),
            entry("ann", Role::Operator),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        PeerSet::save(&path, entries.to_vec()).unwrap();
        let set = PeerSet::load(&path).unwrap();
        assert_eq!(set, PeerSet::new(entries.clone()).unwrap());
        assert_eq!(set.by_name("ct7").unwrap().role, Role::Exporter);
        assert_eq!(set.by_key(&entries[2].key).unwrap().name, "ann");
    }

    #[test]
    fn a_list_that_makes_no_sense_names_what_is_wrong() {
        let (a, b) = (entry("a", Role::Node), entry("b", Role::Node));
        let twin = Entry {
            key: a.key,
            ..b.clone()
        };
        let cases = [
            (vec![a.clone(), twin], "a and b have the same key"),
            (vec![a.clone(), entry("a", Role::Node)], "a is there twice"),
            (vec![entry("", Role::Node)], "is no name"),
            (vec![entry(&"x".repeat(65), Role::Node)], "is no name"),
            (vec![entry("l", Role::Local)], "cannot be listed"),
        ];
        for (list, why) in cases {
            let told = PeerSet::new(list).unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        for bad in [
            "[[peer]]\nname = \"a\"\nrole = \"local\"\nkey = \"trivet1:\"",
            "[[peer]]\nname = \"a\"\nrole = \"node\"\nkey = \"trivet1:AAAA\"",
            "peer = 3",
            "[[peer]]\nname = \"a\"",
            "colour = 1",
        ] {
            std::fs::write(&path, bad).unwrap();
            let told = PeerSet::load(&path).unwrap_err().to_string();
            assert!(told.contains("peers.toml: line "), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }
}
