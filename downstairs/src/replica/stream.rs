//! The ordered stream: entries, copies and syncs, what waits for room in the log, and the jobs
//! that make room.

use super::*;

impl Replica {
    pub(super) fn append(&mut self, conn: ConnId, frame: Frame) -> Result<(), Refusal> {
        self.member.check(frame.header.generation)?;
        let header = frame.header;
        let store = self.store_mut()?;
        let data = frame.contiguous_data();
        let len = data.len() as u64;
        let entry = Entry::decode(
            Seq(header.seq),
            header.aux,
            &frame.meta,
            data,
            store.blocks(),
        )
        .map_err(|e| Refusal::BadRequest(e.to_string()))?;
        if entry.seq == store.end().seq.next() {
            // It follows: the stream is in line with what is here, so its positions count, also
            // while this very entry waits for the room that they may give.
            store.set_commit(header.commit);
            store.set_trim(header.trim);
            self.in_line(conn, header.generation);
        }
        match self.store_mut()?.append(&entry) {
            Ok(()) => {}
            Err(StoreError::LogFull { .. }) => {
                self.park(conn, frame);
                return Ok(());
            }
            Err(e) => return Err(refusal(e)),
        }
        if let Some(c) = self.conns.get_mut(&conn) {
            c.received += len;
        }
        Ok(())
    }

