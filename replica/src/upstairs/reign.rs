//! What happens when a member refuses our generation while we serve.
//!
//! A majority that promised to somebody else means that we are deposed: everything ends; and so
//! does a single one once our own lease has run out. Otherwise a
//! minority can only have been won by an attempt that came to nothing (invariant 1 gives it no
//! right to serve); but those members will take nothing from this generation ever again. So,
//! once such a member is there and has nothing else to wait for, we begin a *new reign*:
//! submissions wait, everything is made durable, the promises are handed back, and the same
//! upstairs claims the next number. Nothing completed is lost; callers see a short pause.

use trivet_protocol::breaks::{self, Break};
use trivet_protocol::{MemberId, Millis, Now};

use super::{LinkId, Notice, Upstairs};

/// How long a member must have been fencing us before a new reign is worth a pause.
const PATIENCE: Millis = Millis(1000);

impl Upstairs {
    pub(super) fn fenced_by(&mut self, now: Now, link: LinkId, holder: String, number: u64) {
        let peer = self.peer_mut(link);
        peer.fenced.get_or_insert(now);
        peer.granted = false;
        peer.lease_from = None;
        peer.stream = super::peer::Stream::Off;
        peer.refused = Some(format!("promised generation {number} to {holder}"));
        self.step_down_if_fenced(now);
    }

    /// Ends the reign if a majority promised to somebody else, or if our lease has run out and
    /// anybody did: to go on renewing at the rest would keep the other one from ever serving.
    pub(super) fn step_down_if_fenced(&mut self, now: Now) {
        let fenced = |id: MemberId| self.link_of(id).filter(|l| self.peer(*l).fenced.is_some());
        let Some(record) = &self.record else { return };
        let by: Vec<_> = record.members.iter().filter_map(|m| fenced(m.id)).collect();
        let Some(first) = by.first() else { return };
        let majority = by.len() > record.members.len() / 2;
        if (majority || !self.lease_valid(now)) && !breaks::on(Break::ReadAfterLease) {
            let refused = self.peer(*first).refused.clone();
            let why = refused.unwrap_or_else(|| "another generation was promised".into());
            // Nothing is answered from here on: whoever comes next need not wait for our promises.
            self.release_claims(now);
            self.notice(Notice::Deposed {
                holder: why.clone(),
            });
            self.stop(why);
        }
    }

    pub(super) fn tick_reign(&mut self, now: Now) {
        if !self.renewing {
            let due = |l: &LinkId| {
                let p = self.peer(*l);
                p.up && p
                    .fenced
                    .is_some_and(|t| now.since(t) >= PATIENCE.duration())
            };
            let Some(link) = self.links().find(due) else {
                return;
            };
            if !self.lease_valid(now) {
                return;
            }
            self.renewing = true;
            self.renewing_since = now;
            if let Some(because_of) = self.peer(link).member {
                self.notice(Notice::NewReign { because_of });
            }
        }
        // One replica in sync that has everything durably is enough, also one that fences us: the
        // next reign starts from the longest history, and stops if that is not ours. It may be
        // that no such replica will ever be: one fences us, and another is there but cannot be
        // continued from memory, and may not leave the set. Then, too, the next reign decides.
        let last = self.last();
        let kept = self.all_sets().any(|m| {
            self.link_of(m).is_some_and(|l| {
                let p = self.peer(l);
                p.up && (p.granted || p.fenced.is_some()) && p.durable >= last
            })
        });
        let waited = now.since(self.renewing_since) >= self.config.limits.lapse_patience;
        if self.is_active() && (waited || (kept && self.record_settled())) {
            self.activate_again(now);
        }
    }
}
