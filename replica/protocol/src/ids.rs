//! Newtypes for every number that travels between modules.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::{MAX_GENERATION, MAX_SEQ};

/// Bytes in one block, the unit of a volume.
pub const BLOCK_BYTES: usize = 4096;

/// Identity of a volume; part of every block's checksum (invariant 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub Uuid);

/// Identity of a member (a region or a witness). Minted once, when a volume is created or a
/// member is added; never reused (design section 5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(pub Uuid);

macro_rules! uuid_newtype {
    ($name:ident) => {
        impl $name {
            /// A new random identity.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
            /// The sixteen bytes, in the order of RFC 9562.
            pub fn bytes(&self) -> [u8; 16] {
                *self.0.as_bytes()
            }
            /// The identity with these sixteen bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // The first eight hex digits are enough to tell members apart in a log line.
                write!(f, "{}", &self.0.simple().to_string()[..8])
            }
        }
    };
}
uuid_newtype!(VolumeId);
uuid_newtype!(MemberId);

/// A block's number within its volume; byte offset divided by [`BLOCK_BYTES`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Block(pub u64);

/// Place of an operation in the volume's one history (invariant 4). Starts at 1 and goes up by
/// one for each operation, across generations; 0 is "before the first".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first operation.
    pub const ZERO: Seq = Seq(0);
    /// The operation after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The reign of one active upstairs (invariant 1): a number that only goes up, and the random id
/// of the attempt that claimed it. The same number with another id is another claimant.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Higher wins. 0 means "never claimed". Never taken from a clock.
    pub number: u64,
    /// Random id of the attempt.
    pub claim: u128,
}

impl Generation {
    /// Nobody has claimed yet.
    pub const NONE: Generation = Generation {
        number: 0,
        claim: 0,
    };
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}/{:08x}", self.number, (self.claim >> 96) as u32)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)
    }
}

/// End of a history: the generation number in which its last operation was ordered, and that
/// operation's sequence number. Ordered by generation first: of two histories the one with the
/// greater position contains everything that was acknowledged (design section 6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Generation number of the last operation.
    pub generation: u64,
    /// Sequence number of the last operation.
    pub seq: Seq,
}

/// A span of time in milliseconds, for lease lengths and time-outs in durable or wire formats.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Millis(pub u64);

impl Millis {
    /// As a standard duration.
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

/// Where each generation's operations ended, oldest first: how two histories find their common
/// part in one exchange (design section 5).
///
/// Bounded to [`GenerationTable::MAX`] rows; of older generations only the fact is kept that the
/// table was cut, and histories that part before its first row have no known common part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationTable {
    /// (generation number, last sequence number ordered in it), both strictly increasing.
    rows: Vec<(u64, Seq)>,
    /// Operations up to here are no longer described by a row.
    floor: Seq,
}

impl GenerationTable {
    /// Rows kept at most.
    pub const MAX: usize = 256;

    /// Builds a table from its parts; `None` if rows do not strictly increase above `floor`, are
    /// too many, or leave the range of generations or places.
    pub fn from_parts(floor: Seq, rows: Vec<(u64, Seq)>) -> Option<Self> {
        let mut last = (0, floor);
        for &(g, s) in &rows {
            if g <= last.0 || s <= last.1 {
                return None;
            }
            last = (g, s);
        }
        let in_range = last.0 <= MAX_GENERATION && last.1.0 <= MAX_SEQ;
        (in_range && rows.len() <= Self::MAX).then_some(Self { rows, floor })
    }

    /// Whether the table could have come from [`GenerationTable::from_parts`]: one that was decoded
    /// is not believed before.
    pub fn is_sound(&self) -> bool {
        Self::from_parts(self.floor, self.rows.clone()).is_some()
    }

    /// The rows, oldest first.
    pub fn rows(&self) -> &[(u64, Seq)] {
        &self.rows
    }

