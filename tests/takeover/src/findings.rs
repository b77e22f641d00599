//! What clients saw and should not have: counted by kind, the first of each told in words.
//!
//! Bounded: [`MOST`] are kept; all are counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Findings kept in words, at most.
const MOST: usize = 100;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Something acknowledged as durable is not there, or older than it was.
    Lost,
    /// A handle no longer names its file.
    Stale,
    /// An input or output error.
    Io,
    /// A change of names happened not at all, or twice.
    NotOnce,
    /// A lock was lost, or two had it.
    Lock,
    /// An older reign answered after a newer one.
    TwoActive,
    /// A call that nobody answered for long, although somebody served.
    Hang,
    /// An answer that makes no sense, or another error.
    Answer,
    /// The cluster did not become whole again in time.
    NotWhole,
    /// A program beside the load was not content.
    Beside,
    /// Something was left behind.
    Leak,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Findings {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<Kind, u64>,
    words: Vec<(Kind, String)>,
}

impl Findings {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One more.
    pub fn add(&self, kind: Kind, words: String) {
        self.with(|i| {
            *i.counts.entry(kind).or_default() += 1;
            if i.words.len() < MOST {
                eprintln!("!! {kind:?}: {words}");
                i.words.push((kind, words));
            }
        });
    }

    /// One more, of the kind that this NFS status is; `twice` for calls whose status tells that
    /// they were carried out before, or not at all.
    pub fn status(&self, status: u32, once: bool, words: String) {
        const NOENT: u32 = 2;
        const EXIST: u32 = 17;
        let kind = match status {
            5 => Kind::Io,
            70 | 10_001 => Kind::Stale,
            NOENT | EXIST if once => Kind::NotOnce,
            _ => Kind::Answer,
        };
        self.add(kind, format!("{words}: status {status}"));
    }

    /// How many of this kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.with(|i| i.counts.get(&kind).copied().unwrap_or_default())
    }

    /// How many of all kinds.
    pub fn all(&self) -> u64 {
        self.with(|i| i.counts.values().sum())
    }

    /// All in words.
    pub fn words(&self) -> Vec<(Kind, String)> {
        self.with(|i| i.words.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_what_it_means_for_the_call() {
        let f = Findings::default();
        f.status(5, true, "write".into());
        f.status(70, false, "read".into());
        f.status(2, true, "rename".into());
        f.status(2, false, "lookup".into());
        assert_eq!(f.count(Kind::Io), 1);
        assert_eq!(f.count(Kind::Stale), 1);
        assert_eq!(f.count(Kind::NotOnce), 1);
        assert_eq!(f.count(Kind::Answer), 1);
        assert_eq!(f.all(), 4);
    }
}
