//! What can go wrong between two nodes, said so that a person knows what to do next.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::key::PublicKey;
use crate::peers::Role;

/// Result of everything in this crate.
pub type Result<T, E = TransportError> = std::result::Result<T, E>;

/// Why there is no connection, key or list of peers.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TransportError {
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "{address} is not a loopback address, and without keys Trivet speaks on loopback only; \
         make a key on each node (`trivet key new --out FILE`), list the public ones, and start \
         with --key FILE --peers LIST"
    )]
    PlainRefused { address: SocketAddr },
    #[error("{address} did not finish the handshake within {limit:?}")]
    HandshakeTimeout {
        address: SocketAddr,
        limit: Duration,
    },
    #[error("handshake with {address} failed: {why}")]
    Handshake { address: SocketAddr, why: String },
    #[error(
        "{address} has the key {key}, which is not in the list of peers; add it there if it \
         belongs to the cluster"
    )]
    Stranger { address: SocketAddr, key: PublicKey },
    #[error(
        "{address} is {found}, not {expected}; check the addresses in the configuration of both"
    )]
    WrongPeer {
        address: SocketAddr,
        expected: String,
        found: String,
    },
    #[error("{address} is {name}, {role}; only a node keeps members of volumes")]
    NotANode {
        address: SocketAddr,
        name: String,
        role: Role,
    },
    #[error("{path} is no usable key: {why}")]
    KeyFile { path: PathBuf, why: String },
    #[error(
        "{path} exists and is not overwritten: the key in it may be what other nodes know this \
         one by; choose another name"
    )]
    KeyExists { path: PathBuf },
    #[error("{text:?} is no public key; it should be `trivet1:` and 44 characters of base64")]
    PublicKey { text: String },
    #[error("list of peers in {path}: {why}")]
    PeersFile { path: PathBuf, why: String },
    #[error("list of peers: {0}")]
    Peers(String),
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the cryptography library refuses to start: {0}")]
    Crypto(String),
}

impl TransportError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| TransportError::Io {
            action,
            path,
            source,
        }
    }
}
