//! Reads and control requests.

use super::*;

impl Replica {
    pub(super) fn read_asked(
        &mut self,
        conn: ConnId,
        frame: &Frame,
        out: &mut Vec<Out>,
    ) -> Result<(), Refusal> {
        let id = frame.header.seq;
        let planned = self.plan_read(frame);
        match planned {
            Ok(job) => out.push(Out::Read(conn, id, job)),
            Err(refusal) => self.reply(conn, id, &Reply::Refused(refusal), out),
        }
        Ok(())
    }

    pub(super) fn plan_read(&mut self, frame: &Frame) -> Result<ReadJob, Refusal> {
        self.member.check(frame.header.generation)?;
        let bad = || Refusal::BadRequest("a read of no, or of too many blocks".into());
        let r = ReadMeta::decode(&frame.meta).ok_or_else(bad)?;
        if r.count == 0 || r.count > MAX_READ_BLOCKS {
            return Err(bad());
        }
        let store = self.whole_store()?;
        store.begin_read(Block(r.block), r.count).map_err(refusal)
    }

    /// The region, if its content is of one moment.
    pub(super) fn whole_store(&mut self) -> Result<&Store, Refusal> {
        let store = self.store_mut()?;
        if store.mixed().is_some() || store.damaged() {
            return Err(Refusal::Unusable("its data is not of one moment".into()));
        }
        Ok(store)
    }

    /// A read was run; one that the log overtook meanwhile is run again here, under the lock.
    pub fn read_done(
        &mut self,
        conn: ConnId,
        id: u64,
        job: &ReadJob,
        result: Result<crate::store::Blocks>,
        out: &mut Vec<Out>,
    ) {
        let Some(store) = self.store() else { return };
        let result = if store.still_valid(job) && result.is_ok() {
            result
        } else {
            // Planned anew: what it looked for has moved.
            let (block, count) = job.asked();
            store.read(block, count)
        };
        match result {
            Ok(blocks) => {
                let mut sums = BytesMut::with_capacity(blocks.sums.len() * 16);
                blocks.sums.iter().for_each(|s| sums.put_slice(&s.0));
                let header = Header::new(Kind::ReadOk, self.member.state().promise, id);
                let data = vec![Bytes::from(blocks.data)];
                out.push(Out::Send(
                    conn,
                    Frame {
                        header,
                        meta: sums.freeze(),
                        data,
                    },
                ));
            }
            Err(e) => self.reply(conn, id, &Reply::Refused(refusal(e)), out),
        }
    }

    pub(super) fn request(&mut self, now: Now, conn: ConnId, frame: &Frame, out: &mut Vec<Out>) {
        let id = frame.header.seq;
        let request = match message::decode::<Request>(&frame.meta) {
            Ok(request) => request,
            Err(why) => return out.push(Out::Close(conn, why)),
        };
        let greeted = self.conns.get(&conn).is_some_and(|c| c.hello);
        if !greeted && !matches!(request, Request::Hello { .. }) {
            return out.push(Out::Close(conn, "it did not say hello first".into()));
        }
        let header = &frame.header;
        if let Request::BeginResync { common, table } = request {
            let begun = self
                .member
                .check(header.generation)
                .and_then(|()| self.begin_resync(conn, header, common, table, out));
            if let Err(refusal) = begun {
                self.reply(conn, id, &Reply::Refused(refusal), out);
            }
            return;
        }
        if let Request::Scrub { block, count, held } = request {
            let range = (block, count, held);
            return self.scrub_asked((conn, id), header.generation, range, out);
        }
        let reply = self.answer(now, conn, header, request, out);
        let reply = reply.unwrap_or_else(Reply::Refused);
        self.reply(conn, id, &reply, out);
    }

    /// The holder of this generation is done: its promise ends, durably.
    ///
    /// # Errors
    /// The promise is another one's, or cannot be stored.
    pub fn hand_back(&mut self, g: Generation) -> Result<(), Refusal> {
        let before = self.member.state().clone();
        let keep = self.member.hand_back(g)?;
        self.keep(before, keep)
    }

