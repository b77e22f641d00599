//! One range at a time: asked for, judged, repaired, looked at again.

use std::collections::BTreeSet;

use bytes::Bytes;
use trivet_protocol::message::{Request, Scrubbed};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, MemberId, MemberKind, Now, Seq};

use super::super::{Ask, LinkId, Notice, Upstairs};
use super::verdict::{Look, Run, judge};
use super::{Finding, MAX_FINDINGS, Range, TRIES};

#[derive(Debug)]
pub(super) struct Job {
    pub(super) range: Range,
    pub(super) asked: Now,
    /// Everything ordered when it was asked for: what the answers reflect, to the entry.
    pub(super) seen: Seq,
    pub(super) waits: Vec<LinkId>,
    pub(super) looks: Vec<Look>,
    pub(super) overtaken: bool,
}

impl Upstairs {
    pub(super) fn look_at(&mut self, now: Now, range: Range) -> bool {
        let links = self.to_be_scrubbed();
        let (id, seen) = (self.next_request, self.last());
        let Some(s) = self.running_scrub() else {
            return false;
        };
        let Some(links) = links else {
            s.ranges.push_front(range);
            return false;
        };
        s.allowance
            .spend(u64::from(range.count) * BLOCK_BYTES as u64);
        let job = Job {
            range,
            asked: now,
            seen,
            waits: links.clone(),
            looks: Vec::new(),
            overtaken: false,
        };
        s.jobs.insert(id, job);
        self.next_request += 1;
        let request = Request::Scrub {
            block: range.block,
            count: range.count,
            held: range.held,
        };
        for link in links {
            self.ask(now, link, Ask::Scrub(id), &request);
        }
        true
    }

    pub(in super::super) fn on_scrubbed(
        &mut self,
        now: Now,
        link: LinkId,
        what: &Ask,
        found: Scrubbed,
    ) {
        let Ask::Scrub(id) = *what else {
            return self.refuse_link(link, "a look that nobody asked for".into());
        };
        let Some(job) = self.running_scrub().and_then(|s| s.jobs.get_mut(&id)) else {
            return;
        };
        if !job.waits.contains(&link) {
            return;
        }
        match found {
            Scrubbed::Overtaken => job.overtaken = true,
            Scrubbed::Read { sums, bad } => {
                let count = job.range.count;
                let inside = bad.iter().all(|(at, _)| *at < count);
                let ascending = bad.is_sorted_by(|a, b| a.0 < b.0);
                if sums.len() != count as usize || !inside || !ascending {
                    return self.refuse_link(link, "what it says of a range makes no sense".into());
                }
                job.looks.push(Look { link, sums, bad });
            }
        }
        self.job_waits_for(now, id, |l| l != link);
    }

