//! What goes in and comes out of an upstairs: settings, wishes, effects, errors, notices.

use std::time::Duration;

use bytes::Bytes;
use trivet_protocol::message::Refusal;
use trivet_protocol::{Block, Checksum, Generation, MemberId, Seq, VolumeId};

use super::{LinkId, OutFrame};
use crate::volume::{Flushed, VolumeError};

/// What bounds an upstairs (invariant 10). Every field is a setting.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries kept in memory for replicas that lag or are away, in bytes.
    pub retain_bytes: u64,
    /// Submitted but not yet durable, in bytes: what a small durable write may have to wait for.
    pub window_bytes: u64,
    /// A replica that makes no progress for this long leaves the in-sync set.
    pub stall: Duration,
    /// How long an activation waits for healthy members beyond those that it needs.
    pub late_member: Duration,
    /// A read not answered within this time is asked of another replica.
    pub read_patience: Duration,
    /// Undurable data is synced after this long, unasked.
    pub sync_interval: Duration,
    /// Callers are kept waiting this long without a lease, then fail.
    pub lapse_patience: Duration,
    /// Positions and openings in the record are at most this old while the volume changes: what
    /// bounds how fresh a backup may be and still be recognised when it is restored.
    pub record_refresh: Duration,
    /// Resync copies at most this many bytes per second.
    pub resync_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            retain_bytes: 64 << 20,
            window_bytes: 16 << 20,
            stall: Duration::from_millis(600),
            late_member: Duration::from_millis(200),
            read_patience: Duration::from_millis(300),
            sync_interval: Duration::from_millis(20),
            lapse_patience: Duration::from_secs(10),
            record_refresh: Duration::from_secs(10),
            resync_rate: 200 << 20,
        }
    }
}

/// What an upstairs is told at the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The volume.
    pub volume: VolumeId,
    /// Name of this node, told to members and shown to people.
    pub node: String,
    /// Names of the nodes to reach, one per link, in the order of [`LinkId`].
    pub links: Vec<String>,
    /// The link that leads to this node's own replica, preferred for reads.
    pub local: Option<LinkId>,
    /// Bounds.
    pub limits: Limits,
}

/// Names one waiting caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// How to activate.
#[derive(Clone, Copy, Debug)]
pub struct ActivateOptions {
    /// Random; makes this attempt's claims its own (invariant 1).
    pub claim: u128,
    /// Wait for another holder's lease to run out, instead of refusing at once.
    pub wait_for_lease: bool,
    /// Give up after this long.
    pub patience: Duration,
    /// Serve although replicas that may hold acknowledged data cannot be heard.
    pub accept_data_loss: bool,
}

/// What the driver has to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this, after everything sent to the link before.
    Send(LinkId, OutFrame),
    /// Send this renewal, on a connection of its own where there is one: it is in no order with
    /// anything else, and must not wait behind anything.
    Renew(LinkId, OutFrame),
    /// Close the link's connection and open it again.
    Reset(LinkId),
    /// A flush is over.
    Flushed(WaitId, Flushed),
    /// Check these blocks' checksums (costly: not under a lock), then call
    /// [`Upstairs::verified`].
    Verify(Verify),
    /// A read is over.
    Read(WaitId, Result<Bytes, VolumeError>),
    /// A parked submission may be tried again.
    Room,
    /// The activation is over.
    Activated(Result<Generation, ActivateError>),
    /// Something that people should know; once.
    Notice(Notice),
}

/// A read's answer, to be verified.
#[derive(Debug)]
pub struct Verify {
    /// Number of the request.
    pub request: u64,
    /// Who answered.
    pub link: LinkId,
    /// First block.
    pub block: Block,
    /// As stored.
    pub sums: Vec<Checksum>,
    /// The content.
    pub data: Bytes,
}

impl Verify {
    /// Whether each block has the checksum it should have (invariant 7).
    pub fn check(&self, volume: VolumeId) -> bool {
        use trivet_protocol::BLOCK_BYTES;
        self.data.len() == self.sums.len() * BLOCK_BYTES
            && self
                .data
                .chunks_exact(BLOCK_BYTES)
                .zip(&self.sums)
                .enumerate()
                .all(|(i, (content, sum))| {
                    if sum.is_unwritten() {
                        content.iter().all(|b| *b == 0)
                    } else {
                        Checksum::of(volume, Block(self.block.0 + i as u64), content) == *sum
                    }
                })
    }
}

/// Why an activation failed. Wording is stable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivateError {
    /// Somebody else holds the volume.
    #[error("volume {volume} is {refusal}; demote it there first, or wait")]
    Held {
        /// The volume.
        volume: VolumeId,
        /// Who, since when, how much longer.
        refusal: Refusal,
    },
    /// Not enough members or replicas can be heard.
    #[error("volume {volume} cannot be activated safely: {needs}")]
    Unsafe {
        /// The volume.
        volume: VolumeId,
        /// Who is needed and how each member is.
        needs: String,
    },
    /// A higher generation came in between.
    #[error("volume {volume} was claimed by {holder} meanwhile")]
    Outrun {
        /// The volume.
        volume: VolumeId,
        /// Who.
        holder: String,
    },
    /// Already active, or stopped.
    #[error("volume {0} is already active here, or was stopped")]
    WrongState(VolumeId),
}

/// Things that people should know. Each is said once per occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Notice {
    Activated {
        generation: u64,
        in_sync: Vec<MemberId>,
    },
    DataLossAccepted {
        missing: Vec<MemberId>,
    },
    LeftSet {
        member: MemberId,
        why: &'static str,
    },
    JoinedSet {
        member: MemberId,
    },
    Unusable {
        member: MemberId,
        why: &'static str,
    },
    BadCopy {
        member: MemberId,
        block: u64,
    },
    Repaired {
        member: MemberId,
        block: u64,
    },
    ResyncStarted {
        member: MemberId,
        common: Seq,
    },
    ResyncDone {
        member: MemberId,
        copied_bytes: u64,
    },
    LeaseLapsed,
    LeaseBack,
    Deposed {
        holder: String,
    },
    NewReign {
        because_of: MemberId,
    },
    SingleCopy,
    LinkRefused {
        link: LinkId,
        why: String,
    },
    ScrubStarted,
    ScrubFound(super::Finding),
    ScrubDone {
        stopped: bool,
        looked: u64,
        wrong: u64,
        repaired: u64,
        left: u64,
    },
}

/// What became of a submission.
#[derive(Debug)]
pub enum Submitted {
    /// It is in the history at this place.
    At(Seq),
    /// Queues are full or the lease lapsed; try again after [`Effect::Room`].
    Full,
    /// It is not and will not be in the history.
    Failed(VolumeError),
}
