//! The workload on whoever serves, and the checks of what it is answered.

use super::*;

impl World {
    pub(super) fn client(&mut self, up: usize, inc: u64) {
        if self.ups[up].incarnation != inc || self.ups[up].leaving {
            return;
        }
        let until = self.ups[up].paused_until;
        if self.put_off(until, Event::Client(up, inc)).is_none() {
            return;
        }
        if self.ups[up].core.is_none() {
            return;
        }
        if self.stage.is_quiet(up) {
            return self.after(MS, Event::Client(up, inc));
        }
        let quiet = self.time > self.faults_end + self.settle;
        match self.rng.below(10) {
            0..5 if quiet => {}
            0..5 if self.ups[up].parked.is_none() => self.submit_random(up),
            5 | 6 => self.read_random(up),
            _ => self.flush(up, Wait::Flush),
        }
        if self.rng.one_in(1500) && !self.healing && self.stage.story.is_none() {
            self.flush(up, Wait::LeaveFlush);
        }
        let nanos = match self.rng.below(20) {
            0 => self.rng.below(60 * MS),
            _ => self.rng.below(4 * MS),
        };
        self.after(nanos, Event::Client(up, inc));
    }

    pub(super) fn wait(&mut self, up: usize, wait: Wait) -> WaitId {
        let u = &mut self.ups[up];
        u.next_wait += 1;
        u.waits.insert(WaitId(u.next_wait), wait);
        WaitId(u.next_wait)
    }

    pub fn flush(&mut self, up: usize, kind: Wait) {
        let wait = self.wait(up, kind);
        self.with_up(up, |core, now| core.flush(now, core.last(), wait));
    }

    pub(super) fn read_random(&mut self, up: usize) {
        let block = self.rng.below(BLOCKS);
        let count = 1 + self.rng.below((BLOCKS - block).min(24));
        self.read(up, block, count);
    }

    pub fn read(&mut self, up: usize, block: u64, count: u64) {
        let since = self.ups[up].core.as_ref().map_or(Seq(0), Upstairs::last);
        let wait = self.wait(
            up,
            Wait::Read {
                block,
                count,
                since,
            },
        );
        self.with_up(up, |core, now| {
            core.read(now, Block(block), count as u32, wait)
        });
    }

    pub(super) fn read_answer(
        &mut self,
        up: usize,
        generation: u64,
        wait: WaitId,
        result: Result<Bytes, trivet_replica::VolumeError>,
    ) {
        let Some(Wait::Read {
            block,
            count,
            since,
        }) = self.ups[up].waits.remove(&wait)
        else {
            return;
        };
        match result {
            Ok(data) => {
                self.model.reads += 1;
                let ack = self.model.acknowledged(generation, "read");
                self.check(ack);
                for i in 0..count {
                    let at = i as usize * BLOCK_BYTES;
                    let tag = tag_of(&data[at..at + BLOCK_BYTES]);
                    let allowed = self.ups[up].versions.allowed(block + i, since, tag);
                    if allowed.is_err() && self.trace {
                        self.describe_nodes();
                        let held: Vec<_> = self
                            .nodes
                            .iter()
                            .filter_map(|n| n.replica.as_ref()?.store())
                            .map(|s| s.read(Block(block + i), 1).map(|b| tag_of(&b.data)))
                            .collect();
                        println!("since {since}, held {held:x?}");
                        println!("versions {:x?}", self.ups[up].versions.of(block + i));
                    }
                    self.check(allowed);
                }
            }
            Err(trivet_replica::VolumeError::Unreadable { block, why }) => {
                // One replica at most was harmed: another must have served, where there is one.
                let copies = self.ups[up]
                    .core
                    .as_ref()
                    .and_then(|c| c.record())
                    .map_or(0, |r| r.in_sync.len());
                if copies < 2 {
                    return;
                }
                self.check(Err(format!("I7: block {block} unreadable: {why}")));
            }
            Err(_) => {}
        }
    }

    pub(super) fn random_batch(&mut self) -> (Batch, ModelOp) {
        let mut made = Default::default();
        for _ in 0..1 + self.rng.below(3) {
            let (long, discard) = (self.rng.one_in(8), self.rng.one_in(6));
            let most = if long { 24 } else { 4 };
            let block = self.rng.below(BLOCKS);
            let count = 1 + self.rng.below((BLOCKS - block).min(most));
            if !discard {
                self.put_write(&mut made, block, count);
            } else if self.rng.one_in(4) {
                put_discard(&mut made, block, BLOCKS - block);
            } else {
                put_discard(&mut made, block, count);
            }
        }
        made
    }

    fn put_write(&mut self, (batch, op): &mut (Batch, ModelOp), block: u64, count: u64) {
        let tag = self.next_tag;
        self.next_tag += count;
        let data = content_of(tag, count).into();
        let block_no = Block(block);
        batch.ops.push(BatchOp::Write {
            block: block_no,
            data,
        });
        op.parts.push((block, count, tag));
    }

    pub fn submit_random(&mut self, up: usize) {
        let made = self.random_batch();
        self.submit_batch(up, made);
    }

    /// Overwrites blocks with new content.
    pub fn write(&mut self, up: usize, block: u64, count: u64) {
        let mut made = Default::default();
        self.put_write(&mut made, block, count);
        self.submit_batch(up, made);
    }

    /// Discards blocks.
    pub fn discard(&mut self, up: usize, block: u64, count: u64) {
        let mut made = Default::default();
        put_discard(&mut made, block, count);
        self.submit_batch(up, made);
    }

    fn submit_batch(&mut self, up: usize, (batch, op): (Batch, ModelOp)) {
        if self.ups[up].parked.is_some() {
            return;
        }
        let prepared = Arc::new(Prepared::new(self.volume, batch));
        self.submit(up, prepared, op);
    }

    pub(super) fn submit(&mut self, up: usize, prepared: Arc<Prepared>, op: ModelOp) {
        let now = self.ups[up].clock.now(self.time);
        let Some(core) = &mut self.ups[up].core else {
            return;
        };
        let generation = core.generation().number;
        match core.submit(now, &prepared) {
            Submitted::At(seq) => {
                self.operations += 1;
                let result = self.model.ordered(generation, seq, op.clone());
                self.check(result);
                self.ups[up].versions.ordered(seq, &op);
                apply(&mut self.ups[up].content, &op);
            }
            Submitted::Full => self.ups[up].parked = Some((prepared, op)),
            Submitted::Failed(_) => {}
        }
        self.effects(up);
    }

    pub(super) fn try_parked(&mut self, up: usize) {
        if let Some((prepared, op)) = self.ups[up].parked.take() {
            self.submit(up, prepared, op);
        }
    }
}

fn put_discard((batch, op): &mut (Batch, ModelOp), block: u64, count: u64) {
    let first = Block(block);
    batch.ops.push(BatchOp::Discard {
        block: first,
        count,
    });
    op.parts.push((block, count, 0));
}
