//! What everything above sees of a volume.
//!
//! Invariants at this seam (numbers from the design):
//! - Batches are in the history in the order in which [`Volume::submit`] returned their tickets,
//!   each wholly or not at all (4, 5). After a crash the content is a prefix of that history; so
//!   no flush is ever needed to order two writes.
//! - What was submitted is seen by every read that starts after `submit` returned.
//! - It is durable (3) once a [`Receipt`] covers its ticket, and only the flush path makes those.
//! - Queues are bounded (10): `submit` waits when they are full. `flush_then` and `read_then`
//!   never wait; their callbacks run on a thread of the volume's and must neither block nor
//!   call a method that can wait (`submit`, `read`, `flush`).

mod plain;

pub use plain::PlainVolume;

use bytes::Bytes;
use thiserror::Error;
pub use trivet_protocol::entry::{Batch, BatchOp};
pub use trivet_protocol::ids::{BLOCK_BYTES, Block, Seq, VolumeId};

/// Place in the volume's history of a submitted batch. Later batches have greater tickets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub Seq);

/// Proof that everything up to its ticket is durable (invariant 3). Only an implementation of
/// [`Volume`] makes one, at the end of its flush path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt(Ticket);

impl Receipt {
    /// For implementations of [`Volume`] alone: asserts that `upto` is durable.
    pub fn by_flush_path(upto: Ticket) -> Receipt {
        Receipt(upto)
    }

    /// Everything up to this ticket is durable.
    pub fn upto(&self) -> Ticket {
        self.0
    }

    /// Whether the batch of `ticket` is durable.
    pub fn covers(&self, ticket: Ticket) -> bool {
        ticket <= self.0
    }
}

/// Result of a flush.
pub type Flushed = Result<Receipt, VolumeError>;
/// Called once with the result of a flush.
pub type FlushDone = Box<dyn FnOnce(Flushed) + Send>;
/// Called once with the content of the blocks that were read, in order.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, VolumeError>) + Send>;

/// Leave to prepare and submit a large write, until it is dropped: see [`Volume::admit`].
#[must_use = "it is over when this is dropped"]
#[derive(Default)]
pub struct Admission<'a>(Option<Box<dyn FnOnce() + 'a>>);

impl<'a> Admission<'a> {
    /// For implementations of [`Volume`] alone: `over` is called when it is dropped.
    pub fn until(over: impl FnOnce() + 'a) -> Admission<'a> {
        Admission(Some(Box::new(over)))
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(over) = self.0.take() {
            over();
        }
    }
}

/// What a volume is, at the moment of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Identity.
    pub id: VolumeId,
    /// Size in blocks; grows, never shrinks.
    pub blocks: u64,
    /// Number of the generation that serves.
    pub generation: u64,
    /// How often completed but unflushed writes may have been lost so far; with identity and
    /// generation this makes NFS's write verifier (invariant 9).
    pub losses: u64,
}

/// Room beneath a thin volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Bytes that can still be written to blocks that take no space yet, on the fullest of the
    /// pools beneath; `u64::MAX` where nothing limits it.
    pub free_bytes: u64,
    /// Size of the smallest pool beneath, in bytes.
    pub pool_bytes: u64,
}

/// Why a volume did not do what was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VolumeError {
    /// Out of range, misaligned or too large; a mistake of the caller's.
    #[error("bad request to volume: {0}")]
    BadRequest(String),
    /// A pool beneath has no room for new blocks; nothing was changed. Overwrites and discards
    /// may still succeed.
    #[error("no space left in the pool beneath the volume: {0}")]
    NoSpace(String),
    /// This upstairs does not hold the volume (any more): lease lapsed, deposed or shut down.
    /// Whether an unanswered operation took effect is unknown.
    #[error("volume is not held here: {0}")]
    NotActive(String),
    /// No good copy of these blocks could be had from any in-sync replica.
    #[error("block {block} of the volume cannot be read: {why}")]
    Unreadable {
        /// First block affected.
        block: u64,
        /// What was tried.
        why: String,
    },
    /// The disk beneath failed (single-file volumes only).
    #[error("I/O error: {0}")]
    Io(String),
}

