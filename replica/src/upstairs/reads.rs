//! Reads from one verified replica, elsewhere on error, slowness or a bad checksum, and the
//! repair of a bad copy (invariant 7).
//!
//! A read goes down the same ordered stream as the writes, so it reflects every entry that was
//! sent before it. Only replicas in every set that counts are asked. The answer is verified by
//! the driver outside of any lock, and leaves only within the lease.

use std::collections::BTreeMap;

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Kind, ReadMeta};
use trivet_protocol::message::{Refusal, Reply};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, Entry, MemberId, Now, Op, Seq};

use super::{Effect, LinkId, Notice, Upstairs, Verify, WaitId};
use crate::VolumeError;

/// What is to be read, and for whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    reader: Reader,
    block: Block,
    count: u32,
    /// Replicas tried before, and whether their copy was bad.
    tried: Vec<(LinkId, bool)>,
    since: Now,
}

/// Who waits for blocks.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Caller(WaitId),
    /// A job of the resync of this replica.
    Copy(LinkId, u64),
    /// A repair of the scrub.
    Scrub(u64),
    /// One block of a read that had to be split, since no replica has all of it well.
    Part(u64, usize),
}

/// A read that is put together block by block.
#[derive(Debug)]
pub struct Split {
    wait: WaitId,
    data: Vec<Option<Bytes>>,
}

/// One read under way; its request number is its key.
#[derive(Debug)]
pub struct ReadOp {
    wanted: Wanted,
    link: LinkId,
    asked: Now,
    /// Everything ordered when it was asked; the answer reflects it.
    seen: Seq,
}

/// Reads that are not answered yet.
#[derive(Debug, Default)]
pub struct Reads {
    /// Asked of a replica, by request number.
    pub(super) asked: BTreeMap<u64, ReadOp>,
    /// Nobody can be asked at the moment.
    parked: Vec<Wanted>,
    splits: BTreeMap<u64, Split>,
}

impl Reads {
    /// Ends everything; returns who waited.
    pub(super) fn end(&mut self) -> Vec<WaitId> {
        let all = std::mem::take(self);
        let wanted = all
            .asked
            .into_values()
            .map(|op| op.wanted)
            .chain(all.parked);
        let callers = wanted.filter_map(|w| match w.reader {
            Reader::Caller(wait) => Some(wait),
            Reader::Copy(..) | Reader::Scrub(_) | Reader::Part(..) => None,
        });
        callers
            .chain(all.splits.into_values().map(|s| s.wait))
            .collect()
    }
}

impl Upstairs {
    /// Reads blocks; answered with [`Effect::Read`]. The range was checked by the caller.
    pub fn read(&mut self, now: Now, block: Block, count: u32, wait: WaitId) {
        if !self.serves() {
            self.out.push(Effect::Read(wait, Err(self.not_active())));
            return;
        }
        let reader = Reader::Caller(wait);
        self.start_read(
            now,
            Wanted {
                reader,
                block,
                count,
                tried: Vec::new(),
                since: now,
            },
        );
    }

    /// Reads blocks for the resync of another replica: from anybody in sync, verified, and
    /// repaired where a copy is bad.
    pub(super) fn read_for_copy(
        &mut self,
        now: Now,
        (target, job): (LinkId, u64),
        block: Block,
        count: u32,
    ) {
        let reader = Reader::Copy(target, job);
        self.start_read(
            now,
            Wanted {
                reader,
                block,
                count,
                tried: Vec::new(),
                since: now,
            },
        );
    }

    /// Reads blocks for a repair of the scrub, from those whose copy it found good and nobody else.
    pub(super) fn read_for_scrub(
        &mut self,
        now: Now,
        repair: u64,
        (block, count): (Block, u32),
        good: &[LinkId],
    ) {
        let others = self.links().filter(|l| !good.contains(l));
        let tried = others.map(|l| (l, false)).collect();
        let wanted = Wanted {
            reader: Reader::Scrub(repair),
            block,
            count,
            tried,
            since: now,
        };
        self.start_read(now, wanted);
    }

