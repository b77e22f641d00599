//! Connections: ordered, delayed, cut, broken.

use super::*;

impl World {
    pub(super) fn connect(&mut self, up: usize, inc: u64, node: usize) {
        if self.ups[up].incarnation != inc || self.ups[up].core.is_none() {
            return;
        }
        if self.ups[up].links[node].is_some() {
            return;
        }
        let reachable = self.nodes[node].replica.is_some()
            && self.nodes[node].paused_until <= self.time
            && self.cut[up][node] == [false; 2];
        if !reachable {
            self.after(100 * MS, Event::Connect(up, inc, node));
            return;
        }
        let id = self.next_conn;
        self.next_conn += 1;
        let boot = self.nodes[node].boot;
        self.conns.insert(
            id,
            Conn {
                up,
                up_incarnation: inc,
                node,
                boot,
                open_up: true,
                open_node: true,
                broken: [false; 2],
                last: [self.time; 2],
            },
        );
        self.ups[up].links[node] = Some(id);
        self.nodes[node].conns.push(id);
        if let Some(r) = &mut self.nodes[node].replica {
            r.connected(ConnId(id));
        }
        self.with_up(up, |core, now| core.link_up(now, LinkId(node as u32)));
    }

    /// Sends in direction 0 (to the member) or 1 (to the upstairs), in order, with some delay.
    pub(super) fn send(&mut self, id: u64, direction: usize, frame: Frame) {
        if self.trace && std::env::var_os("SIM_FRAMES").is_some() {
            self.show_frame(id, direction, &frame);
        }
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        let lossy = self.cut[c.up][c.node][direction];
        if lossy && !c.broken[direction] {
            c.broken[direction] = true;
            // Retransmissions fail for a while, then both ends give up.
            let patience = 500 * MS + self.rng.below(4_000 * MS);
            let other = patience + self.rng.below(2_000 * MS);
            self.after(patience, Event::EndAtUp(id));
            self.after(other, Event::EndAtNode(id));
        }
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if c.broken[direction] {
            return;
        }
        let delay = match self.rng.below(100) {
            0 => self.rng.below(30 * MS),
            _ => 20_000 + self.rng.below(300_000),
        };
        let held_up = match self.late_claims {
            Some((up, until, nanos)) if up == c.up && self.time < until && is_claim(&frame) => {
                nanos
            }
            _ => 0,
        };
        let kept = self.stage.held_until(c.up, c.node, direction, &frame);
        let at = c.last[direction].max(self.time + delay + held_up).max(kept) + 1;
        c.last[direction] = at;
        let event = if direction == 0 {
            Event::ToMember(id, frame)
        } else {
            Event::ToUp(id, frame)
        };
        self.at(at, event);
    }

    /// Control messages in words, for people who look for why a world failed.
    pub(super) fn show_frame(&mut self, id: u64, direction: usize, frame: &Frame) {
        use trivet_protocol::message::{Reply, Request, decode};
        let Some((up, node)) = self.conns.get(&id).map(|c| (c.up, c.node)) else {
            return;
        };
        let text = match frame.header.kind {
            Kind::Request => format!("{:?}", decode::<Request>(&frame.meta)),
            Kind::Reply => format!("{:?}", decode::<Reply>(&frame.meta)),
            kind => format!("{kind:?} {}", frame.header.seq),
        };
        if text.contains("Renew") {
            return;
        }
        let arrow = if direction == 0 { "->" } else { "<-" };
        let text: String = text.chars().take(160).collect();
        let g = frame.header.generation;
        self.say(|| format!("    up {up} {arrow} node {node} {g:?}: {text}"));
    }

    /// A connection breaks: both ends notice, each in its own time; what is on its way may or may
    /// not arrive.
    pub fn break_conn(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if self.rng.one_in(2) {
            c.broken = [true; 2];
        }
        let (a, b) = (self.rng.below(50 * MS), self.rng.below(50 * MS));
        self.after(a, Event::EndAtUp(id));
        self.after(b, Event::EndAtNode(id));
    }

    /// Whether this upstairs has a connection to this node, or believes so.
    pub fn connected(&self, up: usize, node: usize) -> bool {
        self.ups[up].links[node].is_some()
    }

    pub fn open_conns(&self) -> Vec<u64> {
        self.conns
            .iter()
            .filter(|(_, c)| c.open_up)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn end_at_up(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if !c.open_up {
            return;
        }
        c.open_up = false;
        c.broken[1] = true;
        let (up, inc, node) = (c.up, c.up_incarnation, c.node);
        if self.ups[up].incarnation == inc && self.ups[up].links[node] == Some(id) {
            self.ups[up].links[node] = None;
            self.with_up(up, |core, now| core.link_down(now, LinkId(node as u32)));
            let nanos = 10 * MS + self.rng.below(100 * MS);
            self.after(nanos, Event::Connect(up, inc, node));
        }
        self.forget(id);
    }

    pub(super) fn end_at_node(&mut self, id: u64) {
        let Some(c) = self.conns.get_mut(&id) else {
            return;
        };
        if !c.open_node {
            return;
        }
        c.open_node = false;
        let (node, boot) = (c.node, c.boot);
        if self.boot_ok(node, boot) {
            self.nodes[node].conns.retain(|c| *c != id);
            if let Some(r) = &mut self.nodes[node].replica {
                r.disconnected(ConnId(id));
            }
        }
        self.forget(id);
    }

    pub(super) fn forget(&mut self, id: u64) {
        if self
            .conns
            .get(&id)
            .is_some_and(|c| !c.open_up && !c.open_node)
        {
            self.conns.remove(&id);
        }
    }

    pub(super) fn deliver_to_member(&mut self, id: u64, frame: Frame) {
        let Some(c) = self.conns.get(&id) else { return };
        let (node, boot, open) = (c.node, c.boot, c.open_node);
        let until = self.nodes[node].paused_until;
        let Some(Event::ToMember(_, frame)) = self.put_off(until, Event::ToMember(id, frame))
        else {
            return;
        };
        if !open || !self.boot_ok(node, boot) {
            return;
        }
        let now = self.nodes[node].clock.now(self.time);
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.frame(now, ConnId(id), frame, &mut out);
        }
        self.perform(node, out);
    }

    pub(super) fn deliver_to_up(&mut self, id: u64, frame: Frame) {
        let Some(c) = self.conns.get(&id) else { return };
        let (up, inc, node, open) = (c.up, c.up_incarnation, c.node, c.open_up);
        let until = self.ups[up].paused_until;
        let Some(Event::ToUp(_, frame)) = self.put_off(until, Event::ToUp(id, frame)) else {
            return;
        };
        if open && self.ups[up].incarnation == inc {
            self.with_up(up, |core, now| core.frame(now, LinkId(node as u32), frame));
        }
    }
}
