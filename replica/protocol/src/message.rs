//! Control messages: rare, small, encoded with bincode inside a frame that carries version,
//! lengths and CRC. Nothing encoded here is ever stored on disk.
//!
//! **Space credits.** Each [`crate::frame::Kind::Durable`] and [`Welcome`] states how many bytes
//! of new data the upstairs may have sent in all since this connection began. The upstairs counts
//! every written byte as new; it stops with ENOSPC before it passes the smallest limit of its
//! in-sync set, but for batches that only write over what is written, where all their pools
//! overwrite in place. So a full pool is an error to the writer, never a broken promise (design 5).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::checksum::Checksum;
use crate::ids::{Generation, GenerationTable, MemberId, Millis, Position, Seq, VolumeId};
pub use crate::limits::MAX_SCRUB_BLOCKS;
use crate::limits::{LEASE_RANGE_MS, MAX_FRAME_META, MAX_GENERATION, MAX_NAME, MAX_SEQ};
use crate::record::{MemberKind, Record};

/// From the upstairs to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First on each connection: which volume, and which member is expected there. Answered
    /// with [`Reply::Welcome`]. Also serves as the *ask* of an activation: it changes nothing.
    Hello {
        /// The volume.
        volume: VolumeId,
        /// The member that should be there; `None` if not known yet.
        member: Option<MemberId>,
        /// Name of the asking node, for messages.
        node: String,
    },
    /// Claim the generation in the header. Answered with [`Reply::Granted`].
    Claim {
        /// Name of the claiming node.
        node: String,
    },
    /// Renew the promise for the generation in the header. Answered with [`Reply::Renewed`].
    Renew,
    /// Store this record durably. Answered with [`Reply::Recorded`].
    PutRecord(Record),
    /// The holder is done: the promise ends now, durably. Answered with [`Reply::Done`].
    HandBack,
    /// Forget entries above this place, durably. Answered with [`Reply::Done`].
    Cut(Seq),
    /// Send entries from the log, from this place on, at most about `max_bytes` of them, as
    /// `LogEntry` frames; then [`Reply::Fetched`].
    Fetch {
        /// First entry wanted.
        from: Seq,
        /// Stop after about this many bytes of data.
        max_bytes: u32,
    },
    /// Become *mixed*: jump to `base` in the history and expect the blocks that differ since
    /// `common` by copies. Durable. Answered with [`Reply::Done`].
    BeginResync {
        /// Last place that both histories share; zero if unknown.
        common: Seq,
        /// End of the volume's history after this call.
        table: GenerationTable,
    },
    /// All copies were sent: sync, and stop being mixed, durably. Answered with [`Reply::Done`].
    FinishResync,
    /// Ranges of blocks changed after `since`, from block `cursor` on. Answered with
    /// [`Reply::Changed`].
    Changed {
        /// Only changes after this place count.
        since: Seq,
        /// First block to look at.
        cursor: u64,
        /// Ranges wanted at most.
        max: u32,
    },
    /// Checksums of a range. Answered with [`Reply::Sums`].
    Sums {
        /// First block.
        block: u64,
        /// Number of blocks, at most 4096.
        count: u32,
    },
    /// Find out how the member is. Answered with [`Reply::Welcome`].
    Status,
    /// First on a connection that carries nothing but [`Request::Renew`], so that no load and no
    /// disk can keep a renewal waiting. Answered with [`Reply::Done`].
    Attend {
        /// The volume.
        volume: VolumeId,
        /// The member that should be there.
        member: Option<MemberId>,
    },
    /// Read a range from the disk and check it against its checksums, as it is at this place of
    /// the stream. Answered with [`Reply::Scrubbed`].
    Scrub {
        /// First block.
        block: u64,
        /// Number of blocks, at most [`MAX_SCRUB_BLOCKS`].
        count: u32,
        /// Let nothing be written meanwhile: then it is [`Scrubbed::Overtaken`] only if it cannot
        /// be read in one go.
        held: bool,
    },
}

/// From a member to the upstairs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // rare messages, boxed by nobody
pub enum Reply {
    /// How the member is; changes nothing.
    Welcome(Welcome),
    /// The claim is durably accepted, and the promise runs.
    Granted(Welcome),
    /// The promise was renewed.
    Renewed,
    /// The record of this version is durable here.
    Recorded(crate::record::RecordVersion),
    /// Done.
    Done,
    /// All entries that were asked for and are there were sent; the log's first is `first`.
    Fetched {
        /// Oldest entry that the log still holds.
        first: Seq,
        /// Newest.
        last: Seq,
    },
    /// Ranges (first block, count), ascending; `next` is the cursor to go on from.
    Changed {
        /// The ranges.
        ranges: Vec<(u64, u32)>,
        /// Where to go on; `None` at the end.
        next: Option<u64>,
    },
    /// Checksums in block order.
    Sums(Vec<Checksum>),
    /// Refused.
    Refused(Refusal),
    /// What a range was found to be.
    Scrubbed(Scrubbed),
}

/// See [`Request::Scrub`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scrubbed {
    /// Something in the range was written, or moved out of the log, while it was read: ask again.
    Overtaken,
    /// It was read.
    Read {
        /// The checksums that are kept, in block order.
        sums: Vec<Checksum>,
        /// Blocks that are not as they should be: offset in the range, ascending.
        bad: Vec<(u32, Bad)>,
    },
}

/// What is wrong with a replica's copy of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bad {
    /// The content cannot be read, or does not match the checksum that is kept.
    Content,
    /// The checksum that is kept cannot be read or is damaged; the one in `sums` means nothing.
    Checksum,
}

