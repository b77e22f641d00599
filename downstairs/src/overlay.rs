//! Which blocks the log knows better than the extent files: an interval map, newest record wins.
//!
//! One discard of a whole volume is one interval. Bounded by the log: each record adds at most
//! its operations plus two pieces of what it splits.

use std::collections::BTreeMap;

use trivet_protocol::Position;

use crate::log::record::{Kind, Logged, Placed, What};

/// Some blocks, as one operation of one record left them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// Byte position in the log of the record that did it.
    pub record: u64,
    /// The operation that the record belongs to.
    pub position: Position,
    /// Copied from a peer during a resync, not an operation of the history.
    pub copied: bool,
    /// Where the content is.
    pub what: What,
}

impl Span {
    fn end(&self) -> u64 {
        self.block + self.count
    }

    /// The part within `from..to`, if any.
    pub fn clip(&self, from: u64, to: u64) -> Option<Span> {
        let (first, end) = (self.block.max(from), self.end().min(to));
        (first < end).then(|| Span {
            block: first,
            count: end - first,
            what: self.what.skip(first - self.block),
            ..*self
        })
    }
}

/// A stretch of blocks as a reader finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The log knows.
    Span(Span),
    /// The extent files know: first block and count.
    Below(u64, u64),
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    spans: BTreeMap<u64, Span>,
}

impl Overlay {
    /// Lays one operation of a record over everything before.
    pub fn put(&mut self, op: &Placed, record: &Logged) {
        let span = Span {
            block: op.block,
            count: op.count,
            record: record.pos,
            position: record.position,
            copied: record.kind == Kind::Copy,
            what: op.what,
        };
        self.clear(span.block, span.end());
        self.spans.insert(span.block, span);
    }

    fn clear(&mut self, from: u64, to: u64) {
        // The one that begins before and reaches in may have to be cut in two.
        let before = self.spans.range(..from).next_back().map(|(_, s)| *s);
        if let Some(s) = before.filter(|s| s.end() > from) {
            if let Some(left) = s.clip(0, from) {
                self.spans.insert(left.block, left);
            }
            if let Some(right) = s.clip(to, u64::MAX) {
                self.spans.insert(right.block, right);
            }
        }
        while let Some(s) = self.spans.range(from..to).next().map(|(_, s)| *s) {
            self.spans.remove(&s.block);
            if let Some(right) = s.clip(to, u64::MAX) {
                self.spans.insert(right.block, right);
            }
        }
    }

    /// Whether the log has anything to say about `from..to`.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.spans_in(from, to).next().is_some()
    }

    /// The spans that overlap `from..to`, whole, in order of blocks.
    pub fn spans_in(&self, from: u64, to: u64) -> impl Iterator<Item = &Span> {
        let before = self.spans.range(..from).next_back().map(|(_, s)| s);
        let before = before.filter(move |s| s.end() > from);
        let range = (from < to).then(|| self.spans.range(from..to).map(|(_, s)| s));
        before.into_iter().chain(range.into_iter().flatten())
    }

    /// Calls `f` for each stretch of `from..to`, in order, with nothing left out.
    pub fn walk<E>(
        &self,
        from: u64,
        to: u64,
        mut f: impl FnMut(Found) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = from;
        for span in self.spans_in(from, to) {
            let Some(part) = span.clip(from, to) else {
                continue;
            };
            if at < part.block {
                f(Found::Below(at, part.block - at))?;
            }
            f(Found::Span(part))?;
            at = part.end();
        }
        if at < to {
            f(Found::Below(at, to - at))?;
        }
        Ok(())
    }

    /// Forgets what records before byte position `upto` did: the extent files know it now.
    pub fn retire(&mut self, upto: u64) {
        self.spans.retain(|_, s| s.record >= upto);
    }

    /// All spans in order of blocks.
    pub fn iter(&self) -> impl Iterator<Item = &Span> {
        self.spans.values()
    }

    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the log knows nothing better.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::Rng;
    use crate::log::record::{Ops, Sums};
    use trivet_protocol::Seq;

    #[test]
    fn agrees_with_an_array_whatever_is_laid_over_what() {
        for seed in 0..200 {
            let mut rng = Rng(seed);
            let mut overlay = Overlay::default();
            // Per block: record and the data position that it should have.
            let mut model: Vec<Option<(u64, What)>> = vec![None; 100];
            for record in 0..60u64 {
                let block = rng.below(100);
                let count = 1 + rng.below(100 - block).min(rng.below(40));
                let what = match rng.below(3) {
                    0 => What::Discarded,
                    1 => What::Direct { sums: record << 20 },
                    _ => What::Log {
                        data: record << 30,
                        sums: Sums::At(record << 20),
                    },
                };
                let logged = Logged {
                    kind: Kind::Entry,
                    position: Position {
                        generation: 1,
                        seq: Seq(record),
                    },
                    pos: record,
                    len: 512,
                    ops: Ops::None,
                };
                overlay.put(&Placed { block, count, what }, &logged);
                for i in 0..count {
                    model[(block + i) as usize] = Some((record, what.skip(i)));
                }
                if rng.one_in(20) {
                    let upto = rng.below(record + 1);
                    overlay.retire(upto);
                    for m in &mut model {
                        *m = m.filter(|(r, _)| *r >= upto);
                    }
                }
                let (from, to) = (rng.below(50), 50 + rng.below(51));
                let mut at = from;
                let none: Result<(), ()> = overlay.walk(from, to, |found| {
                    match found {
                        Found::Below(first, n) => {
                            assert_eq!(first, at, "seed {seed}");
                            let holes = &model[first as usize..(first + n) as usize];
                            assert!(holes.iter().all(Option::is_none), "seed {seed}");
                            at += n;
                        }
                        Found::Span(s) => {
                            assert_eq!(s.block, at, "seed {seed}");
                            for i in 0..s.count {
                                let want = Some((s.record, s.what.skip(i)));
                                assert_eq!(model[(s.block + i) as usize], want, "seed {seed}");
                            }
                            at += s.count;
                        }
                    }
                    Ok(())
                });
                assert_eq!((none, at), (Ok(()), to), "seed {seed}");
            }
        }
    }
}