    pub(super) fn readable(&self, link: LinkId) -> bool {
        let peer = self.peer(link);
        let in_every_set = |m: MemberId| {
            self.record.as_ref().is_some_and(|r| r.in_sync.contains(&m))
                && self
                    .pending
                    .as_ref()
                    .is_none_or(|p| p.record.in_sync.contains(&m))
        };
        peer.flows() && peer.sent >= self.last() && peer.member.is_some_and(in_every_set)
    }

    fn start_read(&mut self, now: Now, wanted: Wanted) {
        let fresh = |l: &LinkId| self.readable(*l) && !wanted.tried.iter().any(|t| t.0 == *l);
        let slow = |l: &LinkId| self.peer(*l).slow;
        let local = self.config.local.filter(|l| fresh(l) && !slow(l));
        // Without a replica here, the one that answers with the least outstanding.
        let outstanding = |l: &LinkId| self.reads.asked.values().filter(|r| r.link == *l).count();
        let waiting = |l: &LinkId| (slow(l), outstanding(l));
        let link = local.or_else(|| self.links().filter(fresh).min_by_key(waiting));
        let Some(link) = link else {
            return self.no_copy(now, wanted);
        };
        let id = self.next_request;
        self.next_request += 1;
        let meta = ReadMeta {
            block: wanted.block.0,
            count: wanted.count,
        }
        .encode();
        let seen = self.last();
        self.reads.asked.insert(
            id,
            ReadOp {
                wanted,
                link,
                asked: now,
                seen,
            },
        );
        let header = self.header(Kind::Read, id);
        self.send(link, header, meta);
    }

    /// Every replica that can be asked was.
    fn no_copy(&mut self, now: Now, mut wanted: Wanted) {
        if let Reader::Scrub(repair) = wanted.reader {
            return self.scrub_repaired(repair, None);
        }
        let bad = |l: LinkId| wanted.tried.iter().any(|t| t.0 == l && t.1);
        let set: Vec<_> = self.all_sets().collect();
        let all_bad = !set.is_empty() && set.iter().all(|m| self.link_of(*m).is_some_and(bad));
        let patience = self.config.limits.lapse_patience;
        // With fewer copies than the policy asks for, a good one may still be on its way back.
        let hope = !all_bad || self.below_policy();
        if hope && now.since(wanted.since) < patience {
            // Somebody may be back soon. Who was only slow may be asked again.
            wanted.tried.retain(|t| t.1);
            self.reads.parked.push(wanted);
        } else if let (true, true, Reader::Caller(wait)) =
            (all_bad, wanted.count > 1, wanted.reader)
        {
            self.split_read(now, wait, &wanted);
        } else if !all_bad {
            let why = "no replica in sync answers reads".to_owned();
            self.answer_read(now, wanted.reader, Err(VolumeError::NotActive(why)));
        } else {
            let why = format!("{} replicas hold a bad copy", wanted.tried.len());
            let error = VolumeError::Unreadable {
                block: wanted.block.0,
                why,
            };
            self.answer_read(now, wanted.reader, Err(error));
        }
    }

    fn split_read(&mut self, now: Now, wait: WaitId, wanted: &Wanted) {
        let id = self.next_request;
        self.next_request += 1;
        let n = wanted.count as usize;
        self.reads.splits.insert(
            id,
            Split {
                wait,
                data: vec![None; n],
            },
        );
        for i in 0..n {
            let reader = Reader::Part(id, i);
            let block = Block(wanted.block.0 + i as u64);
            self.start_read(
                now,
                Wanted {
                    reader,
                    block,
                    count: 1,
                    tried: vec![],
                    since: now,
                },
            );
        }
    }

