//! Resync: bringing an out-of-date replica back (design section 6).
//!
//! 1. *Begin*: the target is durably marked mixed, jumps to the present end of the history, and
//!    from here on takes every new entry in the ordered stream. Until the end it is never read
//!    from and never counted (invariant 6).
//! 2. *List* what changed on either side since the last common place.
//! 3. *Compare* checksums range by range; only blocks that differ are read from a replica in
//!    sync, verified, and copied in the same ordered stream. A copy is sent only if nothing
//!    ordered since it was read touches its blocks; otherwise it is read again. So no copy ever
//!    overwrites a newer write.
//! 4. *Finish*: the target syncs, stops being mixed, and may join the set by a record.
//!
//! A crash of either side leaves the target mixed with its common place; a later reign lists and
//! compares again, and copies only what still differs.
//!
//! Bounds: one page of ranges, and jobs of [`WINDOW`] blocks together, are in memory; a job starts
//! with a question to the target in the stream, so a slow target slows the copying down.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trivet_protocol::message::{DataState, Request, Tail};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, MemberKind, Now, Seq};

use super::allowance::Allowance;
use super::peer::Stream;
use super::{Ask, LinkId, Notice, Upstairs, Verify};

/// Blocks of the jobs under way at once when nothing else is going on; a quarter otherwise.
const WINDOW: u32 = 4 * JOB_BLOCKS;
/// Blocks in one job, at most.
const JOB_BLOCKS: u32 = 256;
/// What a job counts for at least: a job of one block has as many round trips as a large one, so
/// scattered blocks are many jobs at once, and yet not so many that they crowd out the users.
const JOB_LEAST: u32 = 32;
/// Ranges asked for at once.
const PAGE: u32 = 1024;

/// Progress, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncStatus {
    /// Blocks listed so far.
    pub listed_blocks: u64,
    /// Blocks compared so far.
    pub compared_blocks: u64,
    /// Bytes copied so far.
    pub copied_bytes: u64,
    /// Whether the listing is complete, so that `listed_blocks` is the total.
    pub total_known: bool,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
}

/// One resync under way.
#[derive(Debug)]
pub struct Resync {
    source: LinkId,
    common: Seq,
    began: Now,
    stage: Stage,
    ranges: VecDeque<(u64, u32)>,
    jobs: BTreeMap<u64, Job>,
    /// For what is copied.
    allowance: Allowance,
    listed: u64,
    compared: u64,
    copied: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Listing {
        target: bool,
        cursor: u64,
        asked: bool,
    },
    Copying,
    Finishing,
}

#[derive(Debug, Default)]
struct Job {
    block: u64,
    count: u32,
    /// What was ordered when the source's checksums were asked for.
    seen: Seq,
    source: Option<Vec<Checksum>>,
    target: Option<Vec<Checksum>>,
    /// Reads under way.
    reads: usize,
}

impl Resync {
    /// Blocks of the jobs under way, small ones rounded up.
    fn in_work(&self) -> u32 {
        self.jobs.values().map(|j| j.count.max(JOB_LEAST)).sum()
    }
}

impl Upstairs {
    /// Starts a resync of this replica if it needs one and can have one.
    pub(super) fn consider_resync(&mut self, now: Now, link: LinkId) {
        self.judge_again(link);
        let peer = self.peer(link);
        let (Some((_, w)), Some(record)) = (&peer.welcome, &self.record) else {
            return;
        };
        let replica = record
            .member(w.member)
            .is_some_and(|m| m.kind == MemberKind::Replica);
        let idle = peer.up
            && peer.granted
            && peer.stream == Stream::Off
            && peer.resync.is_none()
            && peer.unusable.is_none();
        if !self.is_active() || !replica || !idle || self.all_sets().any(|m| m == w.member) {
            return;
        }
        let common = match w.data {
            DataState::Mixed(common) => common,
            // What is above the commit position may still be cut off.
            DataState::Whole(_) => self
                .history
                .table()
                .common(&w.table)
                .unwrap_or(Seq::ZERO)
                .min(self.commit),
            DataState::Damaged => Seq::ZERO,
            DataState::None => return,
        };
        let (member, credit) = (w.member, w.credit);
        let Some(source) = self.resync_source() else {
            return;
        };
        let last = self.last();
        let table = self.history.table().clone();
        let peer = self.peer_mut(link);
        peer.resync = Some(Resync {
            source,
            common,
            began: now,
            stage: Stage::Beginning,
            ranges: VecDeque::new(),
            jobs: BTreeMap::new(),
            allowance: Allowance::from(now),
            listed: 0,
            compared: 0,
            copied: 0,
        });
        // What follows in the stream comes after the jump.
        peer.mixed = true;
        peer.stream = Stream::On;
        peer.sent = last;
        peer.sync_sent = Seq::ZERO;
        peer.credit = credit;
        peer.room = (credit, now);
        peer.progress = now;
        self.ask(
            now,
            link,
            Ask::BeginResync,
            &Request::BeginResync { common, table },
        );
        self.notice(Notice::ResyncStarted { member, common });
    }