    pub(super) fn in_line(&mut self, conn: ConnId, generation: Generation) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.generation = generation;
        }
    }

    pub(super) fn park(&mut self, conn: ConnId, frame: Frame) {
        self.recorder.count("downstairs.log.full", 1);
        // Only what is synced can be moved out of the log; copies are synced for no other reason.
        self.sync_wanted = true;
        if let Some(c) = self.conns.get_mut(&conn) {
            c.parked_bytes += frame.wire_len();
            c.parked.push_front(frame);
        }
    }

    pub(super) fn copy(&mut self, conn: ConnId, frame: Frame) -> Result<(), Refusal> {
        self.member.check(frame.header.generation)?;
        let store = self.store_mut()?;
        let data = frame.contiguous_data();
        // A copy reflects the history up to a place: it may only be laid over exactly that.
        if Seq(frame.header.seq) != store.end().seq {
            return Err(Refusal::BadRequest(format!(
                "a copy as of #{} where the history ends at {}",
                frame.header.seq,
                store.end().seq
            )));
        }
        let entry = Entry::decode(store.end().seq, 0, &frame.meta, data, store.blocks())
            .map_err(|e| Refusal::BadRequest(e.to_string()))?;
        match store.copy_in(entry) {
            Err(StoreError::LogFull { .. }) => {
                self.park(conn, frame);
                Ok(())
            }
            other => other.map_err(refusal),
        }
    }

    pub(super) fn sync_asked(
        &mut self,
        conn: ConnId,
        header: &Header,
        out: &mut Vec<Out>,
    ) -> Result<(), Refusal> {
        self.member.check(header.generation)?;
        let store = self.store_mut()?;
        if Seq(header.seq) > store.end().seq {
            return Err(Refusal::BadRequest(format!(
                "a sync up to #{} where the history ends at {}",
                header.seq,
                store.end().seq
            )));
        }
        store.set_commit(header.commit);
        store.set_trim(header.trim);
        let durable = store.durable().seq;
        let Some(c) = self.conns.get_mut(&conn) else {
            return Ok(());
        };
        c.generation = header.generation;
        if durable >= Seq(header.seq) {
            self.say_durable(conn, durable, false, out);
        } else {
            c.sync_to = Some(Seq(header.seq));
            self.sync_wanted = true;
        }
        Ok(())
    }

    pub(super) fn say_durable(
        &self,
        conn: ConnId,
        durable: Seq,
        working: bool,
        out: &mut Vec<Out>,
    ) {
        let mut header = Header::new(Kind::Durable, self.member.state().promise, durable.0);
        header.trim = Seq(u64::from(working));
        header.aux = self.credit(conn);
        let in_place = self.conns.get(&conn).is_some_and(|c| c.in_place.get());
        header.commit = Seq(u64::from(in_place));
        out.push(Out::Send(
            conn,
            Frame {
                header,
                meta: Bytes::new(),
                data: Vec::new(),
            },
        ));
    }

    pub(super) fn credit(&self, conn: ConnId) -> u64 {
        let Some(c) = self.conns.get(&conn) else {
            return 0;
        };
        let (asked, granted) = c.granted.get();
        if asked != Now::default() && self.now.since(asked) < SPACE_EVERY {
            return granted;
        }
        let free = self.store().and_then(|s| s.free_space().ok());
        let granted = c.received.saturating_add(free.map_or(0, |s| s.free));
        c.granted.set((self.now, granted));
        // While not even what is in the log finds its place, nothing more is to come.
        c.in_place
            .set(!self.full && free.is_some_and(|s| !s.copies_on_write));
        self.cramped.set(free.is_some_and(|s| s.free < CRAMPED));
        granted
    }

    /// Whether [`Replica::begin_sync`] would give a job.
    pub fn wants_sync(&self) -> bool {
        self.sync_wanted && !self.syncing
    }

    /// Whether a checkpoint is due.
    pub fn wants_checkpoint(&self) -> bool {
        let cramped = self.cramped.get() && self.now.since(self.relieved) >= RELIEVE_EVERY;
        let due = self
            .store()
            .is_some_and(|s| s.wants_checkpoint() || (cramped && s.checkpoint_would_help()));
        let preparing = self.preparing.as_ref().is_some_and(|p| p.marked);
        let waiting = || self.conns.values().any(|c| !c.parked.is_empty());
        !self.checkpointing && (due || preparing || waiting())
    }

    /// A sync that somebody waits for, if none runs. To be run without the lock and handed to
    /// [`Replica::sync_done`].
    pub fn begin_sync(&mut self) -> Option<SyncJob> {
        if self.syncing || !self.sync_wanted {
            return None;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return None;
        };
        let job = store.begin_sync().ok()?;
        self.sync_wanted = false;
        self.syncing = true;
        Some(job)
    }

    /// A sync ended.
    pub fn sync_done(&mut self, job: SyncJob, result: Result<Synced>, out: &mut Vec<Out>) {
        self.syncing = false;
        let Keeper::Region(store) = &mut self.keeper else {
            return;
        };
        let upto = match store.finish_sync(job, result) {
            Ok(upto) => upto,
            Err(e) => {
                return self.disk_failed(e, "a sync failed", out);
            }
        };
        let promise = self.member.state().promise;
        let mut tell = Vec::new();
        for (id, c) in &mut self.conns {
            // The question of one whose frames wait for room waits with them; and without the
            // answer nothing would ever be committed, and moved out of the log to make room.
            let waits = !c.parked.is_empty();
            if c.generation == promise && (c.sync_to.is_some() || waits) {
                tell.push(*id);
            }
            if c.sync_to.is_some_and(|wanted| wanted <= upto) {
                c.sync_to = None;
            } else if c.sync_to.is_some() {
                // More was asked for meanwhile.
                self.sync_wanted = true;
            }
        }
        tell.into_iter()
            .for_each(|c| self.say_durable(c, upto, false, out));
        self.go_on_preparing(out);
    }

    /// A checkpoint, if one is needed and none runs. To be stepped without the lock and handed to
    /// [`Replica::checkpoint_done`].
    pub fn begin_checkpoint(&mut self) -> Option<CheckpointJob> {
        self.heed_told();
        if !self.wants_checkpoint() {
            return None;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return None;
        };
        let job = store.begin_checkpoint().ok().flatten()?;
        self.checkpointing = true;
        self.relieved = self.now;
        Some(job)
    }

    /// A checkpoint is under way and comes forward: whoever waits for room in the log hears that it
    /// is waited for with reason.
    pub fn still_working(&self, out: &mut Vec<Out>) {
        let Some(durable) = self.store().map(|s| s.durable().seq) else {
            return;
        };
        let promise = self.member.state().promise;
        for (id, c) in &self.conns {
            if !c.parked.is_empty() && c.generation == promise {
                self.say_durable(*id, durable, true, out);
            }
        }
    }

    /// What a checkpoint moves at once: see [`Store::set_round_bytes`].
    pub fn set_round_bytes(&mut self, bytes: u64) {
        if let Keeper::Region(store) = &mut self.keeper {
            store.set_round_bytes(bytes);
        }
    }

    /// As [`Replica::begin_checkpoint`], also where the log is not half full yet.
    pub fn begin_settling(&mut self) -> Settling {
        if self.checkpointing {
            return Settling::Busy;
        }
        let Keeper::Region(store) = &mut self.keeper else {
            return Settling::Settled;
        };
        match store.begin_checkpoint() {
            Ok(Some(job)) => {
                self.checkpointing = true;
                Settling::Job(Box::new(job))
            }
            // A poisoned store settles nothing more.
            Ok(None) | Err(_) => Settling::Settled,
        }
    }

    /// A checkpoint ended; frames that waited for room go on.
    pub fn checkpoint_done(
        &mut self,
        now: Now,
        job: CheckpointJob,
        result: Result<Step>,
        out: &mut Vec<Out>,
    ) {
        self.checkpointing = false;
        let Keeper::Region(store) = &mut self.keeper else {
            return;
        };
        match store.finish_checkpoint(job, result) {
            Ok(()) => self.full = false,
            Err(e @ StoreError::NoSpace { .. }) => return self.pool_full(&e),
            Err(e) => return self.disk_failed(e, "a checkpoint failed", out),
        }
        self.go_on_preparing(out);
        self.unpark(now, out);
    }

    /// Nothing is lost and nobody refused: what is in the log stays there, and a checkpoint is
    /// tried again. Said once, until one has gone through.
    fn pool_full(&mut self, e: &StoreError) {
        self.recorder.count("downstairs.checkpoint.no_space", 1);
        if !std::mem::replace(&mut self.full, true) {
            tracing::error!(
                volume = %self.volume(), error = %e,
                "the pool is full; the log is moved on when there is space again"
            );
        }
    }

    /// Whether the last checkpoint found no space in the pool.
    pub fn pool_is_full(&self) -> bool {
        self.full
    }

    /// Tries again what waited for room in the log.
    pub fn unpark(&mut self, now: Now, out: &mut Vec<Out>) {
        for conn in self.conns.keys().copied().collect::<Vec<_>>() {
            let Some(c) = self.conns.get_mut(&conn) else {
                continue;
            };
            let mut frames = std::mem::take(&mut c.parked);
            c.parked_bytes = 0;
            while !frames.is_empty() {
                let held = self.prepares(conn);
                let Some(c) = self.conns.get_mut(&conn) else {
                    break;
                };
                if c.failed {
                    // What follows one that was refused is not taken.
                    break;
                }
                if held || !c.parked.is_empty() {
                    // Full again: the rest stays behind the one that was put back.
                    c.parked_bytes += frames.iter().map(Frame::wire_len).sum::<usize>();
                    c.parked.append(&mut frames);
                } else if let Some(frame) = frames.pop_front() {
                    self.handle(now, conn, frame, out);
                }
            }
        }
    }
}
