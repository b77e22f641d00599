//! Scrub: everything that is written is read on every replica in sync, checked against its
//! checksums, and compared (invariant 7). It finds what no read may ask for until it is too late:
//! rotten sectors, and writes that a disk acknowledged and lost, which still match their own
//! checksums.
//!
//! 1. *List* what is written, a page at a time, on all replicas in sync; what any of them has is
//!    looked at, so that an extent that one disk lost is missed by nobody.
//! 2. *Look*: a range is asked for in the ordered stream, of all replicas at the same place of the
//!    history. So the answers are comparable to the byte while writes go on. A replica whose range
//!    changed while it read says so, and it is asked for anew in small pieces that are read under
//!    its lock.
//! 3. *Judge*: see [`verdict`].
//! 4. *Repair* from a good copy: what is read must have the checksums that were voted for, and it
//!    is written only if nothing newer was ordered meanwhile. Then the blocks are looked at once
//!    more; only what is found good then counts as repaired.
//!
//! A replica that is not in sync, or does not answer, is not waited for; how much was not seen of
//! it is reported. A new reign of this upstairs goes on where the last one was; a takeover ends it.
//!
//! Bounds: one page of ranges per replica, [`WINDOW`] jobs, [`MAX_FINDINGS`] findings in memory;
//! [`PATIENCE`] for an answer; a rate.

mod jobs;
mod listing;
mod verdict;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use trivet_protocol::limits::MAX_SCRUB_BLOCKS;
use trivet_protocol::{BLOCK_BYTES, MemberId, Now};

use super::allowance::Allowance;
use super::{Ask, LinkId, Notice, Prepared, Upstairs};
use crate::VolumeError;
use jobs::{Job, Repair};
use listing::Listing;

pub use verdict::Matter;

/// Jobs under way at once while nothing else is going on; one otherwise.
const WINDOW: usize = 4;
/// Ranges asked for at once.
const PAGE: u32 = 1024;
/// Blocks that are read in one go under a replica's lock: 128 KiB.
const HELD_BLOCKS: u32 = 32;
/// A replica that does not answer for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// A range is asked for, and a block repaired, so often at most.
const TRIES: u32 = 3;
/// Findings kept one by one; the rest is counted.
pub const MAX_FINDINGS: usize = 32;

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// What is the matter.
    pub matter: Matter,
    /// Whose copies are not as they should be.
    pub members: Vec<MemberId>,
}

/// What became of a scrub, or how far it is. Blocks are of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// When it began, in milliseconds of this host's clock since it started: tells it from others.
    pub id: u64,
    /// It goes on.
    pub running: bool,
    /// It was ended by command before its end.
    pub stopped: bool,
    /// Blocks of the volume that lie behind it.
    pub place: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks looked at, on all replicas in sync that answered.
    pub looked: u64,
    /// Blocks of which a copy was not as it should be.
    pub wrong: u64,
    /// Of those: repaired, and found good after it, in the log, by every replica concerned.
    /// (Whether the disk keeps it in the end, the next scrub tells.)
    pub repaired: u64,
    /// Of those: not repaired, since no copy is good, none has a majority, or the repair failed.
    pub left: u64,
    /// Blocks of replicas that could not be looked at, by member.
    pub unseen: Vec<(MemberId, u64)>,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// How long it has run, or ran, in milliseconds.
    pub elapsed_ms: u64,
    /// How long ago it ended, in milliseconds; 0 while it goes on.
    pub ended_ms: u64,
}

/// One scrub, under way or ended.
#[derive(Debug)]
pub(super) struct Scrub {
    began: Now,
    ended: Option<Now>,
    stopped: bool,
    rate: u64,
    allowance: Allowance,
    listing: Option<Listing>,
    /// What lies below was listed.
    listed: u64,
    ranges: VecDeque<Range>,
    jobs: BTreeMap<u64, Job>,
    repairs: BTreeMap<u64, Repair>,
    /// Listings in a row that nobody answered.
    list_tries: u32,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    looked: u64,
    wrong: u64,
    repaired: u64,
    left: u64,
    unseen: BTreeMap<MemberId, u64>,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug)]
struct Range {
    block: u64,
    count: u32,
    /// To be read under the replicas' locks.
    held: bool,
    /// How often it was asked for in vain, or was repaired.
    tries: u32,
    /// Whose copies were repaired; it is looked at again. Nobody's: for the first time.
    mended: Vec<MemberId>,
}