    fn resync_source(&self) -> Option<LinkId> {
        let good = |l: &LinkId| {
            let p = self.peer(*l);
            p.flows() && p.member.is_some_and(|m| self.all_sets().any(|s| s == m))
        };
        self.config
            .local
            .filter(good)
            .or_else(|| self.links().find(good))
    }

    fn resync_mut(&mut self, link: LinkId) -> Option<&mut Resync> {
        self.peer_mut(link).resync.as_mut()
    }

    pub(super) fn on_resync_begun(&mut self, now: Now, link: LinkId) {
        if let Some(r) = self.resync_mut(link) {
            r.stage = Stage::Listing {
                target: false,
                cursor: 0,
                asked: false,
            };
        }
        self.drive_resync(now, link);
    }

    pub(super) fn on_changed(
        &mut self,
        now: Now,
        from: LinkId,
        what: &Ask,
        ranges: Vec<(u64, u32)>,
        next: Option<u64>,
    ) {
        let (link, at_target) = match what {
            Ask::ChangedAtSource(target) => (*target, false),
            Ask::ChangedAtTarget => (from, true),
            _ => return,
        };
        let blocks = self.record.as_ref().map_or(0, |r| r.blocks);
        let Some(r) = self.resync_mut(link) else {
            return;
        };
        let Stage::Listing {
            target,
            cursor,
            asked,
        } = &mut r.stage
        else {
            return self.resync_failed(link, "a listing arrived at the wrong time".into());
        };
        // A listing that does not go forward, or leaves the volume, would never end.
        let sane = ranges
            .iter()
            .all(|(b, n)| b.saturating_add(u64::from(*n)) <= blocks)
            && next.is_none_or(|n| n > *cursor);
        if *target != at_target || !*asked || !sane {
            return self.resync_failed(link, "a listing of changes makes no sense".into());
        }
        *asked = false;
        match next {
            Some(n) => *cursor = n,
            None if !*target => (*target, *cursor) = (true, 0),
            None => r.stage = Stage::Copying,
        }
        r.listed += ranges.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        r.ranges.extend(ranges);
        self.drive_resync(now, link);
    }

    /// Starts whatever can be started.
    fn drive_resync(&mut self, now: Now, link: LinkId) {
        let busy = self.last() > self.commit || !self.flushes.is_empty();
        let window = if busy { WINDOW / 4 } else { WINDOW };
        loop {
            let Some(r) = self.peer_mut(link).resync.as_mut() else {
                return;
            };
            let source = r.source;
            if let Stage::Listing {
                target,
                cursor,
                asked,
            } = &mut r.stage
                && !*asked
                && r.ranges.len() < PAGE as usize
            {
                *asked = true;
                let (at_target, cursor) = (*target, *cursor);
                let since = r.common;
                let request = trivet_protocol::message::Request::Changed {
                    since,
                    cursor,
                    max: PAGE,
                };
                if at_target {
                    self.ask(now, link, Ask::ChangedAtTarget, &request);
                } else {
                    self.ask(now, source, Ask::ChangedAtSource(link), &request);
                }
                continue;
            }
            if r.stage == Stage::Copying && r.ranges.is_empty() && r.jobs.is_empty() {
                r.stage = Stage::Finishing;
                self.ask(now, link, Ask::FinishResync, &Request::FinishResync);
                return;
            }
            if r.stage == Stage::Beginning || r.in_work() >= window || !r.allowance.is_left() {
                return;
            }
            let Some((block, count)) = r.ranges.pop_front() else {
                return;
            };
            let n = count.min(JOB_BLOCKS);
            if count > n {
                r.ranges.push_front((block + u64::from(n), count - n));
            }
            let id = self.next_request;
            self.next_request += 1;
            let seen = self.history.last();
            let job = Job {
                block,
                count: n,
                seen,
                ..Job::default()
            };
            if let Some(r) = self.resync_mut(link) {
                r.jobs.insert(id, job);
            }
            let request = Request::Sums { block, count: n };
            self.ask(now, source, Ask::SumsAtSource(link, id), &request);
            self.ask(now, link, Ask::SumsAtTarget(id), &request);
        }
    }

