//! One range at a time: asked for, judged, repaired, looked at again.

use std::collections::BTreeSet;

use bytes::Bytes;
use trivet_protocol::message::{Request, Scrubbed};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, MemberId, MemberKind, Now};

use super::super::{Ask, LinkId, Notice, Upstairs, Verify};
use super::verdict::{Look, Run, judge};
use super::{Finding, MAX_FINDINGS, Range, TRIES};

#[derive(Debug)]
pub(super) struct Job {
    pub(super) range: Range,
    pub(super) asked: Now,
    /// Something of it was ordered since.
    pub(super) touched: bool,
    pub(super) waits: Vec<LinkId>,
    pub(super) looks: Vec<Look>,
    pub(super) overtaken: bool,
}

/// Blocks that are to be written anew, as soon as a good copy was read.
#[derive(Debug)]
pub(super) struct Repair {
    /// Whose copies are bad is what is looked at afterwards.
    pub(super) range: Range,
    /// The checksums that the copy must have.
    right: Vec<Checksum>,
    /// Something of it was ordered since.
    pub(super) touched: bool,
}

impl Upstairs {
    pub(super) fn look_at(&mut self, now: Now, range: Range) -> bool {
        let links = self.to_be_scrubbed();
        let id = self.next_request;
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
            range: range.clone(),
            asked: now,
            touched: false,
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
        let mut range = job.range.clone();
        let answered = job.looks.iter().map(|l| l.link);
        let seen: BTreeSet<MemberId> = self.members_at(answered).collect();
        // Whose copy was repaired has to show it.
        let unproved = range.mended.iter().any(|m| !seen.contains(m));
        if job.overtaken || job.looks.is_empty() || unproved {
            range.tries += u32::from(range.held || !job.overtaken);
            // What cannot be read quietly even under the lock is tried without it.
            range.held ^= job.overtaken;
            if range.tries < TRIES {
                return self.look_again(range);
            }
        }
        let again = !range.mended.is_empty();
        let looks = if job.overtaken { &[][..] } else { &job.looks };
        let count = u64::from(range.count);
        if again && (looks.is_empty() || unproved) {
            if let Some(s) = self.running_scrub() {
                s.tally.left += count;
            }
            return;
        }
        self.count_unseen(&range, looks);
        let silent = self.all_sets().filter(|m| !seen.contains(m)).count();
        let runs = judge(looks, range.count, silent);
        let findings: Vec<Finding> = runs
            .iter()
            .map(|run| Finding {
                block: range.block + u64::from(run.first),
                count: u64::from(run.count),
                matter: run.matter,
                members: self.members_at(run.bad.iter().copied()).collect(),
            })
            .collect();
        let Some(s) = self.running_scrub() else {
            return;
        };
        let t = &mut s.tally;
        let wrong: u64 = runs.iter().map(|r| u64::from(r.count)).sum();
        match again {
            true => t.repaired += count.saturating_sub(wrong),
            false => {
                t.looked += if looks.is_empty() { 0 } else { count };
                t.wrong += wrong;
            }
        }
        let given_up = |r: &Run| !r.matter.can_be_repaired() || range.tries >= TRIES;
        let left = runs.iter().filter(|r| given_up(r));
        t.left += left.map(|r| u64::from(r.count)).sum::<u64>();
        let mended: Vec<Vec<MemberId>> = findings.iter().map(|f| f.members.clone()).collect();
        if !again {
            for finding in findings {
                self.note_finding(finding);
            }
        }
        for (run, mended) in runs.into_iter().zip(mended) {
            if given_up(&run) {
                continue;
            }
            let next = Range {
                block: range.block + u64::from(run.first),
                count: run.count,
                held: false,
                tries: range.tries + 1,
                mended,
            };
            self.repair_run(now, job.touched, run, next);
        }
    }

    fn members_at(&self, links: impl Iterator<Item = LinkId>) -> impl Iterator<Item = MemberId> {
        links.filter_map(|l| self.peer(l).member)
    }

    /// Replicas of the volume that said nothing of a range.
    fn count_unseen(&mut self, range: &Range, looks: &[Look]) {
        let seen: BTreeSet<MemberId> = self.members_at(looks.iter().map(|l| l.link)).collect();
        let Some(record) = self.record.as_ref().filter(|_| range.mended.is_empty()) else {
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

    fn repair_run(&mut self, now: Now, touched: bool, run: Run, range: Range) {
        let repair = Repair {
            right: run.right,
            range,
            touched,
        };
        if repair.right.iter().all(Checksum::is_unwritten) {
            let zeros = Bytes::from(vec![0; repair.right.len() * BLOCK_BYTES]);
            return self.write_repair(repair, &zeros);
        }
        let id = self.next_request;
        self.next_request += 1;
        let (block, count) = (Block(repair.range.block), repair.range.count);
        // From here on the read shows what was ordered before.
        let repair = Repair {
            touched: false,
            ..repair
        };
        if let Some(s) = self.running_scrub() {
            s.repairs.insert(id, repair);
        }
        self.read_for_scrub(now, id, (block, count), &run.good);
    }

    /// The read for a repair is over, with verified content if there is any.
    pub(in super::super) fn scrub_repaired(&mut self, id: u64, read: Option<&Verify>) {
        let repair = self.running_scrub().and_then(|s| s.repairs.remove(&id));
        let Some(repair) = repair else { return };
        match read {
            // What was voted for, and nothing else.
            Some(v) if v.sums == repair.right => self.write_repair(repair, &v.data),
            _ => self.look_again(repair.range),
        }
    }

    /// Sends what is right to those whose copies are not, unless something newer was ordered since
    /// it was known to be right. Then the blocks that this befell are found again in halves: all
    /// replicas hold what was written over them, and the rest is repaired.
    fn write_repair(&mut self, repair: Repair, data: &Bytes) {
        let Repair {
            right,
            mut range,
            touched,
        } = repair;
        if touched {
            range.tries = range.tries.saturating_sub(1);
            if let Some(s) = self.running_scrub() {
                range.halves().for_each(|r| s.ranges.push_front(r));
            }
            return;
        }
        for member in &range.mended {
            let link = self.link_of(*member).filter(|l| self.peer(*l).flows());
            if let Some(link) = link {
                self.send_copy(link, Block(range.block), &right, data);
            }
        }
        self.look_again(range);
    }

    fn look_again(&mut self, range: Range) {
        if let Some(s) = self.running_scrub() {
            s.ranges.push_front(range);
        }
    }
}
