//! The upstairs: promotion, effects, ends.

use super::*;

impl World {
    /// A new upstairs tries to become active here.
    pub(super) fn promote(&mut self, up: usize) {
        if self.ups[up].core.is_some() || self.ups[up].paused_until > self.time {
            self.after(500 * MS, Event::Promote(up));
            return;
        }
        let u = &mut self.ups[up];
        u.incarnation += 1;
        u.links = vec![None; self.nodes.len()];
        u.waits.clear();
        u.parked = None;
        u.leaving = false;
        let limits = Limits {
            retain_bytes: 160 * 1024,
            window_bytes: 80 * 1024,
            record_refresh: Duration::from_millis(500),
            ..Limits::default()
        };
        let links = (0..self.nodes.len()).map(|i| format!("n{i}")).collect();
        let config = Config {
            volume: self.volume,
            node: format!("n{up}"),
            links,
            local: Some(LinkId(up as u32)),
            limits,
        };
        u.core = Some(Upstairs::new(config));
        let inc = u.incarnation;
        let options = ActivateOptions {
            claim: u128::from(self.rng.draw()) << 64 | u128::from(self.rng.draw()),
            wait_for_lease: self.rng.one_in(2) || self.healing || self.stage.story.is_some(),
            patience: Duration::from_millis(4_000),
            // After a power cut that left a torn record, with a disk lost for good, only people can
            // say that what was torn is not missed. Here it is not: nothing rots in such a world.
            accept_data_loss: self.time > self.faults_end + 8_000 * MS && self.harmed,
        };
        self.say(|| format!("up {up} is promoted"));
        self.with_up(up, |core, now| core.activate(now, options));
        for node in 0..self.nodes.len() {
            let nanos = self.rng.below(20 * MS);
            self.after(nanos, Event::Connect(up, inc, node));
        }
        self.after(5 * MS, Event::Tick(up, inc));
    }

    /// The process ends.
    pub fn stop_up(&mut self, up: usize) {
        if self.ups[up].core.take().is_none() {
            return;
        }
        self.ups[up].incarnation += 1;
        let links = std::mem::take(&mut self.ups[up].links);
        self.ups[up].links = vec![None; self.nodes.len()];
        for conn in links.into_iter().flatten() {
            self.break_conn(conn);
        }
    }

    pub(super) fn tick(&mut self, up: usize, inc: u64) {
        if self.ups[up].incarnation != inc || self.ups[up].core.is_none() {
            return;
        }
        let until = self.ups[up].paused_until;
        if self.put_off(until, Event::Tick(up, inc)).is_none() {
            return;
        }
        self.with_up(up, |core, now| core.tick(now));
        self.after(5 * MS, Event::Tick(up, inc));
    }

    pub(super) fn with_up(&mut self, up: usize, f: impl FnOnce(&mut Upstairs, Now)) {
        let now = self.ups[up].clock.now(self.time);
        let Some(core) = &mut self.ups[up].core else {
            return;
        };
        f(core, now);
        self.effects(up);
    }

    pub(super) fn effects(&mut self, up: usize) {
        loop {
            let Some(core) = &mut self.ups[up].core else {
                return;
            };
            let effects: Vec<Effect> = core.effects().collect();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.effect(up, effect);
            }
        }
    }

    pub(super) fn effect(&mut self, up: usize, effect: Effect) {
        let generation = self.ups[up]
            .core
            .as_ref()
            .map_or(0, |c| c.generation().number);
        match effect {
            Effect::Send(link, out) | Effect::Renew(link, out) => {
                if let Some(conn) = self.ups[up].links[link.index()] {
                    self.send(conn, 0, out.frame);
                }
            }
            Effect::Reset(link) => {
                if let Some(conn) = self.ups[up].links[link.index()] {
                    self.break_conn(conn);
                }
            }
            Effect::Verify(v) => {
                let good = v.check(self.volume);
                let now = self.ups[up].clock.now(self.time);
                if let Some(core) = &mut self.ups[up].core {
                    core.verified(now, v, good);
                }
            }
            Effect::Room => self.try_parked(up),
            Effect::Flushed(wait, Ok(receipt)) => {
                let table = self.ups[up].core.as_ref().map(|c| c.table().clone());
                if let Some(table) = table {
                    let upto = receipt.upto().0;
                    let result = self.model.durable(generation, &table, upto);
                    self.check(result);
                }
                if let Some(Wait::LeaveFlush) = self.ups[up].waits.remove(&wait) {
                    self.say(|| format!("up {up} hands back"));
                    let now = self.ups[up].clock.now(self.time);
                    if let Some(core) = &mut self.ups[up].core {
                        core.hand_back(now);
                    }
                    self.after_leaving(up);
                }
            }
            Effect::Flushed(wait, Err(_)) => {
                self.ups[up].waits.remove(&wait);
            }
            Effect::Read(wait, result) => self.read_answer(up, generation, wait, result),
            Effect::Activated(result) => {
                let text = format!("{result:?}");
                self.say(|| format!("up {up}: {text}"));
                match result {
                    Ok(_) => {
                        self.activated(up, generation);
                        self.scrub_later(up);
                    }
                    Err(_) => {
                        self.count("claims refused");
                        self.gone(up);
                    }
                }
            }
            Effect::Notice(n) => {
                self.say(|| format!("up {up}: {n:?}"));
                self.coverage.noticed(&n);
                if let trivet_replica::upstairs::Notice::ScrubFound(finding) = &n {
                    self.found_by_scrub(finding);
                }
                if matches!(n, trivet_replica::upstairs::Notice::Deposed { .. }) {
                    self.gone(up);
                }
            }
        }
    }

    /// For people who look for why a world failed.
    pub(super) fn describe_nodes(&self) {
        let shown = self.nodes.iter().enumerate().filter(|_| self.trace);
        for (i, n) in shown {
            if let Some(r) = &n.replica {
                println!("node {i}: {}", r.describe());
            }
        }
    }

    pub(super) fn after_leaving(&mut self, up: usize) {
        // The process lives on for a moment, until the members have heard.
        let nanos = 50 * MS;
        self.ups[up].leaving = true;
        let inc = self.ups[up].incarnation;
        self.after(nanos, Event::Gone(up, inc));
        if self.stage.story.is_some() {
            // A story says itself who is next.
            return;
        }
        let next = self.rng.below(self.ups.len() as u64) as usize;
        self.after(nanos, Event::Promote(next));
    }

    pub(super) fn gone(&mut self, up: usize) {
        // The process lives on for a moment: what it hands back gets out.
        let inc = self.ups[up].incarnation;
        self.ups[up].leaving = true;
        self.after(50 * MS, Event::Gone(up, inc));
        let next = self.rng.below(self.ups.len() as u64) as usize;
        let nanos = 100 * MS + self.rng.below(500 * MS);
        self.after(nanos, Event::Promote(next));
    }

    pub(super) fn activated(&mut self, up: usize, generation: u64) {
        let Some(core) = &self.ups[up].core else {
            return;
        };
        let table = core.table().clone();
        match self.model.activated(generation, &table, BLOCKS) {
            Ok(content) => {
                let inc = self.ups[up].incarnation;
                let end = table.end().seq;
                if self.ups[up].client == inc {
                    self.ups[up].versions.go_on(&content, end);
                } else {
                    self.ups[up].versions = Versions::new(&content, end);
                    self.ups[up].client = inc;
                    self.after(MS, Event::Client(up, inc));
                }
                self.ups[up].content = content;
            }
            Err(why) => self.check(Err(why)),
        }
    }
}
