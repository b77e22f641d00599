//! Writes to pools that are full: what is written already may be written over, where the pool
//! overwrites in place (design section 5).
//!
//! Only a replica knows which blocks are written. While credit lacks, it is asked, and the answers
//! are kept up with every batch ordered afterwards; they are exact at the end of the history, or
//! absent. A question whose blocks are changed before its answer is asked again.
//!
//! Bounded by [`KNOWN`] blocks and one question at a time. A crash loses only what was known.

use std::collections::BTreeMap;

use trivet_protocol::message::Request;
use trivet_protocol::{Checksum, Now, Op};

use super::{Ask, LinkId, Prepared, Upstairs};
use crate::volume::VolumeError;

/// Blocks remembered at most; then all are forgotten and asked for anew.
const KNOWN: usize = 64 * 1024;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Scarce {
    /// Whether a block is written, at the end of the history.
    written: BTreeMap<u64, bool>,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    link: LinkId,
    request: u64,
    block: u64,
    count: u32,
    /// Some of the blocks were changed since it was asked.
    spoiled: bool,
}

/// What a batch without credit may do.
pub(super) enum Room {
    /// It takes no new space.
    Overwrites,
    /// That is not known yet; ask again after [`super::Effect::Room`].
    Asking,
    /// There is none for it.
    None(VolumeError),
}

impl Scarce {
    /// A batch was ordered.
    pub(super) fn ordered(&mut self, batch: &Prepared) {
        if self.written.is_empty() && self.question.is_none() {
            return;
        }
        for op in batch.ops() {
            let (first, count, is_written) = match *op {
                Op::Write { block, count } => (block.0, u64::from(count), true),
                Op::Discard { block, count } => (block.0, count, false),
            };
            let end = first.saturating_add(count);
            if let Some(q) = &mut self.question {
                q.spoiled |= first < q.block + u64::from(q.count) && q.block < end;
            }
            for (_, known) in self.written.range_mut(first..end) {
                *known = is_written;
            }
        }
    }

    pub(super) fn link_lost(&mut self, link: LinkId) {
        self.question.take_if(|q| q.link == link);
    }

    /// A new reign: nothing is known of its history.
    pub(super) fn forget(&mut self) {
        *self = Scarce::default();
    }
}

impl Upstairs {
    /// What becomes of a batch for which there is no credit, for the reason given.
    pub(super) fn room_for(&mut self, now: Now, batch: &Prepared, why: VolumeError) -> Room {
        let short: Vec<_> = self.all_sets().filter_map(|m| self.link_of(m)).collect();
        let in_place = |l: &LinkId| !self.peer(*l).flows() || self.peer(*l).in_place;
        if !short.iter().all(in_place) {
            return Room::None(why);
        }
        for op in batch.ops() {
            let Op::Write { block, count } = *op else {
                continue;
            };
            for b in block.0..block.0 + u64::from(count) {
                match self.scarce.written.get(&b) {
                    Some(true) => {}
                    Some(false) => return Room::None(why),
                    None => {
                        let rest = (block.0 + u64::from(count) - b) as u32;
                        return self.ask_written(now, b, rest, why);
                    }
                }
            }
        }
        Room::Overwrites
    }

    fn ask_written(&mut self, now: Now, block: u64, count: u32, why: VolumeError) -> Room {
        if self.scarce.question.is_some() {
            return Room::Asking;
        }
        let Some(link) = self.links().find(|l| self.readable(*l)) else {
            return Room::None(why);
        };
        let request = Request::Sums { block, count };
        let request = self.ask(now, link, Ask::Written, &request);
        self.scarce.question = Some(Question {
            link,
            request,
            block,
            count,
            spoiled: false,
        });
        Room::Asking
    }

    /// The answer, or none: a refused question is asked again when it matters.
    pub(super) fn on_written(&mut self, now: Now, request: u64, sums: Option<Vec<Checksum>>) {
        let Some(q) = self.scarce.question.take_if(|q| q.request == request) else {
            return;
        };
        if let Some(sums) = sums
            && !q.spoiled
            && sums.len() == q.count as usize
        {
            if self.scarce.written.len() + sums.len() > KNOWN {
                self.scarce.written.clear();
            }
            let known = (q.block..).zip(sums.iter().map(|s| !s.is_unwritten()));
            self.scarce.written.extend(known);
        }
        self.offer_room(now);
    }
}