impl Range {
    /// In two, where there are two blocks.
    fn halves(self) -> impl Iterator<Item = Range> {
        let first = self.count / 2;
        let part = |from: u32, count: u32| Range {
            block: self.block + u64::from(from),
            count,
            ..self.clone()
        };
        let parts = [part(0, first), part(first, self.count - first)];
        parts.into_iter().filter(|r| r.count > 0)
    }
}

impl Upstairs {
    /// Begins a scrub at `rate` bytes per second and replica; one that ended is forgotten.
    ///
    /// # Errors
    /// It does not serve, or one goes on.
    pub fn scrub(&mut self, now: Now, rate: u64) -> Result<(), VolumeError> {
        if !self.serves() {
            return Err(self.not_active());
        }
        if self.scrub.as_ref().is_some_and(|s| s.ended.is_none()) {
            return Err(VolumeError::BadRequest(
                "a scrub of it goes on already".into(),
            ));
        }
        self.scrub = Some(Scrub {
            began: now,
            ended: None,
            stopped: false,
            rate: rate.max(1),
            allowance: Allowance::from(now),
            listing: None,
            listed: 0,
            ranges: VecDeque::new(),
            jobs: BTreeMap::new(),
            repairs: BTreeMap::new(),
            list_tries: 0,
            tally: Tally::default(),
        });
        self.notice(Notice::ScrubStarted);
        Ok(())
    }

    /// Ends the scrub where it is. False if none goes on.
    pub fn stop_scrub(&mut self, now: Now) -> bool {
        let runs = self.running_scrub().is_some();
        if runs {
            self.pause_scrub();
            self.end_scrub(now, true);
        }
        runs
    }

    /// Changes the rate of a scrub that goes on, in bytes per second and replica. False if none
    /// does.
    pub fn set_scrub_rate(&mut self, rate: u64) -> bool {
        let scrub = self.running_scrub();
        scrub.map(|s| s.rate = rate.max(1)).is_some()
    }

    fn running_scrub(&mut self) -> Option<&mut Scrub> {
        self.scrub.as_mut().filter(|s| s.ended.is_none())
    }

