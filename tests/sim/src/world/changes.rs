//! Changes of the members, asked of whoever serves, at any moment: also in the middle of crashes,
//! cuts and takeovers.

use super::*;

/// What is to be changed.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The member that was made ready on this node comes in.
    Add { node: usize },
    /// This member goes.
    Remove { id: MemberId },
    /// The member that was made ready on this node takes the place of this one.
    Replace { old: MemberId, node: usize },
}

impl World {
    /// Asks for a change now and then.
    pub(super) fn nemesis(&mut self) {
        if self.healing {
            return;
        }
        let nanos = 100 * MS + self.rng.below(1_500 * MS);
        self.after(nanos, Event::Nemesis);
        let Some(record) = self.serving_record() else {
            return;
        };
        let replicas = record.replicas().count();
        let witnesses = record.members.len() - replicas;
        let pick = self.rng.below(record.members.len() as u64) as usize;
        let (old, kind) = (record.members[pick].id, record.members[pick].kind);
        let until = self.time + 500 * MS + self.rng.below(3_000 * MS);
        match self.rng.below(6) {
            0 if witnesses < 2 => self.add(MemberKind::Witness, &record, until),
            0 | 1 if replicas < 5 => self.add(MemberKind::Replica, &record, until),
            2 | 3 if kind == MemberKind::Witness || replicas > 2 => {
                self.change(Change::Remove { id: old }, until);
            }
            4 | 5 => {
                // On the very node where the old one lives, or on another.
                let same = self.nodes.iter().position(|n| n.id == old);
                let lost = same.filter(|n| self.nodes[*n].lost);
                if let Some(node) = lost.or_else(|| self.free_node()) {
                    self.make_ready(node, kind, &record);
                    self.change(Change::Replace { old, node }, until);
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, kind: MemberKind, record: &Record, until: u64) {
        if let Some(node) = self.free_node() {
            self.make_ready(node, kind, record);
            self.change(Change::Add { node }, until);
        }
    }

    fn serving(&self) -> Option<usize> {
        let active = |u: &Up| u.core.as_ref().is_some_and(Upstairs::is_active);
        let awake = |u: &Up| u.paused_until <= self.time && !u.leaving;
        self.ups.iter().position(|u| active(u) && awake(u))
    }

    fn serving_record(&self) -> Option<Record> {
        let up = self.serving()?;
        self.ups[up].core.as_ref()?.record().cloned()
    }

    /// A node where nobody lives, or one who was removed and knows it.
    fn free_node(&mut self) -> Option<usize> {
        let free: Vec<usize> = (0..self.nodes.len())
            .filter(|i| {
                let n = &self.nodes[*i];
                let removed = |r: &Replica| r.member().state().removed;
                n.spare || n.replica.as_ref().is_some_and(removed)
            })
            .collect();
        let pick = self.rng.below(free.len().max(1) as u64) as usize;
        free.get(pick).copied()
    }

    /// A fresh region or witness under a new identity, with a copy of the present record.
    fn make_ready(&mut self, node: usize, kind: MemberKind, record: &Record) {
        self.stop_node(node);
        let id = MemberId::from_bytes([self.next_member; 16]);
        self.next_member = self.next_member.wrapping_add(1);
        self.say(|| format!("a {kind:?} {id:?} is made ready on node {node}"));
        let n = &mut self.nodes[node];
        n.disk.wipe();
        n.disk.heal();
        create(&n.disk, id, kind, record);
        (n.id, n.kind, n.spare, n.lost, n.backup) = (id, kind, false, false, None);
        self.start_node(node);
    }

    /// Asks whoever serves for the change, again and again until it is begun or given up.
    pub(super) fn change(&mut self, change: Change, until: u64) {
        if self.time > until || self.healing {
            return;
        }
        if let Some(up) = self.serving() {
            let info = |node: usize| MemberInfo {
                id: self.nodes[node].id,
                node: format!("n{node}"),
                kind: self.nodes[node].kind,
                opens: 0,
                durable: Position::default(),
            };
            let (mut result, infos) = (Ok(()), (0..self.nodes.len()).map(info));
            let infos: Vec<_> = infos.collect();
            self.with_up(up, |core, now| {
                result = match change {
                    Change::Add { node } => core.add_member(now, infos[node].clone()),
                    Change::Remove { id } => core.remove_member(now, id),
                    Change::Replace { old, node } => {
                        core.replace_member(now, old, infos[node].clone())
                    }
                };
            });
            self.say(|| format!("{change:?}: {result:?}"));
            if result.is_ok() {
                return;
            }
        }
        let nanos = 20 * MS + self.rng.below(200 * MS);
        self.after(nanos, Event::Change(change, until));
    }

    /// Whether this member could be in sync at the end: it runs, and was not harmed for good.
    pub(super) fn can_be_whole(&self, id: MemberId) -> bool {
        self.nodes.iter().enumerate().any(|(i, n)| {
            let harmed = self.gone_for_good && i == self.victim && id.bytes()[0] < 0x80;
            n.id == id && !n.lost && !harmed
        })
    }
}