    fn answer_read(&mut self, now: Now, reader: Reader, result: Result<Bytes, VolumeError>) {
        let (id, index) = match reader {
            Reader::Caller(wait) => return self.complete(now, Effect::Read(wait, result)),
            Reader::Copy(target, _) => {
                if let Err(e) = result {
                    self.resync_failed(target, e.to_string());
                }
                return;
            }
            // It shows when the blocks are looked at again whether that did any good.
            Reader::Scrub(id) => return self.scrub_repaired(id, None),
            Reader::Part(id, index) => (id, index),
        };
        let Some(split) = self.reads.splits.get_mut(&id) else {
            return;
        };
        let wait = split.wait;
        match result {
            Ok(data) => split.data[index] = Some(data),
            Err(e) => {
                self.reads.splits.remove(&id);
                return self.out.push(Effect::Read(wait, Err(e)));
            }
        }
        if split.data.iter().all(Option::is_some) {
            let all: Vec<u8> = split
                .data
                .iter()
                .flatten()
                .flat_map(|d| d.iter().copied())
                .collect();
            self.reads.splits.remove(&id);
            self.complete(now, Effect::Read(wait, Ok(all.into())));
        }
    }

    pub(super) fn on_read_ok(&mut self, link: LinkId, frame: Frame) {
        self.peer_mut(link).slow = false;
        let id = frame.header.seq;
        let wanted = self.reads.asked.get(&id);
        let wanted = wanted.map(|op| (op.link, op.wanted.block, op.wanted.count));
        // A late answer to a read that was asked elsewhere meanwhile.
        let Some((asked, block, count)) = wanted else {
            return;
        };
        let data = frame.contiguous_data();
        let n = count as usize;
        if asked != link || data.len() != n * BLOCK_BYTES || frame.meta.len() != n * 16 {
            return self.refuse_link(link, "an answer to a read has the wrong size".into());
        }
        let sums = frame.meta.chunks_exact(Checksum::BYTES).map(|c| {
            let mut sum = [0; 16];
            sum.copy_from_slice(c);
            Checksum(sum)
        });
        let verify = Verify {
            request: id,
            link,
            block,
            sums: sums.collect(),
            data,
        };
        self.out.push(Effect::Verify(verify));
    }

    /// The result of [`Effect::Verify`].
    pub fn verified(&mut self, now: Now, v: Verify, good: bool) {
        let Some(op) = self.reads.asked.remove(&v.request) else {
            return;
        };
        if good {
            match op.wanted.reader {
                Reader::Copy(link, job) => self.copy_read(now, (link, job), op.seen, &v),
                // It knows itself whom to repair.
                Reader::Scrub(repair) => return self.scrub_repaired(repair, Some(&v)),
                reader => self.answer_read(now, reader, Ok(v.data.clone())),
            }
            for (bad, _) in op.wanted.tried.iter().filter(|t| t.1) {
                self.repair(*bad, &op, &v);
            }
            return;
        }
        if let Some(member) = self.peer(v.link).member {
            self.notice(Notice::BadCopy {
                member,
                block: op.wanted.block.0,
            });
        }
        self.retry(now, op, true);
    }

    fn retry(&mut self, now: Now, op: ReadOp, bad: bool) {
        let mut wanted = op.wanted;
        wanted.tried.push((op.link, bad));
        self.start_read(now, wanted);
    }

    pub(super) fn on_read_refused(&mut self, now: Now, link: LinkId, id: u64, reply: Reply) {
        let Some(op) = self.reads.asked.remove(&id) else {
            return;
        };
        let Reply::Refused(refusal) = reply else {
            return;
        };
        if matches!(refusal, Refusal::Fenced { .. } | Refusal::Removed(_)) {
            self.retry(now, op, false);
            return self.on_refused(now, link, super::Ask::Renew, refusal);
        }
        // It could not read what it has (a disk error, a damaged checksum): a bad copy. Anything
        // else says nothing about the copy.
        let bad = matches!(refusal, Refusal::Disk(_) | Refusal::Unusable(_));
        if let (true, Some(member)) = (bad, self.peer(link).member) {
            self.notice(Notice::BadCopy {
                member,
                block: op.wanted.block.0,
            });
        }
        self.retry(now, op, bad);
    }