/// A replicated virtual disk as its user sees it: an array of blocks with one history.
pub trait Volume: Send + Sync {
    /// Identity, size, reign.
    fn info(&self) -> VolumeInfo;

    /// Room beneath.
    fn space(&self) -> SpaceInfo;

    /// Whether answers may leave at this moment (invariant 2): whoever answers from a cache of his
    /// own asks this after he looked, just before the answer leaves. False while the lease is
    /// lapsed; false for ever once another has claimed. Takes no lock and far below a microsecond.
    fn holds(&self) -> bool;

    /// Reads whole blocks; unwritten ones are zeros. `out` is a non-empty multiple of
    /// [`BLOCK_BYTES`] and at most 1 MiB. Waits.
    ///
    /// # Errors
    /// [`VolumeError`]; `out` is then unspecified.
    fn read(&self, block: Block, out: &mut [u8]) -> Result<(), VolumeError>;

    /// Reads `count` blocks (1 to 256) and calls `done`, perhaps before returning if the content
    /// is at hand.
    fn read_then(&self, block: Block, count: u32, done: ReadDone);

    /// To be asked for before a large write is prepared, and kept until it was submitted. Waits
    /// while so much is undurable that others' flushes would have to wait for long; so it is asked
    /// for before any lock that small writes need. It promises nothing: a volume that fails says so
    /// when the write is submitted.
    fn admit(&self, bytes: u64) -> Admission<'_> {
        let _ = bytes;
        Admission::default()
    }

    /// Takes a batch into the history. On return it is in effect for every later read, but
    /// volatile until flushed. Waits while queues are full.
    ///
    /// # Errors
    /// [`VolumeError`]; the batch then had no effect, except for [`VolumeError::NotActive`],
    /// after which nothing more succeeds and the batch may or may not be in the history.
    fn submit(&self, batch: Batch) -> Result<Ticket, VolumeError>;

    /// Calls `done` once everything up to `upto` is durable, or failed to become so. Concurrent
    /// flushes share one.
    fn flush_then(&self, upto: Ticket, done: FlushDone);

    /// The newest ticket given out.
    fn last_ticket(&self) -> Ticket;

    /// Enlarges the volume; durable when it returns.
    ///
    /// # Errors
    /// [`VolumeError::BadRequest`] if `blocks` is smaller than the size or too large.
    fn grow(&self, blocks: u64) -> Result<(), VolumeError>;

    /// Waits until everything up to `upto` is durable.
    ///
    /// # Errors
    /// [`VolumeError`]: it may be durable or not.
    fn flush(&self, upto: Ticket) -> Flushed {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.flush_then(
            upto,
            Box::new(move |r| {
                // The receiver waits below for exactly this one message.
                let _ = tx.send(r);
            }),
        );
        rx.recv().unwrap_or_else(|_| {
            Err(VolumeError::NotActive(
                "the volume went away during a flush".into(),
            ))
        })
    }

    /// Waits until everything submitted so far is durable.
    ///
    /// # Errors
    /// As [`Volume::flush`].
    fn flush_all(&self) -> Flushed {
        self.flush(self.last_ticket())
    }
}

/// Checks a read's place and size against a volume of `blocks` blocks.
///
/// # Errors
/// [`VolumeError::BadRequest`].
pub fn check_read(block: Block, bytes: usize, blocks: u64) -> Result<u32, VolumeError> {
    let count = bytes / BLOCK_BYTES;
    let limit = trivet_protocol::limits::MAX_READ_BLOCKS as usize;
    if !bytes.is_multiple_of(BLOCK_BYTES) || count == 0 || count > limit {
        return Err(VolumeError::BadRequest(format!(
            "a read of {bytes} bytes; whole blocks of {BLOCK_BYTES}, at most {limit}, are possible"
        )));
    }
    if block
        .0
        .checked_add(count as u64)
        .is_none_or(|end| end > blocks)
    {
        return Err(VolumeError::BadRequest(format!(
            "a read of {count} blocks at {} passes the volume's end at {blocks}",
            block.0
        )));
    }
    Ok(count as u32)
}