    /// A job waits for those only; it is judged if that is nobody.
    pub(super) fn job_waits_for(&mut self, now: Now, id: u64, who: impl Fn(LinkId) -> bool) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        let Some(job) = s.jobs.get_mut(&id) else {
            return;
        };
        job.waits.retain(|l| who(*l));
        if !job.waits.is_empty() {
            return;
        }
        if let Some(job) = s.jobs.remove(&id) {
            self.judge_job(now, job);
        }
        self.drive_scrub(now);
    }

    fn judge_job(&mut self, now: Now, job: Job) {
        let mut range = job.range;
        if job.overtaken || job.looks.is_empty() {
            range.tries += u32::from(range.held || !job.overtaken);
            range.held |= job.overtaken;
            if range.tries < TRIES {
                if let Some(s) = self.running_scrub() {
                    s.ranges.push_front(range);
                }
                return;
            }
        }
        let looks = if job.overtaken { &[][..] } else { &job.looks };
        self.count_unseen(range, looks);
        let runs = judge(looks, range.count);
        let links = |run: &Run| -> Vec<MemberId> {
            let of = run.bad.iter().filter_map(|l| self.peer(*l).member);
            of.collect()
        };
        let findings: Vec<Finding> = runs
            .iter()
            .map(|run| Finding {
                block: range.block + u64::from(run.first),
                count: u64::from(run.count),
                matter: run.matter,
                members: links(run),
            })
            .collect();
        let Some(s) = self.running_scrub() else {
            return;
        };
        let t = &mut s.tally;
        let wrong: u64 = runs.iter().map(|r| u64::from(r.count)).sum();
        match range.again {
            true => t.repaired += u64::from(range.count) - wrong,
            false => {
                t.looked += u64::from(range.count);
                t.wrong += wrong;
            }
        }
        let given_up = |r: &Run| !r.matter.can_be_repaired() || range.tries >= TRIES;
        let left = runs.iter().filter(|r| given_up(r));
        t.left += left.map(|r| u64::from(r.count)).sum::<u64>();
        if !range.again {
            for finding in findings {
                self.note_finding(finding);
            }
        }
        for run in runs.iter().filter(|r| !given_up(r)) {
            let part = Range {
                block: range.block + u64::from(run.first),
                count: run.count,
                held: range.held,
                tries: range.tries + 1,
                again: true,
            };
            self.repair_run(now, job.seen, run, part);
        }
    }

    /// Replicas of the volume that said nothing of a range.
    fn count_unseen(&mut self, range: Range, looks: &[Look]) {
        let seen: BTreeSet<MemberId> = looks
            .iter()
            .filter_map(|l| self.peer(l.link).member)
            .collect();
        let Some(record) = self.record.as_ref().filter(|_| !range.again) else {
            return;
        };
        let replicas = record.members.iter();
        let replicas = replicas.filter(|m| m.kind == MemberKind::Replica && !seen.contains(&m.id));
        let unseen: Vec<MemberId> = replicas.map(|m| m.id).collect();
        if let Some(s) = self.running_scrub() {
            for member in unseen {
                *s.tally.unseen.entry(member).or_default() += u64::from(range.count);
            }
        }
    }

    fn note_finding(&mut self, finding: Finding) {
        let Some(s) = self.running_scrub() else {
            return;
        };
        // Told as one: what a range ends with, the next one may begin with.
        let before = s.tally.findings.iter_mut().find(|f| {
            let alike = f.matter == finding.matter && f.members == finding.members;
            alike && f.block + f.count == finding.block
        });
        if let Some(before) = before {
            before.count += finding.count;
        } else if s.tally.findings.len() < MAX_FINDINGS {
            s.tally.findings.push(finding.clone());
            self.notice(Notice::ScrubFound(finding));
        }
    }

    fn repair_run(&mut self, now: Now, seen: Seq, run: &Run, part: Range) {
        let (block, count) = (Block(part.block), part.count);
        if run.unwritten {
            // Nothing is read for it: it is written unless that has been done meanwhile.
            if !self.history.touched_since(seen, block.0, u64::from(count)) {
                let zeros = Bytes::from(vec![0; count as usize * BLOCK_BYTES]);
                let sums = vec![Checksum::UNWRITTEN; count as usize];
                for link in &run.bad {
                    if self.peer(*link).flows() {
                        self.send_copy(*link, block, &sums, &zeros);
                    }
                }
            }
            return self.look_again(part);
        }
        let id = self.next_request;
        self.next_request += 1;
        if let Some(s) = self.running_scrub() {
            s.repairs.insert(id, part);
        }
        // Nobody is asked whose copy was not found good.
        let others = self.links().filter(|l| !run.good.contains(l));
        let tried = others.map(|l| (l, run.bad.contains(&l))).collect();
        self.read_for_scrub(now, id, (block, count), tried);
    }

    /// A repair's read is over, and its copies are on their way; or there was nothing to read.
    pub(in super::super) fn scrub_repaired(&mut self, id: u64) {
        let part = self.running_scrub().and_then(|s| s.repairs.remove(&id));
        if let Some(part) = part {
            self.look_again(part);
        }
    }

    fn look_again(&mut self, part: Range) {
        if let Some(s) = self.running_scrub() {
            s.ranges.push_front(part);
        }
    }
}
