//! The order of reigns, from the write verifiers that clients were given (invariants 1 and 2): once
//! an answer of a newer reign has been received, no call sent after that is answered by an older
//! one.

use std::sync::{Mutex, PoisonError};

/// A write verifier.
pub type Verifier = [u8; 8];

/// See the module's head.
#[derive(Debug, Default)]
pub struct Reigns {
    seen: Mutex<Vec<Verifier>>,
}

impl Reigns {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Verifier>) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many have been seen; to be asked before a call is sent first.
    pub fn count(&self) -> usize {
        self.with(|s| s.len())
    }

    /// An answer with this verifier, to a call that was sent when `known` had been seen.
    ///
    /// # Errors
    /// It is of an older reign than one that was known when the call was sent; which, and the
    /// newest of those, counted from 1.
    pub fn answered(&self, known: usize, verifier: Verifier) -> Result<(), (usize, usize)> {
        self.with(|seen| match seen.iter().position(|v| *v == verifier) {
            Some(at) if at + 1 < known => Err((at + 1, known)),
            Some(_) => Ok(()),
            // Whether it is newer than those that were seen while the call was under way cannot be
            // told from here; its next answer tells.
            None if known < seen.len() => Ok(()),
            None => {
                seen.push(verifier);
                Ok(())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_reign_may_only_answer_what_was_sent_before() {
        let r = Reigns::default();
        let (a, b) = ([1; 8], [2; 8]);
        assert_eq!(r.answered(r.count(), a), Ok(()));
        let sent_early = r.count();
        assert_eq!(r.answered(r.count(), b), Ok(()));
        assert_eq!(r.answered(sent_early, a), Ok(()), "sent before b answered");
        assert_eq!(r.answered(r.count(), a), Err((1, 2)));
        assert_eq!(r.answered(r.count(), b), Ok(()));
    }

    #[test]
    fn a_reign_whose_place_is_unsure_is_not_placed() {
        let r = Reigns::default();
        let early = r.count();
        assert_eq!(r.answered(r.count(), [2; 8]), Ok(()));
        assert_eq!(
            r.answered(early, [1; 8]),
            Ok(()),
            "late answer of an old one"
        );
        assert_eq!(r.count(), 1);
    }
}
