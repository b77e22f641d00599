//! How long each step of a move took.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::messages::{Move, MoveKind};

/// A move under way.
pub struct Timeline {
    began: Instant,
    marks: Vec<(String, f64)>,
}

impl Timeline {
    /// It begins now.
    pub fn begin() -> Timeline {
        Timeline {
            began: Instant::now(),
            marks: Vec::new(),
        }
    }

    /// What was done so far, and when.
    pub fn marks(&self) -> &[(String, f64)] {
        &self.marks
    }

    /// A step is done.
    pub fn mark(&mut self, what: &str) {
        let ms = self.began.elapsed().as_secs_f64() * 1000.0;
        self.marks
            .push((what.to_owned(), (ms * 10.0).round() / 10.0));
    }

    /// The whole move is done.
    pub fn done(self, node: &str, why: MoveKind, generation: u64) -> Move {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        Move {
            node: node.to_owned(),
            why,
            // A clock before 1970 is shown as 1970: it is for people only.
            at: at.map_or(0, |d| d.as_secs()),
            generation,
            timeline: self.marks,
        }
    }
}