    /// Operations up to here are not described.
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// End of the history.
    pub fn end(&self) -> Position {
        match self.rows.last() {
            Some(&(generation, seq)) => Position { generation, seq },
            None => Position {
                generation: 0,
                seq: self.floor,
            },
        }
    }

    /// Notes that operation `seq` was ordered in `generation`. Returns false, changing nothing,
    /// unless it directly follows the end and the generation does not go down.
    pub fn extend(&mut self, generation: u64, seq: Seq) -> bool {
        let end = self.end();
        if seq != end.seq.next() || generation < end.generation || generation == 0 {
            return false;
        }
        match self.rows.last_mut() {
            Some(row) if row.0 == generation => row.1 = seq,
            _ => self.rows.push((generation, seq)),
        }
        if self.rows.len() > Self::MAX {
            let (_, s) = self.rows.remove(0);
            self.floor = s;
        }
        true
    }

    /// Forgets everything after `seq`.
    pub fn cut(&mut self, seq: Seq) {
        while let Some(&(g, end)) = self.rows.last() {
            if end <= seq {
                break;
            }
            self.rows.pop();
            let start = self.rows.last().map_or(self.floor, |r| r.1);
            if start < seq {
                self.rows.push((g, seq));
            }
        }
    }

    /// Generation in which `seq` was ordered, if the table still describes it.
    pub fn generation_of(&self, seq: Seq) -> Option<u64> {
        if seq <= self.floor {
            return None;
        }
        self.rows.iter().find(|r| seq <= r.1).map(|r| r.0)
    }

    /// The last operation that both histories share, or `None` if the tables do not reach back
    /// far enough to tell. Two histories agree up to `s` exactly when both ordered `s` in the
    /// same generation, because a generation has one writer (invariant 1).
    pub fn common(&self, other: &GenerationTable) -> Option<Seq> {
        let mut best: Option<Seq> = None;
        for &(g, end) in &self.rows {
            if let Some(&(_, other_end)) = other.rows.iter().find(|r| r.0 == g) {
                best = Some(end.min(other_end));
            }
        }
        // No shared generation: either nothing is shared, or what is shared is no longer described.
        let empty = |t: &GenerationTable| t.end().seq == Seq::ZERO;
        let whole = self.floor == Seq::ZERO && other.floor == Seq::ZERO;
        best.or_else(|| (whole || empty(self) || empty(other)).then_some(Seq::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(u64, u64)]) -> GenerationTable {
        GenerationTable::from_parts(Seq(0), rows.iter().map(|r| (r.0, Seq(r.1))).collect()).unwrap()
    }

    #[test]
    fn histories_part_where_the_shorter_reign_ended() {
        let a = table(&[(1, 10), (2, 14)]);
        let b = table(&[(1, 12), (3, 20)]);
        assert_eq!(a.common(&b), Some(Seq(10)));
        assert_eq!(b.common(&a), Some(Seq(10)));
        assert_eq!(a.common(&a), Some(Seq(14)));
        assert_eq!(a.common(&GenerationTable::default()), Some(Seq(0)));
        assert_eq!(table(&[(1, 3)]).common(&table(&[(2, 3)])), Some(Seq(0)));
    }

    #[test]
    fn cut_keeps_the_part_of_a_reign_before_it() {
        let mut a = table(&[(1, 10), (2, 14), (5, 15)]);
        a.cut(Seq(12));
        assert_eq!(a, table(&[(1, 10), (2, 12)]));
        a.cut(Seq(10));
        assert_eq!(a, table(&[(1, 10)]));
        a.cut(Seq(0));
        assert_eq!(a.end(), Position::default());
    }

    #[test]
    fn extend_refuses_gaps_and_lower_generations() {
        let mut a = table(&[(2, 4)]);
        assert!(!a.extend(2, Seq(6)));
        assert!(!a.extend(1, Seq(5)));
        assert!(a.extend(3, Seq(5)));
        assert_eq!(a.generation_of(Seq(4)), Some(2));
        assert_eq!(a.generation_of(Seq(5)), Some(3));
    }
}
