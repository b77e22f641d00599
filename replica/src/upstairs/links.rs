//! Links that come and go while the volume is served, and who answers on them.
//!
//! A link is a way to a node; who lives there is what its answers say. The same member may turn up
//! on another link (its region was moved), and another member on the same link (its region was
//! replaced): what was known of a member goes with the member, and what one made durable never
//! counts for another (invariant 3).
//!
//! Bounded: [`MAX_LINKS`]; the place of a link that was taken away is used again.

use trivet_protocol::limits::MAX_MEMBERS;
use trivet_protocol::message::Welcome;
use trivet_protocol::{MemberId, Now};

use super::peer::{LinkId, Peer};
use super::{Effect, Upstairs};

/// Links at once, at most: to every member, and to as many that are coming or going.
pub const MAX_LINKS: usize = 2 * MAX_MEMBERS;

impl Upstairs {
    /// One more way to a node, where `member` is to answer if that is known. `None` if there are
    /// [`MAX_LINKS`] already.
    pub fn add_link(&mut self, node: String, member: Option<MemberId>) -> Option<LinkId> {
        let mut peer = Peer::new(node);
        peer.expected = member;
        if let Some(free) = self.peers.iter().position(|p| p.retired) {
            self.peers[free] = peer;
            return Some(LinkId::from_index(free));
        }
        if self.peers.len() >= MAX_LINKS {
            return None;
        }
        self.peers.push(peer);
        Some(LinkId::from_index(self.peers.len() - 1))
    }

    /// Takes a link away: its connection is to be closed, and nothing is heard on it any more.
    pub fn retire_link(&mut self, now: Now, link: LinkId) {
        if self.peers.get(link.index()).is_none_or(|p| p.retired) {
            return;
        }
        self.link_down(now, link);
        if self.config.local == Some(link) {
            self.config.local = None;
        }
        let peer = self.peer_mut(link);
        *peer = Peer::new(std::mem::take(&mut peer.node));
        peer.retired = true;
        self.out.push(Effect::Reset(link));
    }

    /// The link on which this member answers or is to answer.
    pub fn link_to(&self, member: MemberId) -> Option<LinkId> {
        let expected = |l: &LinkId| self.peer(*l).expected == Some(member);
        self.link_of(member).or_else(|| self.links().find(expected))
    }

    /// Whether this member accepted our claim, and takes part.
    pub fn takes_part(&self, member: MemberId) -> bool {
        self.link_of(member).is_some_and(|l| self.peer(l).granted)
    }

    /// Whether this member stored the newest settled record, as far as it said so.
    pub fn has_record(&self, member: MemberId) -> bool {
        let newest = self.record.as_ref().map(|r| r.version);
        self.link_of(member)
            .is_some_and(|l| self.peer(l).recorded >= newest)
    }

    /// Why this member does not take part, if it said so.
    pub fn refusal_of(&self, member: MemberId) -> Option<String> {
        self.peer(self.link_to(member)?).refused.clone()
    }

    /// Whether the member of this link was removed, and knows it or has not been there for long.
    pub fn is_done_with(&self, link: LinkId) -> bool {
        let Some(peer) = self.peers.get(link.index()) else {
            return false;
        };
        let (Some(member), Some(record)) = (peer.member.or(peer.expected), &self.record) else {
            return false;
        };
        let told = !peer.up || self.has_record(member) || peer.refused.is_some();
        record.member(member).is_none() && self.record_settled() && told
    }

    /// Members that no link leads to, on nodes whose links all lead to somebody else: who, the
    /// node, and one of those links.
    pub fn unlinked(&self) -> Vec<(MemberId, String, LinkId)> {
        let members = self.record.iter().flat_map(|r| &r.members);
        let missing = members.filter(|m| self.link_to(m.id).is_none());
        let beside = |m: &trivet_protocol::MemberInfo| {
            let of_node: Vec<_> = self
                .links()
                .filter(|l| !self.peer(*l).retired && self.peer(*l).node == m.node)
                .collect();
            let all_taken = of_node.iter().all(|l| self.peer(*l).member.is_some());
            let first = of_node.first().copied().filter(|_| all_taken)?;
            Some((m.id, m.node.clone(), first))
        };
        missing.filter_map(beside).collect()
    }

    /// Another member lives where this one was: asks who, unless that is settled. True if it asked.
    pub(super) fn ask_who_is_there(&mut self, now: Now, link: LinkId) -> bool {
        let peer = self.peer_mut(link);
        if peer.expected.is_some() || peer.member.is_none() {
            return false;
        }
        peer.forget_member();
        self.hello(now, link);
        true
    }

    /// Notes who answered. False if that member is served by another link.
    pub(super) fn note_member(&mut self, link: LinkId, w: &Welcome) -> bool {
        let other = self
            .links()
            .find(|l| *l != link && self.peer(*l).member == Some(w.member));
        let Some(other) = other else {
            self.peer_mut(link).is_now(w.member);
            return true;
        };
        if self.peer(other).up {
            let node = self.peer(other).node.clone();
            let why = format!("the same member answers at {node}; one way to it is enough");
            self.peer_mut(link).forget_member();
            self.peer_mut(link).refused = Some(why.clone());
            self.tell_refused(link, why);
            return false;
        }
        // It moved. What it said is durable stays a promise, and what made it unusable stays true.
        let (durable, unusable) = (self.peer(other).durable, self.peer(other).unusable);
        self.peer_mut(other).forget_member();
        let peer = self.peer_mut(link);
        peer.is_now(w.member);
        (peer.durable, peer.unusable) = (durable, unusable);
        true
    }
}