    /// Writes a good copy over a bad one, unless something newer was ordered meanwhile.
    fn repair(&mut self, to: LinkId, op: &ReadOp, good: &Verify) {
        let (block, blocks) = (op.wanted.block, u64::from(op.wanted.count));
        if !self.peer(to).flows() || self.history.touched_since(op.seen, block.0, blocks) {
            return;
        }
        self.send_copy(to, block, &good.sums, &good.data);
        if let Some(member) = self.peer(to).member {
            self.notice(Notice::Repaired {
                member,
                block: block.0,
            });
        }
    }

    /// Sends blocks outside of the history, in the ordered stream.
    pub(super) fn send_copy(&mut self, to: LinkId, block: Block, sums: &[Checksum], data: &Bytes) {
        self.pump(to);
        let entry = copy_entry(block, sums, data);
        let mut header = self.header(Kind::Copy, self.last().0);
        header.generation = self.generation;
        let frame = Frame {
            header,
            meta: entry.encode_meta(),
            data: entry.data,
        };
        self.peer_mut(to).sent_bytes += frame.data_len() as u64;
        self.out
            .push(Effect::Send(to, super::OutFrame { frame, crc: None }));
    }

    pub(super) fn reads_link_lost(&mut self, now: Now, link: LinkId) {
        let of_link = |(id, r): (&u64, &ReadOp)| (r.link == link).then_some(*id);
        let lost: Vec<u64> = self.reads.asked.iter().filter_map(of_link).collect();
        for op in lost
            .into_iter()
            .filter_map(|id| self.reads.asked.remove(&id))
            .collect::<Vec<_>>()
        {
            self.retry(now, op, false);
        }
    }

    pub(super) fn tick_reads(&mut self, now: Now) {
        for wanted in std::mem::take(&mut self.reads.parked) {
            self.start_read(now, wanted);
        }
        let patience = self.config.limits.read_patience;
        let slow = |(id, r): (&u64, &ReadOp)| (now.since(r.asked) >= patience).then_some(*id);
        let slow: Vec<u64> = self.reads.asked.iter().filter_map(slow).collect();
        for id in slow {
            let Some(op) = self.reads.asked.get(&id) else {
                continue;
            };
            let tried = &op.wanted.tried;
            let fresh = |l: &LinkId| *l != op.link && !tried.iter().any(|t| t.0 == *l);
            let other = self.links().any(|l| self.readable(l) && fresh(&l));
            let link = op.link;
            self.peer_mut(link).slow = true;
            if other && let Some(op) = self.reads.asked.remove(&id) {
                self.retry(now, op, false);
            }
        }
    }
}

/// An entry without a place that writes what is written and discards what is not.
pub(super) fn copy_entry(block: Block, sums: &[Checksum], data: &Bytes) -> Entry {
    let mut entry = Entry {
        seq: Seq::ZERO,
        generation: 0,
        ops: vec![],
        sums: vec![],
        data: vec![],
    };
    let mut at = 0;
    while at < sums.len() {
        let unwritten = sums[at].is_unwritten();
        let run = sums[at..]
            .iter()
            .take_while(|s| s.is_unwritten() == unwritten)
            .count();
        let first = Block(block.0 + at as u64);
        if unwritten {
            entry.ops.push(Op::Discard {
                block: first,
                count: run as u64,
            });
        } else {
            entry.ops.push(Op::Write {
                block: first,
                count: run as u32,
            });
            entry.sums.extend_from_slice(&sums[at..at + run]);
            entry
                .data
                .push(data.slice(at * BLOCK_BYTES..(at + run) * BLOCK_BYTES));
        }
        at += run;
    }
    entry
}