    fn end_scrub(&mut self, now: Now, stopped: bool) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        s.ended = Some(now);
        s.stopped = stopped;
        let t = &mut s.tally;
        if stopped {
            // What was not yet repaired will not be.
            t.left = t.wrong.saturating_sub(t.repaired);
        }
        let done = Notice::ScrubDone {
            stopped,
            looked: t.looked,
            wrong: t.wrong,
            repaired: t.repaired,
            left: t.left,
        };
        self.notice(done);
    }

    /// What was asked for is asked for again by the next reign.
    pub(super) fn pause_scrub(&mut self) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        s.listing = None;
        let jobs = std::mem::take(&mut s.jobs).into_values().map(|j| j.range);
        for range in jobs.collect::<Vec<_>>() {
            s.ranges.push_front(range);
        }
        self.scrub_reads_ended();
        let ours = |a: &Ask| matches!(a, Ask::ScrubList | Ask::Scrub(_));
        self.asked.retain(|_, a| !ours(&a.what));
    }

    /// Reads for repairs are not answered any more: they are begun again.
    pub(super) fn scrub_reads_ended(&mut self) {
        if let Some(s) = self.running_scrub() {
            for repair in std::mem::take(&mut s.repairs).into_values() {
                s.ranges.push_front(repair.range);
            }
        }
    }

    /// A batch was ordered: what it writes over is not repaired with what was there before.
    pub(super) fn scrub_ordered(&mut self, batch: &Prepared) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        for job in s.jobs.values_mut() {
            job.touched |= batch.touches(job.range.block, u64::from(job.range.count));
        }
        for repair in s.repairs.values_mut() {
            let range = &repair.range;
            repair.touched |= batch.touches(range.block, u64::from(range.count));
        }
    }

    pub(super) fn tick_scrub(&mut self, now: Now) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        let piece = u64::from(MAX_SCRUB_BLOCKS) * BLOCK_BYTES as u64;
        s.allowance.earn(now, s.rate, piece);
        let late = |asked: Now| now.since(asked) >= PATIENCE;
        let list_late = s.listing.as_ref().is_some_and(|l| late(l.asked));
        let jobs_late = s.jobs.iter().filter(|(_, j)| late(j.asked));
        let jobs_late: Vec<u64> = jobs_late.map(|(id, _)| *id).collect();
        if list_late {
            self.asked.retain(|_, a| a.what != Ask::ScrubList);
            self.list_waits_for(now, |_| false);
        }
        for id in jobs_late {
            self.asked.retain(|_, a| a.what != Ask::Scrub(id));
            self.job_waits_for(now, id, |_| false);
        }
        self.drive_scrub(now);
    }

    /// A connection is gone, or its member refused: nothing more comes from there.
    pub(super) fn scrub_link_lost(&mut self, now: Now, link: LinkId) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        let jobs: Vec<u64> = s.jobs.keys().copied().collect();
        self.list_waits_for(now, |l| l != link);
        for id in jobs {
            self.job_waits_for(now, id, |l| l != link);
        }
    }

    /// A member refused to answer this.
    pub(super) fn scrub_refused(&mut self, now: Now, link: LinkId, what: &Ask) {
        match *what {
            Ask::ScrubList => self.list_waits_for(now, |l| l != link),
            Ask::Scrub(id) => self.job_waits_for(now, id, |l| l != link),
            _ => {}
        }
    }

    /// Replicas that can be asked: those in sync, once each has all that is ordered. None if one of
    /// them has not.
    fn to_be_scrubbed(&self) -> Option<Vec<LinkId>> {
        let counts = |l: &LinkId| {
            let p = self.peer(*l);
            p.flows() && p.member.is_some_and(|m| self.all_sets().any(|s| s == m))
        };
        let links: Vec<LinkId> = self.links().filter(counts).collect();
        let all = !links.is_empty() && links.iter().all(|l| self.readable(*l));
        all.then_some(links)
    }

    /// Starts whatever can be started; nothing without the lease (invariant 2).
    fn drive_scrub(&mut self, now: Now) {
        if !self.lease_valid(now) {
            return;
        }
        let busy = self.last() > self.commit || !self.flushes.is_empty();
        let window = if busy { 1 } else { WINDOW };
        let blocks = self.record.as_ref().map_or(0, |r| r.blocks);
        loop {
            let Some(s) = self.running_scrub() else {
                return;
            };
            let more = s.listed < blocks && s.ranges.len() < PAGE as usize;
            if more && s.listing.is_none() {
                if !self.list_for_scrub(now, blocks) {
                    return;
                }
                continue;
            }
            let under_way = s.jobs.len() + s.repairs.len();
            if under_way >= window || !s.allowance.is_left() {
                return;
            }
            let Some(mut range) = s.ranges.pop_front() else {
                if under_way == 0 && s.listing.is_none() {
                    self.end_scrub(now, false);
                }
                return;
            };
            let most = if range.held {
                HELD_BLOCKS
            } else {
                MAX_SCRUB_BLOCKS
            };
            if range.count > most {
                let mut rest = range.clone();
                rest.block += u64::from(most);
                rest.count -= most;
                range.count = most;
                s.ranges.push_front(rest);
            }
            if !self.look_at(now, range) {
                return;
            }
        }
    }

    /// The scrub of this reign that goes on, or ended last.
    pub(super) fn scrub_status(&self, now: Now) -> Option<ScrubStatus> {
        let s = self.scrub.as_ref()?;
        let t = &s.tally;
        let ahead = s.ranges.iter().chain(s.jobs.values().map(|j| &j.range));
        let first = ahead.filter(|r| r.mended.is_empty()).map(|r| r.block).min();
        Some(ScrubStatus {
            id: s.began.0 / 1_000_000,
            running: s.ended.is_none(),
            stopped: s.stopped,
            place: first.unwrap_or(s.listed).min(s.listed),
            blocks: self.record().map_or(0, |r| r.blocks),
            looked: t.looked,
            wrong: t.wrong,
            repaired: t.repaired,
            left: t.left,
            unseen: t.unseen.iter().map(|(m, n)| (*m, *n)).collect(),
            findings: t.findings.clone(),
            elapsed_ms: s.ended.unwrap_or(now).since(s.began).as_millis() as u64,
            ended_ms: s.ended.map_or(0, |e| now.since(e).as_millis() as u64),
        })
    }
}