    pub(super) fn on_sums(&mut self, now: Now, from: LinkId, what: &Ask, sums: Vec<Checksum>) {
        let (link, id, at_source) = match *what {
            Ask::SumsAtSource(target, id) => (target, id, true),
            Ask::SumsAtTarget(id) => (from, id, false),
            _ => return,
        };
        let Some(job) = self.resync_mut(link).and_then(|r| r.jobs.get_mut(&id)) else {
            return;
        };
        if sums.len() != job.count as usize {
            return self.resync_failed(link, "an answer has too few checksums".into());
        }
        if at_source {
            job.source = Some(sums);
        } else {
            job.target = Some(sums);
        }
        let (Some(source), Some(target)) = (&job.source, &job.target) else {
            return;
        };
        let (block, seen) = (job.block, job.seen);
        let source = source.clone();
        let runs = differing_runs(&source, target);
        for (at, n) in runs {
            let (first, sums) = (block + at as u64, &source[at..at + n]);
            let unwritten = sums.iter().all(Checksum::is_unwritten);
            if unwritten && !self.history.touched_since(seen, first, n as u64) {
                let zeros = Bytes::from(vec![0; n * BLOCK_BYTES]);
                self.send_copy(link, Block(first), sums, &zeros);
            } else {
                if let Some(job) = self.resync_mut(link).and_then(|r| r.jobs.get_mut(&id)) {
                    job.reads += 1;
                }
                self.read_for_copy(now, (link, id), Block(first), n as u32);
            }
        }
        self.job_progress(now, link, id);
    }

    /// The target cannot tell what it has there, since its checksums are damaged: all of it is
    /// copied. (To give up would be to start over for ever.)
    pub(super) fn target_sums_unknown(&mut self, now: Now, link: LinkId, id: u64) {
        const UNLIKE_ANY: Checksum = Checksum([0xff; Checksum::BYTES]);
        if let Some(job) = self.resync_mut(link).and_then(|r| r.jobs.get(&id)) {
            let unknown = vec![UNLIKE_ANY; job.count as usize];
            self.on_sums(now, link, &Ask::SumsAtTarget(id), unknown);
        }
    }

    /// Blocks of a job were read from some replica in sync, and verified.
    pub(super) fn copy_read(&mut self, now: Now, (link, id): (LinkId, u64), seen: Seq, v: &Verify) {
        let (block, count) = (v.block, v.sums.len() as u32);
        let overtaken = self.history.touched_since(seen, block.0, u64::from(count));
        let Some(job) = self.resync_mut(link).and_then(|r| r.jobs.get_mut(&id)) else {
            return;
        };
        if overtaken {
            return self.read_for_copy(now, (link, id), block, count);
        }
        job.reads -= 1;
        self.send_copy(link, block, &v.sums, &v.data);
        if let Some(r) = self.resync_mut(link) {
            r.copied += v.data.len() as u64;
            r.allowance.spend(v.data.len() as u64);
        }
        self.job_progress(now, link, id);
    }

    fn job_progress(&mut self, now: Now, link: LinkId, id: u64) {
        let Some(r) = self.resync_mut(link) else {
            return;
        };
        if r.jobs.get(&id).is_some_and(|j| j.reads == 0) {
            r.compared += r.jobs.remove(&id).map_or(0, |j| u64::from(j.count));
        }
        self.drive_resync(now, link);
    }

