//! How much of a stream may be undurable at a time.
//!
//! The history is one (invariant 4), so a flush waits for all that was ordered before it, and a
//! stream that is let ahead by megabytes makes every small durable write wait for them. How many
//! megabytes a disk takes in a given time differs by orders of magnitude between disks, so the
//! room for streams is found by measuring: it shrinks while what a flush would wait is above
//! [`TARGET`], and grows while a stream is held back and that is well below it.
//!
//! Only who asks for admission ([`Upstairs::admit`]) is held back. Small writes never ask: their
//! bound is [`super::Limits::window_bytes`].

use std::collections::VecDeque;
use std::time::Duration;

use trivet_protocol::{Now, Seq};

use super::Upstairs;

/// What a flush may have to wait for what was ordered before it.
const TARGET: Duration = Duration::from_millis(20);
/// Room for streams at the start, and the least that it shrinks to: syncs of less cost more than
/// they carry.
const FIRST: u64 = 8 << 20;
const LEAST: u64 = 2 << 20;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Pace {
    room: u64,
    most: u64,
    /// Admitted and not known durable, in bytes.
    used: u64,
    /// Of these, what is in the history: up to where it must be durable, and how much.
    ordered: VecDeque<(Seq, u64)>,
    /// The end of the history when a sync was asked for, and when that was.
    measured: Option<(Seq, Now)>,
    /// Somebody was not admitted since the last measurement.
    held_back: bool,
}

impl Pace {
    /// Room that never grows beyond `most` bytes.
    pub fn new(most: u64) -> Pace {
        Pace {
            room: FIRST.min(most),
            most,
            used: 0,
            ordered: VecDeque::new(),
            measured: None,
            held_back: false,
        }
    }

    /// `anyway`: there is nobody to wait for.
    fn admit(&mut self, bytes: u64, anyway: bool) -> bool {
        // One write beyond the room at most; a large one must not wait for ever behind small ones.
        let fits = anyway || self.used < self.room;
        match fits {
            true => self.used = self.used.saturating_add(bytes),
            false => self.held_back = true,
        }
        fits
    }

    fn ordered(&mut self, upto: Seq, bytes: u64) {
        match self.ordered.back_mut() {
            Some((last, sum)) if *last >= upto => *sum = sum.saturating_add(bytes),
            _ => self.ordered.push_back((upto, bytes)),
        }
    }

    /// A new reign begins, with everything up to `commit` durable.
    pub fn begin(&mut self, now: Now, commit: Seq) {
        self.measured = None;
        self.durable(now, commit);
    }

    /// A sync of everything up to `last` is asked for.
    pub fn sync_asked(&mut self, now: Now, last: Seq) {
        self.measured.get_or_insert((last, now));
    }

    /// Everything up to `commit` is durable.
    pub fn durable(&mut self, now: Now, commit: Seq) {
        while let Some(&(upto, bytes)) = self.ordered.front()
            && upto <= commit
        {
            self.ordered.pop_front();
            self.used = self.used.saturating_sub(bytes);
        }
        let Some((_, asked)) = self.measured.take_if(|(upto, _)| *upto <= commit) else {
            return;
        };
        let took = now.since(asked);
        if took > TARGET {
            self.room -= self.room / 8;
        } else if took < TARGET / 2 && std::mem::take(&mut self.held_back) {
            self.room += self.room / 8;
        }
        self.room = self.room.clamp(LEAST.min(self.most), self.most);
    }
}

impl Upstairs {
    /// Whether a write of `bytes` may be prepared now, or has to wait for room, which
    /// [`super::Effect::Room`] tells. An admitted one is to be reported by
    /// [`Upstairs::admission_over`].
    pub fn admit(&mut self, now: Now, bytes: u64) -> bool {
        // Whoever waits for a volume that serves nobody learns that from `submit`.
        let admitted = self.pace.admit(bytes, !self.serves());
        self.room_wanted |= !admitted;
        if !admitted && self.is_active() && self.pace.measured.is_none() {
            // Nobody else asks for what would make room, or only later.
            self.request_sync(now);
        }
        admitted
    }

    /// What was admitted is in the history, or will not be.
    pub fn admission_over(&mut self, now: Now, bytes: u64) {
        let (last, commit) = (self.last(), self.commit);
        self.pace.ordered(last, bytes);
        if last <= commit {
            self.pace.durable(now, commit);
            self.offer_room(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    /// A stream that takes all it gets, on a disk that takes `rate` bytes per ms; the longest
    /// that a flush waits, and the room in the end.
    fn stream(rate: u64) -> (u64, u64) {
        let mut pace = Pace::new(16 * MIB);
        let (mut now, mut seq, mut durable, mut longest) = (0, 0, 0, 0);
        for round in 0..200 {
            while pace.admit(MIB, false) {
                seq += 1;
                pace.ordered(Seq(seq), MIB);
            }
            pace.sync_asked(at(now), Seq(seq));
            let took = (seq - durable) * MIB / rate;
            now += took;
            durable = seq;
            pace.durable(at(now), Seq(durable));
            if round > 100 {
                longest = longest.max(took);
            }
        }
        assert_eq!(pace.used, 0);
        (longest, pace.room)
    }

    #[test]
    fn room_follows_the_disk() {
        // 20 MiB/s: even the least takes longer than the target.
        assert_eq!(stream(20 * MIB / 1000).1, LEAST);
        // 200 MiB/s: as much as fits the target, and not much less.
        let (longest, room) = stream(200 * MIB / 1000);
        assert!((8..=25).contains(&longest), "{longest} ms, {room}");
        // 4 GiB/s: all there is.
        assert!(stream(4096 * MIB / 1000).1 > 15 * MIB);
    }

    #[test]
    fn one_alone_always_comes_and_nobody_is_forgotten() {
        let mut pace = Pace::new(MIB / 2);
        assert!(pace.admit(MIB, false));
        assert!(!pace.admit(1, false));
        // Its write failed: nothing is in the history, and nothing remains.
        pace.ordered(Seq(0), MIB);
        pace.durable(at(1), Seq(0));
        assert!(pace.admit(MIB, false));
    }

    #[test]
    fn a_new_reign_owes_what_it_made_durable_to_nobody() {
        let mut pace = Pace::new(MIB);
        assert!(pace.admit(MIB, false));
        pace.ordered(Seq(5), MIB);
        pace.sync_asked(at(0), Seq(5));
        assert!(!pace.admit(MIB, false));
        pace.begin(at(5000), Seq(5));
        assert!(pace.admit(MIB, false));
        assert_eq!(pace.room, MIB, "the pause says nothing of the disk");
    }

    #[test]
    fn who_is_not_held_back_gets_no_more_room() {
        let mut pace = Pace::new(16 * MIB);
        for ms in 0..100 {
            assert!(pace.admit(MIB, false));
            pace.ordered(Seq(ms), MIB);
            pace.sync_asked(at(ms), Seq(ms));
            pace.durable(at(ms), Seq(ms));
        }
        assert_eq!(pace.room, FIRST);
    }
}
