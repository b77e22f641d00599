//! Leveling: the chosen history is made durable on every replica of the new set, and a record of
//! the new reign is settled.

use super::*;

impl Upstairs {
    pub(in crate::upstairs) fn level(
        &mut self,
        now: Now,
        mut record: Record,
        good: Vec<(LinkId, Welcome)>,
        lossy: bool,
    ) {
        let local = self.config.local;
        let best = good
            .iter()
            .max_by_key(|(l, w)| (w.table.end(), Some(*l) == local))
            .cloned();
        let Some((best, w)) = best else { return };
        let table = w.table.clone();
        if self.renewing && table != *self.history.table() {
            // Somebody served and wrote between our two reigns: what is cached above is stale.
            return self.stop("another node served meanwhile; promote it here again".into());
        }
        // Who can be brought to the chosen history from the best one's log stays in the set.
        let fits = |other: &Welcome| {
            let common = table.common(&other.table)?;
            let in_log = common == table.end().seq || common.next() >= w.log_first;
            (in_log && common >= other.checkpointed).then_some(common)
        };
        let chosen: Vec<_> = good
            .iter()
            .filter_map(|(l, w)| Some((*l, w.clone(), fits(w)?)))
            .collect();
        if lossy {
            record.losses += 1;
        }
        let lowest = chosen.iter().map(|c| c.2).min().unwrap_or(table.end().seq);
        self.scarce.forget();
        self.history = History::adopt(table, lowest);
        self.commit = Seq::ZERO;
        self.record = Some(record);
        self.pending = None;
        let set: BTreeSet<_> = chosen.iter().map(|(_, w, _)| w.member).collect();
        let commons = chosen.iter().map(|(_, w, common)| (w.member, *common));
        let commons = commons.collect();
        self.note_rolled_back();
        for peer in &mut self.peers {
            // What was said to be durable in an earlier attempt's history is not what counts now.
            (peer.durable, peer.sync_sent) = (Seq::ZERO, Seq::ZERO);
        }
        for (link, w, _) in &chosen {
            self.start_stream(now, *link, w);
        }
        let fetched = self.history.held_to() >= self.history.last();
        if let Some(step) = self.step() {
            *step = Step::Leveling {
                since: now,
                best,
                set,
                commons,
                fetched,
            };
        }
        if fetched {
            self.leveled(now);
        } else {
            self.fetch_more(now, best);
        }
    }

    pub(in crate::upstairs) fn fetch_more(&mut self, now: Now, best: LinkId) {
        let from = self.history.held_to().next();
        self.ask(
            now,
            best,
            Ask::Fetch,
            &Request::Fetch {
                from,
                max_bytes: FETCH_BYTES,
            },
        );
    }

    pub(in crate::upstairs) fn on_log_entry(&mut self, now: Now, link: LinkId, frame: Frame) {
        let Some(Step::Leveling { best, .. }) = self.step() else {
            return;
        };
        if *best != link {
            return;
        }
        let blocks = self.record.as_ref().map_or(0, |r| r.blocks);
        let (seq, generation) = (Seq(frame.header.seq), frame.header.aux);
        let data = frame.contiguous_data();
        match Entry::decode(seq, generation, &frame.meta, data, blocks) {
            Ok(entry) => {
                if !self.history.fetched(entry) {
                    self.start_over(now);
                }
            }
            Err(e) => self.refuse_link(link, format!("a log entry is malformed: {e}")),
        }
    }

    pub(in crate::upstairs) fn on_fetched(&mut self, now: Now, link: LinkId) {
        let complete = self.history.held_to() >= self.history.last();
        let Some(Step::Leveling {
            best,
            fetched,
            since,
            ..
        }) = self.step()
        else {
            return;
        };
        if *best != link {
            return;
        }
        *since = now;
        if complete {
            *fetched = true;
            self.pump_all();
            self.request_sync(now);
            self.leveled(now);
        } else {
            self.pump_all();
            self.fetch_more(now, link);
        }
    }