    pub(super) fn on_resync_finished(&mut self, now: Now, link: LinkId) {
        let Some(r) = self.peer_mut(link).resync.take() else {
            return;
        };
        self.forget_questions_of(link);
        let peer = self.peer_mut(link);
        peer.mixed = false;
        if let Some((_, w)) = &mut peer.welcome {
            w.data = DataState::Whole(Tail::Clean);
        }
        if let Some(member) = peer.member {
            self.notice(Notice::ResyncDone {
                member,
                copied_bytes: r.copied,
            });
        }
        self.force_sync(link);
        self.consider_join(now, link);
    }

    /// Gives up; a new connection to the target starts over and copies what still differs.
    pub(super) fn resync_failed(&mut self, link: LinkId, why: String) {
        let targets: Vec<_> = self
            .links()
            .filter(|l| {
                self.peer(*l)
                    .resync
                    .as_ref()
                    .is_some_and(|r| *l == link || r.source == link)
            })
            .collect();
        for target in targets {
            let peer = self.peer_mut(target);
            peer.resync = None;
            peer.stream = Stream::Off;
            self.forget_questions_of(target);
            self.refuse_link(target, format!("resync given up: {why}"));
        }
    }

    /// Answers to the questions of a resync that ended must not be taken for a later one's.
    fn forget_questions_of(&mut self, target: LinkId) {
        self.asked.retain(|_, a| match a.what {
            Ask::ChangedAtSource(t) | Ask::SumsAtSource(t, _) => t != target,
            Ask::ChangedAtTarget | Ask::SumsAtTarget(_) | Ask::BeginResync | Ask::FinishResync => {
                a.link != target
            }
            _ => true,
        });
    }

    /// Ends all resyncs: their targets stay mixed and are taken up again by the next reign.
    pub(super) fn end_resyncs(&mut self) {
        for link in self.links() {
            if self.peer_mut(link).resync.take().is_some() {
                self.forget_questions_of(link);
            }
        }
    }

    pub(super) fn resync_link_lost(&mut self, _now: Now, link: LinkId) {
        self.peer_mut(link).resync = None;
        self.forget_questions_of(link);
        if self.is_active() {
            self.resync_failed(link, "its source cannot be reached".into());
        }
    }

    pub(super) fn tick_resync(&mut self, now: Now) {
        let rate = self.config.limits.resync_rate.max(1);
        for link in self.links() {
            if let Some(r) = self.resync_mut(link) {
                r.allowance
                    .earn(now, rate, u64::from(JOB_BLOCKS) * BLOCK_BYTES as u64);
                self.drive_resync(now, link);
            } else {
                self.consider_resync(now, link);
            }
        }
    }

    /// Changes the rate of resyncs, in bytes per second, at once.
    pub fn set_resync_rate(&mut self, bytes_per_second: u64) {
        self.config.limits.resync_rate = bytes_per_second;
    }

    /// Progress of the resync on this link, if there is one.
    pub(super) fn resync_status(&self, now: Now, link: LinkId) -> Option<ResyncStatus> {
        let r = self.peer(link).resync.as_ref()?;
        Some(ResyncStatus {
            listed_blocks: r.listed,
            compared_blocks: r.compared,
            copied_bytes: r.copied,
            total_known: matches!(r.stage, Stage::Copying | Stage::Finishing),
            elapsed_ms: now.since(r.began).as_millis() as u64,
        })
    }
}

/// Runs (offset, length) in which the checksums differ, split where the source changes between
/// written and unwritten.
fn differing_runs(source: &[Checksum], target: &[Checksum]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, (s, t)) in source.iter().zip(target).enumerate() {
        if s == t {
            continue;
        }
        match runs.last_mut() {
            Some((at, n)) if *at + *n == i && source[*at].is_unwritten() == s.is_unwritten() => {
                *n += 1;
            }
            _ => runs.push((i, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_copied_and_holes_apart_from_data() {
        let (a, b, u) = (Checksum([1; 16]), Checksum([2; 16]), Checksum::UNWRITTEN);
        let runs = differing_runs(&[a, a, b, u, u, a], &[a, b, a, a, u, b]);
        assert_eq!(runs, vec![(1, 2), (3, 1), (5, 1)]);
    }
}