/// How sure a member is of its log's end (design section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tail {
    /// The log ends where it says.
    Clean,
    /// A torn or unreadable record follows: something unsynced, or something rotten.
    Unsure,
}

/// State of a member's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataState {
    /// A witness has none.
    None,
    /// A whole prefix of the history.
    Whole(Tail),
    /// In the middle of a resync from this common place: no version of anything.
    Mixed(Seq),
    /// Found damaged; must be rebuilt.
    Damaged,
}

/// How a member is, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who it is.
    pub member: MemberId,
    /// Replica or witness.
    pub kind: MemberKind,
    /// Its record.
    pub record: Record,
    /// The generation it has promised to.
    pub promise: Generation,
    /// Node that claimed it.
    pub holder: String,
    /// How long the promise still runs; zero if it does not.
    pub lease_left: Millis,
    /// The promise was handed back.
    pub handed_back: bool,
    /// How long ago the promise was made; zero if it does not run.
    pub held_for: Millis,
    /// State of its data.
    pub data: DataState,
    /// Its history; the end may not be durable yet.
    pub table: GenerationTable,
    /// Durable end; of a witness, the version of its record ([`RecordVersion::position`]).
    ///
    /// [`RecordVersion::position`]: crate::record::RecordVersion::position
    pub durable: Position,
    /// Everything up to here has left the log: it cannot be cut off any more.
    pub checkpointed: Seq,
    /// Oldest entry still in the log.
    pub log_first: Seq,
    /// How often its region was opened.
    pub opens: u64,
    /// Credit limit in bytes since this connection began.
    pub credit: u64,
    /// Bytes free in its pool.
    pub pool_free: u64,
    /// Size of its pool in bytes.
    pub pool_size: u64,
}

impl Welcome {
    /// Why this cannot be believed, if it cannot: numbers from the network are bounded before they
    /// are reckoned with.
    pub fn problem(&self) -> Option<&'static str> {
        let place = |s: Seq| s.0 <= MAX_SEQ;
        // Twice what the longest lease and its margin make.
        let longest = LEASE_RANGE_MS.end() * 2;
        if let Some(problem) = self.record.problem() {
            Some(problem)
        } else if !self.table.is_sound() {
            Some("its generation table cannot be")
        } else if self.promise.number > MAX_GENERATION
            || self.durable.generation > MAX_GENERATION
            || ![self.durable.seq, self.checkpointed, self.log_first]
                .into_iter()
                .all(place)
            || matches!(self.data, DataState::Mixed(common) if !place(common))
            || self.opens > MAX_SEQ
        {
            Some("a generation, place or counter is out of range")
        } else if self.lease_left.0 > longest || self.holder.len() > MAX_NAME {
            Some("the promise that it tells of cannot be")
        } else {
            None
        }
    }
}

/// Why a member does not do what was asked. Wording is stable.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The lease of another holder still runs.
    #[error("held by {holder} for {held_for_ms} ms, lease runs for {left_ms} ms more", held_for_ms = held_for.0, left_ms = left.0)]
    Leased {
        /// Node of the holder.
        holder: String,
        /// How long it has held the volume.
        held_for: Millis,
        /// How long until the promise ends.
        left: Millis,
    },
    /// A higher or another generation was promised (invariant 1).
    #[error("generation {} was promised to {holder}", promise.number)]
    Fenced {
        /// What was promised.
        promise: Generation,
        /// To whom.
        holder: String,
    },
    /// The member is no longer a member.
    #[error("this member was removed from the volume")]
    Removed(Box<Record>),
    /// Another volume, or another member, lives here.
    #[error("not here: {0}")]
    NotHere(String),
    /// The member's state is lost, rolled back or damaged; it must be replaced.
    #[error("unusable member: {0}")]
    Unusable(String),
    /// A pool is full.
    #[error("no space: {0}")]
    NoSpace(String),
    /// The disk failed.
    #[error("disk error: {0}")]
    Disk(String),
    /// The request makes no sense in this state.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The log does not hold this entry, or no longer holds its data: whoever lacks it needs a
    /// resync.
    #[error("operation {0} is not in the log")]
    NotInLog(Seq),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<MAX_FRAME_META>()
}

/// Bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Bytes {
    // Encoding plain structs into memory cannot fail short of the limit, which no message of
    // ours reaches; an empty body is refused by the decoder on the other side.
    bincode::serde::encode_to_vec(message, config())
        .map(Bytes::from)
        .unwrap_or_default()
}

/// A message of bytes; all of them must be used.
///
/// # Errors
/// A short description for the log.
pub fn decode<T: for<'a> Deserialize<'a>>(raw: &[u8]) -> Result<T, String> {
    match bincode::serde::decode_from_slice::<T, _>(raw, config()) {
        Ok((message, used)) if used == raw.len() => Ok(message),
        Ok((_, used)) => Err(format!(
            "{} bytes too many in a control message",
            raw.len() - used
        )),
        Err(e) => Err(format!("malformed control message: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_there_and_back_and_nothing_may_be_left_over() {
        let r = Request::Hello {
            volume: VolumeId::from_bytes([1; 16]),
            member: None,
            node: "pve1".into(),
        };
        let mut raw = encode(&r).to_vec();
        assert_eq!(decode::<Request>(&raw).unwrap(), r);
        raw.push(0);
        assert!(decode::<Request>(&raw).is_err());
        assert!(decode::<Request>(&raw[..5]).is_err());
    }
}
