//! The ordered stream to each replica: entries, syncs, and what comes back.

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::frame::{Header, Kind};
use trivet_protocol::message::{DataState, Request, Welcome};
use trivet_protocol::{MemberId, Now, Seq};

use super::peer::Stream;
use super::{Ask, Effect, LinkId, Upstairs};
use bytes::Bytes;

use crate::VolumeError;

/// With less room than this in its pool a replica is asked for it, as often as this, while
/// nothing else is said.
const LOW_ROOM: u64 = 1 << 30;
const ASK_ROOM: std::time::Duration = std::time::Duration::from_secs(1);

impl Upstairs {
    /// Sends everything that is in memory and was not sent yet.
    pub(super) fn pump(&mut self, link: LinkId) {
        let (commit, trim) = (self.commit, self.trim_position());
        let generation = self.generation;
        let last = self.history.held_to().max(self.history.floor());
        let Some(peer) = self.peers.get_mut(link.index()) else {
            return;
        };
        if peer.stream != Stream::On || !peer.up {
            return;
        }
        while peer.sent < last {
            let next = peer.sent.next();
            let Some(mut out) = self.history.append_frame(next, generation) else {
                break;
            };
            out.frame.header.commit = commit;
            out.frame.header.trim = trim;
            peer.sent = next;
            peer.sent_bytes += out.frame.data_len() as u64;
            self.out.push(Effect::Send(link, out));
        }
    }

    pub(super) fn pump_all(&mut self) {
        for link in self.links() {
            self.pump(link);
        }
    }

    /// Asks every replica that flows to make everything durable.
    pub(super) fn request_sync(&mut self, now: Now) {
        self.last_sync = now;
        let last = self.last();
        if last > self.commit {
            self.pace.sync_asked(now, last);
        }
        for link in self.links() {
            self.sync_peer(link);
        }
    }

    /// One sync at a time and replica: what comes meanwhile shares the next one, which is asked
    /// for when this one is answered. So a batch costs each side one message, however many wait.
    pub(super) fn sync_peer(&mut self, link: LinkId) {
        let peer = self.peer_mut(link);
        if peer.stream != Stream::On || !peer.up || peer.sent <= peer.sync_sent {
            return;
        }
        if peer.sync_sent > peer.durable {
            peer.sync_wanted = true;
            return;
        }
        self.send_sync(link);
    }

    fn send_sync(&mut self, link: LinkId) {
        let peer = self.peer_mut(link);
        let upto = peer.sent;
        peer.sync_sent = upto;
        peer.sync_wanted = false;
        let header = self.header(Kind::Sync, upto.0);
        self.peer_mut(link).commit_told = header.commit;
        self.send(link, header, Bytes::new());
    }

    /// The undurable tail is bounded in time; and a replica with nothing left to sync hears how
    /// far all is committed, or it could never checkpoint the last entries.
    pub(super) fn tick_sync(&mut self, now: Now) {
        if now.since(self.last_sync) < self.config.limits.sync_interval {
            return;
        }
        self.request_sync(now);
        for link in self.links() {
            let peer = self.peer(link);
            let idle = peer.flows() && peer.sync_sent == peer.sent && peer.durable >= peer.sent;
            // Deletions give room back only with its next checkpoint: ask until it says so.
            let low = peer.room.0.saturating_sub(peer.sent_bytes) < LOW_ROOM
                && now.since(peer.room.1) >= ASK_ROOM;
            if idle && peer.sent > Seq::ZERO && (peer.commit_told < self.commit || low) {
                self.send_sync(link);
            }
        }
    }

    pub(super) fn on_durable(&mut self, now: Now, link: LinkId, header: &Header) {
        if header.generation != self.generation {
            return;
        }
        let upto = Seq(header.seq);
        let peer = self.peer_mut(link);
        peer.slow = false;
        peer.in_place = header.commit > Seq::ZERO;
        peer.credit = peer.credit.max(header.aux);
        peer.room = (header.aux, now);
        if peer.stream != Stream::On || upto > peer.sent {
            return;
        }
        // It waits for room in its log, and makes some: that is no standstill.
        if header.trim > Seq::ZERO {
            peer.progress = now;
        }
        if upto > peer.durable {
            peer.durable = upto;
            peer.progress = now;
            peer.told = None;
        }
        if self.peer(link).sync_wanted {
            self.sync_peer(link);
        }
        self.advance(now);
        self.leveled(now);
        self.consider_join(now, link);
    }

    /// Up to where every replica that still counts has everything durably: logs need no more than
    /// what comes after it. (What a log gives up must also be in its extents, hence committed:
    /// that is the replica's own business.)
    pub(super) fn trim_position(&self) -> Seq {
        let durable = |id: MemberId| self.link_of(id).map_or(Seq::ZERO, |l| self.peer(l).durable);
        match self.leveling_set() {
            Some(set) => set.iter().map(|id| durable(*id)).min(),
            None => self.all_sets().map(durable).min(),
        }
        .unwrap_or(Seq::ZERO)
    }

