//! The members: starting, stopping, and the jobs that their disks do.

use super::*;
use trivet_downstairs::log::replay::Tail;

impl World {
    pub fn start_node(&mut self, node: usize) {
        if self.nodes[node].replica.is_some() || self.nodes[node].spare || self.stage.is_down(node)
        {
            return;
        }
        let volume = self.volume;
        let n = &mut self.nodes[node];
        if n.lost {
            if !breaks::on(Break::WipedVotes) {
                return;
            }
            // The mistake: an empty replica under the old identity.
            create(&n.disk, n.id, n.kind, &self.first);
            n.lost = false;
        }
        n.boot += 1;
        let disk: Arc<dyn Disk> = Arc::new(n.disk.dir());
        let now = n.clock.now(self.time);
        let recorder = Arc::new(NullRecorder);
        let who = Some((volume, n.id));
        let opened = match n.kind {
            MemberKind::Witness => Witness::open(&*disk, who)
                .map(|(witness, state)| (Replica::witness(witness, state, now, recorder), None)),
            MemberKind::Replica => {
                Store::open(disk, who, recorder.clone()).and_then(|(store, report)| {
                    Ok((Replica::region(store, now, recorder)?, Some(report.tail)))
                })
            }
        };
        match opened {
            Ok((replica, tail)) => {
                let at = replica.store().map_or_else(String::new, |s| {
                    let (end, commit, moved) = (s.end(), s.commit(), s.checkpointed().seq);
                    format!("{:?}, commit {commit}, moved {moved}", end.seq)
                });
                let promise = replica.member().state().promise;
                n.replica = Some(replica);
                self.coverage.count("starts of a member");
                match tail {
                    None | Some(Tail::Sure) => {}
                    Some(Tail::Unsure(_)) => self.coverage.count("torn tails"),
                    Some(Tail::Damaged(_)) => self.coverage.count("damaged logs"),
                }
                self.say(|| {
                    format!("node {node} starts at {at}, tail {tail:?}, promised {promise:?}")
                });
            }
            Err(e) => {
                // Only harm done to the victim, or a passing I/O error, may keep a region shut.
                self.say(|| format!("node {node} cannot start: {e}"));
                self.count("starts that failed");
                let passing = matches!(e, StoreError::Io { .. } | StoreError::NoSpace { .. });
                if passing {
                    self.after(200 * MS, Event::Start(node));
                } else if node == self.victim && self.harmed {
                    self.nodes[node].lost = true;
                    self.gone_for_good = true;
                } else {
                    self.check(Err(format!(
                        "a region that was never harmed does not open: {e}"
                    )));
                }
            }
        }
    }

    /// The process ends; its connections break a little later.
    pub fn stop_node(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if n.replica.take().is_none() {
            return;
        }
        n.boot += 1;
        n.sync = None;
        n.checkpoint = None;
        for conn in std::mem::take(&mut self.nodes[node].conns) {
            self.break_conn(conn);
        }
    }

    /// This node is the one that is harmed in this world.
    pub fn harmed_at(&mut self, node: usize) {
        (self.victim, self.harmed) = (node, true);
    }

    /// And it cannot come back under its old identity.
    pub fn harm_for_good(&mut self, node: usize) {
        self.harmed_at(node);
        self.gone_for_good = true;
    }

    /// It is emptying its log.
    pub fn moves_out(&self, node: usize) -> bool {
        self.nodes[node].checkpoint.is_some()
    }

    pub(super) fn boot_ok(&self, node: usize, boot: u64) -> bool {
        self.nodes[node].boot == boot && self.nodes[node].replica.is_some()
    }

    /// Puts an event off while a node is paused. True if it was.
    pub(super) fn put_off(&mut self, until: u64, event: Event) -> Option<Event> {
        if until > self.time {
            self.at(until, event);
            return None;
        }
        Some(event)
    }

