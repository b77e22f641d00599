//! What can go wrong in a node, said so that a person knows what to do next.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;
use trivet_cluster::ClusterError;
use trivet_fs::FsError;
use trivet_nfs::NfsError;
use trivet_replica::driver::MemberError;

/// Result of everything in this crate.
pub type Result<T, E = NodeError> = std::result::Result<T, E>;

/// Why something was not done.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum NodeError {
    #[error("cannot read the configuration {path}: {source}")]
    ConfigRead { path: PathBuf, source: io::Error },
    #[error("the configuration {path} is wrong: {why}")]
    Config { path: PathBuf, why: String },
    #[error("the configuration names no node {0}; its nodes are: {1}")]
    NoSuchNode(String, String),
    #[error("the configuration names no volume {0}; `trivet volume list` shows those there are")]
    NoSuchVolume(String),
    #[error("node {0} is no exporter: it cannot be the active one")]
    NotExporter(String),
    #[error("volume {volume} is active on {node}; demote it there, or promote with --wait")]
    ActiveElsewhere { volume: String, node: String },
    #[error(
        "node {0} answers, so it is not given up; use `trivet drain {0}`, and `trivet replica \
         move` for what it keeps"
    )]
    Alive(String),
    #[error(
        "volume {volume}: no node has room for the member of {node}; add one with the role of a \
         keeper of replicas that keeps none of it yet"
    )]
    NoSpare { volume: String, node: String },
    #[error("volume {volume}: {source}{next}")]
    Members {
        volume: String,
        source: Box<MemberError>,
        next: &'static str,
    },
    #[error("volume {volume}: {why}")]
    Refused { volume: String, why: String },
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("file system: {0}")]
    Fs(#[from] FsError),
    #[error("NFS export: {0}")]
    Nfs(#[from] NfsError),
    #[error("cannot mount on {path}: {source}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("network of the service address: {what}: {why}")]
    Network { what: String, why: String },
    #[error("node {node} at {address}: {why}")]
    Unreachable {
        node: String,
        address: String,
        why: String,
    },
    #[error("node {node} says: {why}")]
    Told { node: String, why: String },
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Transport(#[from] trivet_transport::TransportError),
    #[error(
        "cannot serve metrics at {address}: {source}; choose another `metrics` for this node in \
         the configuration"
    )]
    Metrics {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}