    pub(super) fn answer(
        &mut self,
        now: Now,
        conn: ConnId,
        header: &Header,
        request: Request,
        out: &mut Vec<Out>,
    ) -> Result<Reply, Refusal> {
        let (id, g, positions) = (header.seq, header.generation, (header.commit, header.trim));
        match request {
            Request::Hello { volume, member, .. } => self.hello(now, conn, volume, member),
            Request::Attend { .. } | Request::BeginResync { .. } | Request::Scrub { .. } => {
                Err(Refusal::BadRequest("out of place".into()))
            }
            Request::Status => self.welcome(now, conn).map(Reply::Welcome),
            Request::Claim { node } => {
                self.usable()?;
                if node.is_empty() || node.len() > MAX_NAME {
                    return Err(Refusal::BadRequest("a node's name is out of range".into()));
                }
                let before = self.member.state().clone();
                let keep = self.member.claim(now, g, &node)?;
                self.keep(before, keep)?;
                self.stream = Some(conn);
                self.drop_fenced(conn);
                self.recorder.count("downstairs.claims", 1);
                self.welcome(now, conn).map(Reply::Granted)
            }
            Request::Renew => {
                self.member.renew(now, g, positions)?;
                self.heed_told();
                Ok(Reply::Renewed)
            }
            Request::PutRecord(record) => {
                let (blocks, in_set) = (record.blocks, record.in_sync.contains(&self.id()));
                self.usable()?;
                let before = self.member.state().clone();
                let (version, keep) = self.member.put_record(now, g, record)?;
                self.keep(before, keep)?;
                let in_line = self.conns.get(&conn).is_some_and(|c| c.generation == g);
                if let Keeper::Region(store) = &mut self.keeper {
                    store.grow(blocks).map_err(refusal)?;
                    if in_set && in_line {
                        // Whoever counts us, with this stream, knows where our log ends.
                        store.settle_tail().map_err(refusal)?;
                    }
                }
                Ok(Reply::Recorded(version))
            }
            Request::HandBack => self.hand_back(g).map(|()| Reply::Done),
            Request::Cut(to) => {
                self.member.check(g)?;
                let store = self.store_mut()?;
                store.cut(to).map_err(refusal)?;
                if store.mixed().is_some() {
                    let why = "blocks that a resync had copied went with the cut";
                    return Err(Refusal::Unusable(why.into()));
                }
                Ok(Reply::Done)
            }
            Request::Fetch { from, max_bytes } => {
                self.member.check(g)?;
                self.fetch(conn, id, from, max_bytes, out)
            }
            Request::FinishResync => {
                self.member.check(g)?;
                let store = self.store_mut()?;
                store.set_commit(positions.0);
                store.sync().map_err(refusal)?;
                store.finish_resync().map_err(refusal)?;
                Ok(Reply::Done)
            }
            Request::Changed { since, cursor, max } => {
                self.member.check(g)?;
                let max = max.clamp(1, MAX_RANGES) as usize;
                let store = self.store_mut()?;
                // A region that is being brought back knows what it did since its own base: the
                // jump of this very resync is no gap. And since 0 both sides list all they have.
                let gap = since < store.whole_from() && store.mixed().is_none();
                if gap && since > Seq::ZERO {
                    let (ranges, next) = everything(cursor, store.blocks(), max);
                    return Ok(Reply::Changed { ranges, next });
                }
                let (groups, next) = store
                    .changed_since(since, Cursor(cursor), max)
                    .map_err(refusal)?;
                let ranges = joined(groups.iter().map(|g| (g.block, g.count)));
                Ok(Reply::Changed {
                    ranges,
                    next: next.map(|c| c.0),
                })
            }
            Request::Sums { block, count } => {
                self.member.check(g)?;
                if count == 0 || count > MAX_SUMS {
                    return Err(Refusal::BadRequest(format!("{count} checksums asked for")));
                }
                let sums = self.store_mut()?.checksums(Block(block), count);
                sums.map(Reply::Sums).map_err(refusal)
            }
        }
    }

    /// What waits for room on other connections, or belongs to another generation, is of the past
    /// by now: it must not stand in the way of what comes.
    pub(super) fn drop_fenced(&mut self, stream: ConnId) {
        let promise = self.member.state().promise;
        self.preparing = None;
        for (id, c) in &mut self.conns {
            if *id != stream {
                c.parked.clear();
                c.sync_to = None;
            }
            c.parked.retain(|f| f.header.generation == promise);
            c.parked_bytes = c.parked.iter().map(Frame::wire_len).sum();
        }
    }

    /// Positions that came with a renewal count only once the stream of that generation is in
    /// line: before that, what is here may be of a history that lost. They keep the log emptying
    /// while the stream itself waits for room.
    pub(super) fn heed_told(&mut self) {
        let Some((g, commit, trim)) = self.member.pledge().take_told() else {
            return;
        };
        let stream = self.stream.and_then(|conn| self.conns.get(&conn));
        let in_line = stream.is_some_and(|c| c.generation == g);
        if let (true, Keeper::Region(store)) = (in_line, &mut self.keeper) {
            store.set_commit(commit);
            store.set_trim(trim);
        }
    }