    pub(super) fn perform(&mut self, node: usize, outs: Vec<Out>) {
        let boot = self.nodes[node].boot;
        for out in outs {
            match out {
                Out::Send(conn, frame) => self.send(conn.0, 1, frame),
                Out::Read(conn, id, job) => {
                    let nanos = 20_000 + self.rng.below(MS);
                    self.after(nanos, Event::ReadDone(node, boot, conn, id, Box::new(job)));
                }
                Out::Scrub(conn, id, job) => {
                    let most = match self.stage.is_slow_to_look(node) {
                        true => 1_000 * MS,
                        false => MS,
                    };
                    let nanos = 20_000 + self.rng.below(most);
                    self.after(nanos, Event::ScrubDone(node, boot, conn, id, Box::new(job)));
                }
                Out::Close(conn, why) => {
                    self.say(|| format!("node {node} closes a connection: {why}"));
                    self.break_conn(conn.0);
                }
            }
        }
        self.drive_node(node);
        // What a daemon does with a region that trusts its disk no longer: it opens it anew.
        let replica = self.nodes[node].replica.as_ref();
        if replica.is_some_and(|r| r.failed().is_some()) {
            self.say(|| format!("node {node}: its region is poisoned and is opened anew"));
            self.stop_node(node);
            self.after(100 * MS, Event::Start(node));
        }
    }

    pub(super) fn drive_node(&mut self, node: usize) {
        let (boot, nanos) = (self.nodes[node].boot, self.nodes[node].sync_nanos);
        let Some(replica) = &mut self.nodes[node].replica else {
            return;
        };
        if let Some(job) = replica.begin_sync() {
            let ran = self.rng.one_in(2).then(|| job.run());
            self.nodes[node].sync = Some(SyncUnderWay { job, ran });
            let delay = 50_000 + self.rng.below(nanos);
            self.after(delay, Event::SyncDone(node, boot));
        }
        let Some(replica) = &mut self.nodes[node].replica else {
            return;
        };
        if let Some(job) = replica.begin_checkpoint() {
            self.nodes[node].checkpoint = Some(job);
            self.after(10_000, Event::Checkpoint(node, boot));
        }
    }

    pub(super) fn sync_done(&mut self, node: usize, boot: u64) {
        let until = self.nodes[node].paused_until;
        let Some(Event::SyncDone(..)) = self.put_off(until, Event::SyncDone(node, boot)) else {
            return;
        };
        if !self.boot_ok(node, boot) {
            return;
        }
        if !self.stage.may_pass(node) {
            return self.after(MS, Event::SyncDone(node, boot));
        }
        let Some(SyncUnderWay { job, ran }) = self.nodes[node].sync.take() else {
            return;
        };
        let result = ran.unwrap_or_else(|| job.run());
        if let Err(e) = &result {
            self.coverage.count("failed syncs");
            let e = e.to_string();
            self.say(|| format!("node {node}: {e}"));
        }
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.sync_done(job, result, &mut out);
        }
        self.perform(node, out);
    }

    pub(super) fn read_done(
        &mut self,
        node: usize,
        boot: u64,
        conn: ConnId,
        id: u64,
        job: Box<ReadJob>,
    ) {
        let until = self.nodes[node].paused_until;
        let event = Event::ReadDone(node, boot, conn, id, job);
        let Some(Event::ReadDone(.., job)) = self.put_off(until, event) else {
            return;
        };
        if !self.boot_ok(node, boot) {
            return;
        }
        let result = job.run();
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.read_done(conn, id, &job, result, &mut out);
        }
        self.perform(node, out);
    }

    pub(super) fn checkpoint_step(&mut self, node: usize, boot: u64) {
        use trivet_downstairs::checkpoint::Step;
        let until = self.nodes[node].paused_until;
        if self.put_off(until, Event::Checkpoint(node, boot)).is_none() {
            return;
        }
        if !self.boot_ok(node, boot) {
            return;
        }
        let Some(job) = &mut self.nodes[node].checkpoint else {
            return;
        };
        let step = job.step();
        if matches!(step, Ok(Step::More)) {
            let nanos = 50_000 + self.rng.below(2 * MS);
            self.after(nanos, Event::Checkpoint(node, boot));
            return;
        }
        let Some(job) = self.nodes[node].checkpoint.take() else {
            return;
        };
        self.coverage.count("checkpoints");
        let now = self.nodes[node].clock.now(self.time);
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.checkpoint_done(now, job, step, &mut out);
        }
        self.perform(node, out);
    }
}
