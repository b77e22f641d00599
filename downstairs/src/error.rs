//! What can go wrong in a downstairs, said so that a person knows what happened, to what, and
//! what to do next.

use std::io;

use thiserror::Error;
use trivet_protocol::{EntryError, Seq};

/// Result of everything in this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a region, witness or pool did not do what was asked.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StoreError {
    #[error("{action} {what}: {source}; look at the disk beneath (dmesg, smartctl)")]
    Io {
        action: &'static str,
        what: String,
        source: io::Error,
    },
    #[error("no space left in the pool while trying to {action} {what}; free or add space")]
    NoSpace { action: &'static str, what: String },
    #[error("{what} is damaged: {why}")]
    Corrupt { what: String, why: String },
    #[error("checksums of blocks {first} to {last} are damaged on this replica: {why}")]
    CorruptBlocks { first: u64, last: u64, why: String },
    #[error(
        "region trusts its disk no longer: {why}; everything synced before is safe, \
         reopen the region once the disk is well"
    )]
    Poisoned { why: String },
    #[error("operation {got} offered where {expected} comes next")]
    BadSeq { expected: Seq, got: Seq },
    #[error("an operation of generation {got} offered after one of generation {have}")]
    GenerationDown { have: u64, got: u64 },
    #[error("unacceptable operation: {0}")]
    BadEntry(#[from] EntryError),
    #[error(
        "the log is full: {need} bytes needed, {free} free; durable {durable}, committed \
         {commit}, checkpointed {checkpointed}, kept for slower replicas above {trim}"
    )]
    LogFull {
        need: u64,
        free: u64,
        durable: Seq,
        commit: Seq,
        checkpointed: Seq,
        trim: Seq,
    },
    #[error(
        "cannot cut the history back to {to}: operations up to {checkpointed} are committed or in place"
    )]
    CutTooFar { to: Seq, checkpointed: Seq },
    #[error("operation {0} is no longer, or not yet, in the log")]
    NotInLog(Seq),
    #[error("blocks {first} to {last} are beyond the region's {blocks}")]
    OutOfRange { first: u64, last: u64, blocks: u64 },
    #[error("region is not in the right state: {0}")]
    WrongState(&'static str),
    #[error("{what} cannot be used: {why}")]
    Foreign { what: String, why: String },
}

impl StoreError {
    /// An I/O error with what was being done to what; out of space is a case of its own.
    pub fn io(action: &'static str, what: impl Into<String>, source: io::Error) -> StoreError {
        let what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::NoSpace { action, what }
            }
            _ => StoreError::Io {
                action,
                what,
                source,
            },
        }
    }

    /// A failed sync. Never a mere lack of space, even if that was the reason: what was not synced
    /// before may be gone.
    pub fn sync(what: impl Into<String>, source: io::Error) -> StoreError {
        StoreError::Io {
            action: "sync",
            what: what.into(),
            source,
        }
    }

    /// Damage found in `what`.
    pub fn corrupt(what: impl Into<String>, why: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            what: what.into(),
            why: why.into(),
        }
    }
}