    pub(super) fn hello(
        &mut self,
        now: Now,
        conn: ConnId,
        volume: VolumeId,
        member: Option<MemberId>,
    ) -> Result<Reply, Refusal> {
        if volume != self.volume() {
            return Err(Refusal::NotHere(format!(
                "volume {volume} is not on this node"
            )));
        }
        if let Some(expected) = member.filter(|m| *m != self.id()) {
            return Err(Refusal::NotHere(format!(
                "member {} lives here, not {expected}; it was replaced",
                self.id()
            )));
        }
        if let Some(c) = self.conns.get_mut(&conn) {
            c.hello = true;
        }
        self.usable()?;
        self.welcome(now, conn).map(Reply::Welcome)
    }

    /// A member whose disk failed answers nothing that would count.
    pub(super) fn usable(&self) -> Result<(), Refusal> {
        match self.failed() {
            Some(why) => Err(Refusal::Unusable(why.to_owned())),
            None => Ok(()),
        }
    }

    pub(super) fn welcome(&self, now: Now, conn: ConnId) -> Result<Welcome, Refusal> {
        let state = self.member.state();
        if state.removed {
            return Err(Refusal::Removed(Box::new(state.record.clone())));
        }
        let space = self
            .store()
            .and_then(|s| s.free_space().ok())
            .unwrap_or_default();
        let table = self.store().map(|s| s.generation_table().clone());
        Ok(Welcome {
            member: state.member,
            kind: match self.keeper {
                Keeper::Region(_) | Keeper::Closed => MemberKind::Replica,
                Keeper::Witness(_) => MemberKind::Witness,
            },
            record: state.record.clone(),
            promise: state.promise,
            holder: state.holder.clone(),
            lease_left: self.member.lease_left(now),
            handed_back: state.handed_back,
            held_for: self.member.held_for(now),
            data: self.data_state(),
            table: table.unwrap_or_default(),
            durable: match &self.keeper {
                Keeper::Region(store) => store.durable(),
                Keeper::Witness(_) => state.record.version.position(),
                Keeper::Closed => Position::default(),
            },
            checkpointed: self.store().map_or(Seq::ZERO, |s| s.checkpointed().seq),
            log_first: self.store().map_or(Seq::ZERO, |s| s.tail().next()),
            opens: self.opens,
            credit: self.credit(conn),
            pool_free: space.free,
            pool_size: space.total,
        })
    }

    /// How sure it is of its data.
    pub fn data_state(&self) -> DataState {
        let Some(store) = self.store() else {
            return DataState::None;
        };
        if let Some(common) = store.mixed() {
            DataState::Mixed(common.unwrap_or(Seq::ZERO))
        } else if store.damaged() {
            DataState::Damaged
        } else if store.unsure() {
            DataState::Whole(Tail::Unsure)
        } else {
            DataState::Whole(Tail::Clean)
        }
    }

    pub(super) fn fetch(
        &mut self,
        conn: ConnId,
        id: u64,
        from: Seq,
        max_bytes: u32,
        out: &mut Vec<Out>,
    ) -> Result<Reply, Refusal> {
        let promise = self.member.state().promise;
        let store = self.store_mut()?;
        let entries = store
            .entries_from(from, max_bytes.min(MAX_FETCH_BYTES) as usize)
            .map_err(refusal)?;
        let (first, last) = (store.tail().next(), store.end().seq);
        for entry in entries {
            let mut header = Header::new(Kind::LogEntry, promise, entry.seq.0);
            header.aux = entry.generation;
            header.commit = Seq(id);
            let frame = Frame {
                header,
                meta: entry.encode_meta(),
                data: entry.data,
            };
            out.push(Out::Send(conn, frame));
        }
        Ok(Reply::Fetched { first, last })
    }
}

/// All blocks from `cursor` on, for a region that cannot tell which of them changed; and where to
/// go on.
fn everything(cursor: u64, blocks: u64, max: usize) -> (Vec<(u64, u32)>, Option<u64>) {
    const STEP: u64 = 1 << 20;
    let starts = (cursor..blocks).step_by(STEP as usize).take(max);
    let ranges: Vec<_> = starts
        .map(|at| (at, STEP.min(blocks - at) as u32))
        .collect();
    let end = cursor.saturating_add(STEP.saturating_mul(ranges.len() as u64));
    (ranges, (end < blocks).then_some(end))
}

/// Neighbouring ranges as one, while they stay within what one job compares.
fn joined(ranges: impl Iterator<Item = (u64, u32)>) -> Vec<(u64, u32)> {
    let mut out: Vec<(u64, u32)> = Vec::new();
    for (block, count) in ranges {
        match out.last_mut() {
            Some((b, n)) if *b + u64::from(*n) == block && *n < (1 << 20) => *n += count,
            _ => out.push((block, count)),
        }
    }
    out
}
