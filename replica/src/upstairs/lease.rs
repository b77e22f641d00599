//! The lease (invariant 2): for how long a majority of members promised that nobody else is
//! active.
//!
//! The holder counts each promise from the moment it *sent* the question, the member from receipt
//! and a margin longer, so the holder's view always ends first. A lease that ran out may be
//! renewed by the same generation if nobody has claimed; until then nothing is answered, and
//! after [`super::Limits::lapse_patience`] callers get an error.

use trivet_protocol::message::Request;
use trivet_protocol::{Millis, Now};

use super::{Ask, Effect, LinkId, Notice, Phase, Upstairs};

impl Upstairs {
    /// Until when the lease runs: the moment at which the promises still running stop being a
    /// majority. `None` if there was never a majority.
    pub fn lease_until(&self) -> Option<Now> {
        let record = self.record.as_ref()?;
        let mut from: Vec<Now> = record
            .members
            .iter()
            .filter_map(|m| self.promise_of(m.id))
            .collect();
        // A change of the member list needs promises of both majorities while it is under way.
        let needed = record.members.len() / 2 + 1;
        from.sort_unstable_by(|a, b| b.cmp(a));
        let settled = from.get(needed - 1).copied();
        let pending = match &self.pending {
            Some(p) if p.changes_members => {
                let mut from: Vec<Now> = p
                    .record
                    .members
                    .iter()
                    .filter_map(|m| self.promise_of(m.id))
                    .collect();
                from.sort_unstable_by(|a, b| b.cmp(a));
                Some(from.get(p.record.members.len() / 2).copied())
            }
            _ => None,
        };
        let start = match (settled, pending) {
            (s, None) => s,
            (s, Some(p)) => s.zip(p).map(|(s, p)| s.min(p)),
        };
        start.map(|t| t + record.lease.duration())
    }

    /// When the running promise of a member was asked for, if it counts.
    fn promise_of(&self, member: trivet_protocol::MemberId) -> Option<Now> {
        let link = self.link_of(member)?;
        self.votes(link).then_some(())?;
        self.peer(link).lease_from
    }

    /// Whether something may be acknowledged at this moment.
    pub fn lease_valid(&self, now: Now) -> bool {
        self.lease_until().is_some_and(|until| now < until)
    }

    pub(super) fn on_renewed(&mut self, now: Now, link: LinkId, sent: Now) {
        let peer = self.peer_mut(link);
        if !peer.granted {
            // The promise was handed back after the question was sent.
            return;
        }
        peer.lease_from = peer.lease_from.max(Some(sent));
        if self.lapsed_since.is_some() && self.lease_valid(now) {
            self.lapsed_since = None;
            self.notice(Notice::LeaseBack);
            let held = std::mem::take(&mut self.withheld);
            for effect in held {
                self.complete(now, effect);
            }
            self.offer_room(now);
        }
    }

    /// A seventh of the lease: several renewals may be lost before it runs out.
    fn renew_interval(&self) -> std::time::Duration {
        self.record
            .as_ref()
            .map_or(Millis(100), |r| Millis((r.lease.0 * 15 / 100).max(10)))
            .duration()
    }

    /// Asks for renewals when they are due, and does nothing else: for a thread that does nothing
    /// else either, however busy the one is that calls [`Upstairs::tick`].
    pub fn tick_renewals(&mut self, now: Now) {
        let holds = match &self.phase {
            Phase::Active => true,
            Phase::Activating(a) => a.holds_claim(),
            _ => false,
        };
        if !holds || now.since(self.last_renew) < self.renew_interval() {
            return;
        }
        self.last_renew = now;
        for link in self.links() {
            if self.peer(link).granted {
                self.ask(now, link, Ask::Renew, &Request::Renew);
            }
        }
        self.forget_lost_questions(now);
    }

    pub(super) fn tick_lease(&mut self, now: Now) {
        if !self.is_active() || self.lease_valid(now) {
            return;
        }
        self.step_down_if_fenced(now);
        let since = *self.lapsed_since.get_or_insert(now);
        if since == now {
            self.notice(Notice::LeaseLapsed);
        }
        if now.since(since) >= self.config.limits.lapse_patience {
            // Callers are answered with an error, once; the volume itself may come back.
            self.fail_waiting("the lease ran out and no majority of members answers");
        }
    }

    fn fail_waiting(&mut self, why: &str) {
        let error = crate::VolumeError::NotActive(why.into());
        for effect in std::mem::take(&mut self.withheld) {
            self.out.push(match effect {
                Effect::Flushed(wait, _) => Effect::Flushed(wait, Err(error.clone())),
                Effect::Read(wait, _) => Effect::Read(wait, Err(error.clone())),
                other => other,
            });
        }
        for wait in std::mem::take(&mut self.flushes).into_values().flatten() {
            self.out.push(Effect::Flushed(wait, Err(error.clone())));
        }
        for wait in self.reads.end() {
            self.out.push(Effect::Read(wait, Err(error.clone())));
        }
        self.scrub_reads_ended();
    }

    /// Renewals that were never answered must not pile up (invariant 10).
    fn forget_lost_questions(&mut self, now: Now) {
        let patience = self.config.limits.lapse_patience;
        self.asked
            .retain(|_, a| a.what != Ask::Renew || now.since(a.sent) < patience);
    }
}
