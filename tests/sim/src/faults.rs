//! What goes wrong in a world, chosen by its seed.
//!
//! Harm that is for good (a lost disk, a restore from a backup, rot) befalls one node at most:
//! that is what the design promises to survive. Everything else befalls anybody, at any time.

use trivet_protocol::MemberKind;

use crate::world::{Event, MS, World};

impl World {
    pub fn fault(&mut self) {
        if self.healing {
            return;
        }
        let nanos = 50 * MS + self.rng.below(1_500 * MS);
        self.after(nanos, Event::Fault);
        let n = self.nodes.len() as u64;
        let node = self.rng.below(n) as usize;
        let up = self.rng.below(self.ups.len() as u64) as usize;
        match self.rng.below(25) {
            0 | 1 => self.crash_node(node),
            2 => self.kill_node(node),
            3 => self.pause_node(node),
            4 | 5 => self.pause_up(up),
            6 | 7 => self.kill_up(up),
            8 => {
                // A whole machine: its member and its upstairs.
                if node < self.ups.len() {
                    self.kill_up(node);
                }
                self.crash_node(node);
            }
            9 => {
                self.say(|| "power cut of every node".into());
                for i in 0..self.ups.len() {
                    self.kill_up(i);
                }
                for i in 0..self.nodes.len() {
                    self.crash_node(i);
                }
            }
            10 | 11 => self.cut_link(up, node),
            12 => self.cut_node(up),
            13 => {
                let open = self.open_conns();
                if !open.is_empty() {
                    let pick = self.rng.below(open.len() as u64) as usize;
                    self.break_conn(open[pick]);
                }
            }
            14 => {
                let slow = 20 * MS + self.rng.below(600 * MS);
                self.say(|| format!("node {node} has a slow disk"));
                self.nodes[node].sync_nanos = slow;
                let nanos = self.rng.below(4_000 * MS);
                self.after(nanos, Event::Fast(node));
            }
            15 => {
                let action = ["sync", "write", "read"][self.rng.below(3) as usize];
                let mut name = ["log", "e/", "head"][self.rng.below(3) as usize];
                if self.nodes[node].kind == MemberKind::Witness {
                    name = "state";
                }
                self.say(|| format!("node {node}: the next {action} on {name} fails"));
                self.reads_failed |= action == "read";
                self.nodes[node].disk.fail_next(action, name);
            }
            16 => {
                // A second promote, while somebody may be active.
                self.at(self.time, Event::Promote(up));
            }
            17 => {
                let snapshot = self.nodes[self.victim].disk.snapshot();
                self.nodes[self.victim]
                    .backup
                    .get_or_insert((self.time, snapshot));
            }
            18..=20 => self.late_claim(up),
            _ => self.harm(),
        }
    }

    fn crash_node(&mut self, node: usize) {
        self.say(|| format!("node {node} loses power"));
        self.count("power cuts of a node");
        self.stop_node(node);
        let seed = self.rng.draw();
        self.nodes[node].disk.crash(seed);
        self.restart(node);
    }

    fn kill_node(&mut self, node: usize) {
        self.say(|| format!("node {node}: its process is killed"));
        self.count("kills of a node");
        self.stop_node(node);
        self.restart(node);
    }

    fn restart(&mut self, node: usize) {
        let nanos = match self.rng.below(3) {
            0 => self.rng.below(20 * MS),
            1 => self.rng.below(600 * MS),
            _ => self.rng.below(5_000 * MS),
        };
        self.after(nanos, Event::Start(node));
    }

    fn pause_node(&mut self, node: usize) {
        let nanos = self.rng.below(4_000 * MS);
        self.say(|| format!("node {node} is stopped for {} ms", nanos / MS));
        self.nodes[node].paused_until = self.nodes[node].paused_until.max(self.time + nanos);
    }

    fn pause_up(&mut self, up: usize) {
        let nanos = self.rng.below(5_000 * MS);
        self.say(|| format!("up {up} is stopped for {} ms", nanos / MS));
        self.ups[up].paused_until = self.ups[up].paused_until.max(self.time + nanos);
        // Somebody else will try.
        let other = (up + 1) % self.ups.len();
        let nanos = self.rng.below(1_000 * MS);
        self.after(nanos, Event::Promote(other));
    }

    fn kill_up(&mut self, up: usize) {
        if self.ups[up].core.is_none() {
            return;
        }
        self.say(|| format!("up {up} is killed"));
        self.count("kills of an upstairs");
        self.stop_up(up);
        let next = self.rng.below(self.ups.len() as u64) as usize;
        let nanos = self.rng.below(1_000 * MS);
        self.after(nanos, Event::Promote(next));
    }

