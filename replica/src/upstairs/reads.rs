//! Reads from one verified replica, elsewhere on error, slowness or a bad checksum, and the
//! repair of a bad copy (invariant 7).
//!
//! A read goes down the same ordered stream as the writes, so it reflects every entry that was
//! sent before it. Only replicas in every set that counts are asked. The answer is verified by
//! the driver outside of any lock, and leaves only within the lease.

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Kind, ReadMeta};
use trivet_protocol::message::{Refusal, Reply};
use trivet_protocol::{BLOCK_BYTES, Block, Checksum, Entry, MemberId, Now, Op, Seq};

use super::{Effect, LinkId, Notice, Upstairs, Verify, WaitId};
use crate::VolumeError;

/// One read under way; its request number is its key.
#[derive(Debug)]
pub struct ReadOp {
    /// Who waits; `None` once answered, while a slower answer is still awaited.
    pub wait: Option<WaitId>,
    block: Block,
    count: u32,
    link: LinkId,
    asked: Now,
    /// Everything ordered when it was asked; the answer reflects it.
    seen: Seq,
    /// Replicas tried before, and whether their copy was bad.
    tried: Vec<(LinkId, bool)>,
}

impl Upstairs {
    /// Reads blocks; answered with [`Effect::Read`]. The range was checked by the caller.
    pub fn read(&mut self, now: Now, block: Block, count: u32, wait: WaitId) {
        if !self.is_active() {
            self.out.push(Effect::Read(wait, Err(self.not_active())));
            return;
        }
        self.start_read(now, block, count, wait, Vec::new());
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

    fn start_read(
        &mut self,
        now: Now,
        block: Block,
        count: u32,
        wait: WaitId,
        tried: Vec<(LinkId, bool)>,
    ) {
        let fresh = |l: &LinkId| self.readable(*l) && !tried.iter().any(|t| t.0 == *l);
        let local = self.config.local.filter(fresh);
        // Without a replica here, the one that answers with the least outstanding.
        let waiting = |l: &LinkId| self.reads.values().filter(|r| r.link == *l).count();
        let link = local.or_else(|| self.links().filter(fresh).min_by_key(waiting));
        let Some(link) = link else {
            if tried.is_empty() || tried.iter().any(|t| !t.1) {
                // Nobody to ask now; the lease's patience bounds the wait.
                self.parked_reads.push((wait, block, count));
            } else {
                let why = format!("{} replicas hold a bad copy", tried.len());
                let error = VolumeError::Unreadable {
                    block: block.0,
                    why,
                };
                self.out.push(Effect::Read(wait, Err(error)));
            }
            return;
        };
        let id = self.next_request;
        self.next_request += 1;
        let seen = self.last();
        let op = ReadOp {
            wait: Some(wait),
            block,
            count,
            link,
            asked: now,
            seen,
            tried,
        };
        self.reads.insert(id, op);
        let header = self.header(Kind::Read, id);
        self.send(
            link,
            header,
            ReadMeta {
                block: block.0,
                count,
            }
            .encode(),
        );
    }

    pub(super) fn on_read_ok(&mut self, link: LinkId, frame: Frame) {
        let id = frame.header.seq;
        let wanted = match self.reads.get(&id) {
            Some(op) => Some((op.link, op.block, op.count)),
            None => self
                .copy_waiting(id)
                .map(|(_, _, b, n)| (link, Block(b), n)),
        };
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
        let Some(op) = self.reads.remove(&v.request) else {
            return self.copy_verified(now, v, good);
        };
        if good {
            if let Some(wait) = op.wait {
                self.complete(now, Effect::Read(wait, Ok(v.data.clone())));
            }
            for (bad, _) in op.tried.iter().filter(|t| t.1) {
                self.repair(now, *bad, &op, &v);
            }
            return;
        }
        if let Some(member) = self.peer(v.link).member {
            self.notice(Notice::BadCopy {
                member,
                block: op.block.0,
            });
        }
        self.retry(now, op, true);
    }

    fn retry(&mut self, now: Now, op: ReadOp, bad: bool) {
        let mut tried = op.tried;
        tried.push((op.link, bad));
        if let Some(wait) = op.wait {
            self.start_read(now, op.block, op.count, wait, tried);
        }
    }

    pub(super) fn on_read_refused(&mut self, now: Now, link: LinkId, id: u64, reply: Reply) {
        if let Reply::Refused(refusal @ (Refusal::Fenced { .. } | Refusal::Removed(_))) = reply {
            return self.on_refused(now, link, super::Ask::Renew, refusal);
        }
        let Some(op) = self.reads.remove(&id) else {
            return;
        };
        // The replica could not read it (a disk error, a bad metadata sector): a bad copy.
        if let Some(member) = self.peer(link).member {
            self.notice(Notice::BadCopy {
                member,
                block: op.block.0,
            });
        }
        self.retry(now, op, true);
    }

    /// Writes a good copy over a bad one, unless something newer was ordered meanwhile.
    fn repair(&mut self, now: Now, to: LinkId, op: &ReadOp, good: &Verify) {
        let blocks = u64::from(op.count);
        if !self.peer(to).flows() || self.history.touched_since(op.seen, op.block.0, blocks) {
            return;
        }
        self.send_copy(now, to, op.block, &good.sums, &good.data);
        if let Some(member) = self.peer(to).member {
            self.notice(Notice::Repaired {
                member,
                block: op.block.0,
            });
        }
    }

    /// Sends blocks outside of the history, in the ordered stream.
    pub(super) fn send_copy(
        &mut self,
        now: Now,
        to: LinkId,
        block: Block,
        sums: &[Checksum],
        data: &Bytes,
    ) {
        self.pump(now, to);
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
        let lost: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| r.link == link)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some(op) = self.reads.remove(&id)
                && self.is_active()
            {
                self.retry(now, op, false);
            }
        }
    }

    pub(super) fn tick_reads(&mut self, now: Now) {
        for (wait, block, count) in std::mem::take(&mut self.parked_reads) {
            self.start_read(now, block, count, wait, Vec::new());
        }
        let patience = self.config.limits.read_patience;
        let slow: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| r.wait.is_some() && now.since(r.asked) >= patience)
            .map(|(id, _)| *id)
            .collect();
        for id in slow {
            let Some(op) = self.reads.get(&id) else {
                continue;
            };
            let other = self
                .links()
                .any(|l| self.readable(l) && l != op.link && !op.tried.iter().any(|t| t.0 == l));
            if other && let Some(op) = self.reads.remove(&id) {
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