    /// Lets go of what nobody will need from memory: entries that every replica of the set, and
    /// every one that is being brought in, has durably. While somebody is away, as much is kept
    /// as the bound allows, so that a short absence costs no resync.
    pub(super) fn release_history(&mut self) {
        let counted: Vec<_> = self.all_sets().collect();
        let mut keep = self.commit;
        let mut away = false;
        for member in self.record.iter().flat_map(|r| r.replicas()) {
            let link = self.link_of(member.id);
            let flows = link.is_some_and(|l| self.peer(l).stream == Stream::On);
            away |= !flows;
            if counted.contains(&member.id) || flows {
                keep = keep.min(link.map_or(Seq::ZERO, |l| self.peer(l).durable));
            }
        }
        let budget = self.config.limits.retain_bytes / 2;
        while self.history.floor() < keep && (!away || self.history.bytes() > budget) {
            self.history.release(self.history.floor().next());
        }
    }

    /// A replica outside the set that hangs, though its connection stands, must not keep memory
    /// full (the volume would wait for it for ever): beyond the same bound as for one that is
    /// away its connection is given up, and it is brought back like any other later.
    pub(super) fn reset_hung(&mut self, now: Now) {
        if self.history.bytes() <= self.config.limits.retain_bytes / 2 {
            return;
        }
        let hung: Vec<LinkId> = self
            .links()
            .filter(|l| {
                let peer = self.peer(*l);
                let outside = |m: MemberId| self.all_sets().all(|counted| counted != m);
                let stalled = |m: MemberId| outside(m) && self.stalled(now, m).is_some();
                peer.stream == Stream::On && peer.member.is_some_and(stalled)
            })
            .collect();
        for link in hung {
            self.peer_mut(link).stream = Stream::Off;
            self.out.push(Effect::Reset(link));
            self.release_history();
            self.offer_room(now);
        }
    }

    /// Whether a replica of the set has no room for `bytes` more.
    pub(super) fn no_credit(&self, bytes: u64) -> Option<VolumeError> {
        for member in self.all_sets() {
            let Some(link) = self.link_of(member) else {
                continue;
            };
            let peer = self.peer(link);
            if peer.flows() && peer.sent_bytes + bytes > peer.credit {
                return Some(VolumeError::NoSpace(format!(
                    "the pool on node {} is full; free space there, or delete data",
                    peer.node
                )));
            }
        }
        None
    }

    /// Starts the stream to a replica that has accepted our claim, from where both histories
    /// part. False if its history cannot be brought in line from memory.
    pub(super) fn start_stream(&mut self, now: Now, link: LinkId, w: &Welcome) -> bool {
        if !matches!(w.data, DataState::Whole(_)) {
            return false;
        }
        let Some(common) = self.history.table().common(&w.table) else {
            return false;
        };
        if common < self.history.floor() || common < w.checkpointed {
            return false;
        }
        let durable = w.durable.seq.min(common);
        let end = w.table.end().seq;
        let peer = self.peer_mut(link);
        peer.sent = common;
        peer.sync_sent = Seq::ZERO;
        peer.durable = peer.durable.max(durable);
        peer.credit = w.credit;
        peer.room = (w.credit, now);
        peer.sent_bytes = 0;
        // Who trusts what was said before the claim believes that nothing follows.
        let trusting = breaks::on(Break::PositionsFromAsk) && common > Seq::ZERO;
        if end > common || trusting {
            peer.stream = Stream::Cutting(common);
            self.ask(now, link, Ask::Cut, &Request::Cut(common));
        } else {
            peer.stream = Stream::On;
            self.pump(link);
            self.force_sync(link);
        }
        true
    }

    pub(super) fn on_cut(&mut self, link: LinkId) {
        if let Stream::Cutting(_) = self.peer(link).stream {
            if self.peer(link).sent < self.history.floor() {
                // Memory let go meanwhile of what follows: the next tick begins a resync.
                self.peer_mut(link).stream = Stream::Off;
                return;
            }
            self.peer_mut(link).stream = Stream::On;
            self.pump(link);
            self.force_sync(link);
        }
    }

    /// A sync even where nothing was sent: what a replica has in its log from before this
    /// connection may not be durable yet.
    pub(super) fn force_sync(&mut self, link: LinkId) {
        let upto = self.peer(link).sent;
        self.peer_mut(link).sync_sent = Seq::ZERO;
        if upto > Seq::ZERO {
            self.sync_peer(link);
        }
    }
}