    fn cut_link(&mut self, up: usize, node: usize) {
        let directions = [true, self.rng.one_in(2)];
        let nanos = self.rng.below(4_000 * MS);
        let first = self.rng.below(2) as usize;
        self.say(|| format!("link up {up} - node {node} is cut for {} ms", nanos / MS));
        for (i, cut) in directions.into_iter().enumerate() {
            if cut {
                let direction = (first + i) % 2;
                self.cut[up][node][direction] = true;
                self.after(nanos, Event::Heal(up, node, direction));
            }
        }
    }

    /// Two try at once after the active one died, and the claim of the one arrives long after the
    /// other's reign began, perhaps after it ended.
    fn late_claim(&mut self, up: usize) {
        let nanos = 500 * MS + self.rng.below(4_000 * MS);
        self.say(|| format!("claims of up {up} arrive {} ms late", nanos / MS));
        for i in 0..self.ups.len() {
            self.stop_up(i);
        }
        // The last holder's lease runs out first.
        let free = 2_100 * MS;
        self.late_claims = Some((up, self.time + free + 400 * MS, nanos));
        self.at(self.time + free, Event::Promote(up));
        let other = (up + 1) % self.ups.len();
        let gap = free + self.rng.below(200 * MS);
        self.after(gap, Event::Promote(other));
        if self.rng.one_in(2) {
            // The other one dies later on, and its lease runs out.
            let inc = self.ups[other].incarnation + 1;
            let nanos = gap + 300 * MS + self.rng.below(2_000 * MS);
            self.after(nanos, Event::Gone(other, inc));
        }
    }

    /// A machine is cut off: its upstairs from the other members, its member from the others.
    fn cut_node(&mut self, which: usize) {
        let nanos = self.rng.below(5_000 * MS);
        self.say(|| format!("machine {which} is cut off for {} ms", nanos / MS));
        for other in 0..self.nodes.len() {
            if other == which {
                continue;
            }
            for direction in 0..2 {
                for (up, node) in [(which, other), (other, which)] {
                    if up >= self.ups.len() {
                        continue;
                    }
                    self.cut[up][node][direction] = true;
                    self.after(nanos, Event::Heal(up, node, direction));
                }
            }
        }
        let other = (which + 1) % self.ups.len();
        self.after(nanos / 2, Event::Promote(other));
    }

    /// Whether the newest record that anybody holds has this node's copy as the only one.
    fn is_alone(&self, node: usize) -> bool {
        let held = self.nodes.iter().filter_map(|n| n.replica.as_ref());
        let records = held.map(|r| &r.member().state().record);
        let newest = records.max_by_key(|r| r.version);
        newest.is_some_and(|r| r.in_sync.iter().eq([&self.nodes[node].id]))
    }

    /// Harm for good to the victim, once per world, in some worlds.
    fn harm(&mut self) {
        let node = self.victim;
        // Where members change, a set of two or one may be all that there is: harm to it is not to
        // be survived.
        let bearable = !self.changing || self.nodes[node].kind == MemberKind::Witness;
        let bearable = bearable && !self.is_alone(node);
        if self.harmed || !bearable || self.rng.one_in(2) {
            return;
        }
        match self.rng.below(4) {
            0 => {
                self.say(|| format!("node {node} loses its disk"));
                self.harmed = true;
                self.gone_for_good = true;
                self.stop_node(node);
                self.nodes[node].disk.wipe();
                self.nodes[node].disk.heal();
                self.nodes[node].lost = true;
                self.restart(node);
            }
            1 => {
                let Some((taken, backup)) = self.nodes[node].backup.take() else {
                    return;
                };
                if self.time < taken + 3_000 * MS {
                    return;
                }
                self.say(|| format!("node {node} is restored from a backup"));
                self.harmed = true;
                self.gone_for_good = true;
                self.stop_node(node);
                self.nodes[node].disk.restore(&backup);
                self.nodes[node].disk.crash(1);
                self.restart(node);
            }
            2 => {
                // Rot in the log while the machine is off.
                self.say(|| format!("node {node}: its log rots"));
                self.harmed = true;
                self.stop_node(node);
                let seed = self.rng.draw();
                self.nodes[node].disk.crash(seed);
                for _ in 0..1 + self.rng.below(40) {
                    let at = self.rng.below(512 * 1024);
                    self.nodes[node]
                        .disk
                        .flip("log", at, 1 << self.rng.below(8));
                }
                self.restart(node);
            }
            _ => {
                self.say(|| format!("node {node}: its extents rot"));
                self.harmed = true;
                let names: Vec<_> = self.nodes[node]
                    .disk
                    .names()
                    .into_iter()
                    .filter(|n| n.starts_with("e/"))
                    .collect();
                for name in names {
                    for _ in 0..self.rng.below(6) {
                        let at = self.rng.below(64 * 4096 + 4096);
                        self.nodes[node]
                            .disk
                            .flip(&name, at, 1 << self.rng.below(8));
                    }
                }
            }
        }
    }
}