    /// The best log has an entry no longer (one that was written in place and overwritten since):
    /// replicas that need it are left out of the new set and resynced later. The history itself is
    /// whole on the others, and they are still the best n-w+1 that were heard.
    pub(in crate::upstairs) fn level_without_laggards(&mut self, now: Now, link: LinkId) {
        let missing = self.history.held_to().next();
        let table = self.history.table().clone();
        let Some(Step::Leveling {
            since,
            best,
            set,
            commons,
            fetched,
        }) = self.step()
        else {
            return;
        };
        if *best != link {
            return;
        }
        *since = now;
        commons.retain(|_, common| *common >= missing);
        let dropped: Vec<MemberId> = set
            .iter()
            .filter(|m| !commons.contains_key(m))
            .copied()
            .collect();
        set.retain(|m| commons.contains_key(m));
        let lowest = commons.values().min().copied().unwrap_or(table.end().seq);
        *fetched = lowest >= table.end().seq;
        let fetched = *fetched;
        // Nothing was sent yet to those that stay: what they lack comes after what was fetched.
        self.history = History::adopt(table, lowest);
        for member in dropped {
            if let Some(link) = self.link_of(member) {
                self.peer_mut(link).stream = Stream::Off;
            }
        }
        if fetched {
            self.leveled(now);
        } else {
            self.fetch_more(now, link);
        }
    }

    /// The replicas that are being brought to the chosen history.
    pub(in crate::upstairs) fn leveling_set(&self) -> Option<&BTreeSet<MemberId>> {
        match &self.phase {
            Phase::Activating(Activation {
                step: Step::Leveling { set, .. },
                ..
            }) => Some(set),
            _ => None,
        }
    }

    /// Called whenever a replica became durable further: is the new set level?
    pub(in crate::upstairs) fn leveled(&mut self, now: Now) {
        if self.leveling_set().is_some() {
            // What a write quorum of the recorded set has durably is committed, and is said so with
            // the next renewal: a log that is full of it has to be emptied to take the rest.
            self.commit = self.commit.max(self.durable_position());
        }
        let last = self.history.last();
        let Phase::Activating(Activation {
            step: Step::Leveling { set, fetched, .. },
            ..
        }) = &self.phase
        else {
            return;
        };
        let level = |id: &MemberId| {
            self.link_of(*id).is_some_and(|l| {
                let p = self.peer(l);
                p.up && p.stream == Stream::On && p.durable >= last
            })
        };
        if !*fetched || !set.iter().all(level) {
            return;
        }
        let set = set.clone();
        self.settle(now, set);
    }

    pub(in crate::upstairs) fn settle(&mut self, now: Now, set: BTreeSet<MemberId>) {
        self.commit = self.history.last();
        let Some(mut record) = self.record.clone() else {
            return;
        };
        record.in_sync = set;
        record.version = RecordVersion {
            generation: self.generation.number,
            number: 0,
        };
        if let Some(step) = self.step() {
            *step = Step::Settling { since: now };
        }
        self.propose(now, record, None);
    }

    /// The record is settled: serve.
    pub(in crate::upstairs) fn activated(&mut self, now: Now) {
        self.phase = Phase::Active;
        self.renewing = false;
        self.lapsed_since = None;
        self.serving_since = now;
        self.last_sync = now;
        self.pace.begin(now, self.commit);
        for peer in &mut self.peers {
            peer.progress = now;
        }
        let in_sync = self
            .record
            .iter()
            .flat_map(|r| r.in_sync.iter().copied())
            .collect();
        self.notice(Notice::Activated {
            generation: self.generation.number,
            in_sync,
        });
        self.out.push(Effect::Activated(Ok(self.generation)));
        for effect in std::mem::take(&mut self.withheld) {
            self.complete(now, effect);
        }
        // Replicas that accepted the claim but are not in the set are brought in now.
        let rest: Vec<_> = self
            .links()
            .filter(|l| self.peer(*l).granted && self.peer(*l).stream == Stream::Off)
            .filter_map(|l| Some((l, self.peer(l).welcome.as_ref()?.1.clone())))
            .collect();
        for (link, w) in rest {
            self.integrate(now, link, &w);
        }
    }

    /// When this reign began to serve, as far as stall bounds care.
    pub(in crate::upstairs) fn active_since(&self) -> Now {
        self.peers.iter().map(|p| p.since).min().unwrap_or_default()
    }
}
