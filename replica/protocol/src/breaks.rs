//! Deliberate breaks: each switches one rule of the design off, so that the tests can show that
//! they notice (`make mutants`). Compiled in only under the feature `breaks`; without it
//! [`on`] is a constant `false` and costs nothing.

/// The rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Break {
    /// A region reports durable without having synced.
    SyncSkipped = 1,
    /// A member accepts a claim with an old generation number.
    OldGenerationAccepted,
    /// A member accepts a claim with the promised number from another claimant.
    EqualGenerationAccepted,
    /// Activation uses positions from the answers to the ask: who holds more by now is cut back.
    PositionsFromAsk,
    /// A smaller set is proposed before those that stay are durable up to the commit position.
    ShrinkBeforeLevel,
    /// A record in flight is counted once: only the old set's quorum is needed.
    RecordCountedOnce,
    /// A wiped replica votes and counts.
    WipedVotes,
    /// A rolled-back replica votes and counts.
    RolledBackCounts,
    /// Damage in the log is taken for a torn tail.
    DamageTakenForTorn,
    /// A member forgets its promise on restart.
    PromiseForgotten,
    /// A replica outside the set is counted for durability.
    OutOfSyncCounted,
    /// Entries above the commit position are checkpointed.
    UncommittedCheckpointed,
    /// A read is answered after the lease ran out.
    ReadAfterLease,
    /// A discard is punched late, over blocks written since.
    DiscardPunchedLate,
    /// A scrub takes the first copy for the right one, not what most replicas hold.
    ScrubBelievesAnybody,
    /// What a replica found in a range counts although the range changed meanwhile.
    OvertakenLookCounts,
}

impl Break {
    /// All of them, with the names used on the command line.
    pub const ALL: [(Break, &'static str); 16] = [
        (Break::SyncSkipped, "sync-skipped"),
        (Break::OldGenerationAccepted, "old-generation-accepted"),
        (Break::EqualGenerationAccepted, "equal-generation-accepted"),
        (Break::PositionsFromAsk, "positions-from-ask"),
        (Break::ShrinkBeforeLevel, "shrink-before-level"),
        (Break::RecordCountedOnce, "record-counted-once"),
        (Break::WipedVotes, "wiped-votes"),
        (Break::RolledBackCounts, "rolled-back-counts"),
        (Break::DamageTakenForTorn, "damage-taken-for-torn"),
        (Break::PromiseForgotten, "promise-forgotten"),
        (Break::OutOfSyncCounted, "out-of-sync-counted"),
        (Break::UncommittedCheckpointed, "uncommitted-checkpointed"),
        (Break::ReadAfterLease, "read-after-lease"),
        (Break::DiscardPunchedLate, "discard-punched-late"),
        (Break::ScrubBelievesAnybody, "scrub-believes-anybody"),
        (Break::OvertakenLookCounts, "overtaken-look-counts"),
    ];
}

#[cfg(feature = "breaks")]
mod switch {
    use std::cell::Cell;
    thread_local!(static ACTIVE: Cell<Option<super::Break>> = const { Cell::new(None) });

    /// Switches one break on, or all off, for this thread (one simulated world is one thread).
    pub fn set(which: Option<super::Break>) {
        ACTIVE.set(which);
    }

    /// Whether this break is on.
    pub fn on(which: super::Break) -> bool {
        ACTIVE.get() == Some(which)
    }
}

#[cfg(feature = "breaks")]
pub use switch::{on, set};

/// Whether this break is on.
#[cfg(not(feature = "breaks"))]
#[inline(always)]
pub fn on(_: Break) -> bool {
    false
}
