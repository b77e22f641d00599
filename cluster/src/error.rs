//! What can go wrong around regions and hosts, said so that a person knows what to do next.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use trivet_downstairs::StoreError;
use trivet_protocol::{MemberId, VolumeId};
use trivet_replica::upstairs::ActivateError;
use trivet_transport::TransportError;

/// Result of everything in this crate.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Why a volume or host is not there.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ClusterError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("region in {path}: {source}")]
    Region { path: PathBuf, source: StoreError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} does not describe a volume: {why}")]
    VolumeFile { path: PathBuf, why: String },
    #[error(
        "{path} holds a region of volume {volume}, but no volume.toml says what that volume is \
         made of; put the file back, or move the region away"
    )]
    Orphan { path: PathBuf, volume: VolumeId },
    #[error(
        "this node keeps member {member} of volume {volume} already; one per node is all it may"
    )]
    OtherMember { volume: VolumeId, member: MemberId },
    #[error("that is not the first record of volume {volume} with member {member} in it")]
    NotFirst { volume: VolumeId, member: MemberId },
    #[error("the volume in {dir} cannot be taken into a cluster: {why}")]
    Adopt { dir: PathBuf, why: String },
    #[error(transparent)]
    Members(#[from] trivet_replica::driver::MemberError),
    #[error("a volume of {bytes} bytes is impossible: {why}")]
    Size { bytes: u64, why: &'static str },
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(
        "volume {volume} has {usable} usable replicas of {all}, which is too few to be sure of \
         its content: {problems}"
    )]
    TooFew {
        volume: VolumeId,
        usable: usize,
        all: usize,
        problems: String,
    },
    #[error(transparent)]
    Activate(#[from] ActivateError),
    #[error("the volume could not be given back in order: {0}; the next start waits for its lease")]
    HandBack(trivet_replica::VolumeError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("process `{what}`: {why}")]
    Process { what: String, why: String },
}

impl ClusterError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
        let path = path.to_path_buf();
        move |source| ClusterError::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn store(e: StoreError) -> ClusterError {
        ClusterError::Store(e)
    }

    pub(crate) fn region(path: &Path) -> impl FnOnce(StoreError) -> ClusterError {
        let path = path.to_path_buf();
        move |source| ClusterError::Region { path, source }
    }
}

/// A replica that cannot be used, while the others may well go on without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Its region is gone: its disk was replaced, is not mounted, or somebody removed it. It is
    /// never made anew under the same identity (design, section 5).
    Lost {
        /// Who it was.
        member: MemberId,
        /// Its node.
        node: String,
        /// Where it should be.
        dir: PathBuf,
    },
    /// It, or the pool that should hold it, cannot be opened.
    Unusable {
        /// Where it is.
        dir: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Lost { member, node, dir } => write!(
                f,
                "replica {member} of node {node} is lost: there is no region in {}; mount its \
                 disk if it is not mounted and start again, else replace the replica",
                dir.display()
            ),
            Problem::Unusable { dir, why } => {
                write!(f, "{} cannot be used: {why}", dir.display())
            }
        }
    }
}
