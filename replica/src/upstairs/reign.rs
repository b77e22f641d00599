//! What happens when a member refuses our generation while we serve.
//!
//! A majority that promised to somebody else means that we are deposed: everything ends. A
//! minority can only have been won by an attempt that came to nothing (invariant 1 gives it no
//! right to serve); but those members will take nothing from this generation ever again. So,
//! once such a member is there and has nothing else to wait for, we begin a *new reign*: submissions
//! wait, everything is made durable, the promises are handed back, and the same upstairs claims
//! the next number. Nothing completed is lost; callers see a short pause.

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
        let fenced = |id: MemberId| {
            self.link_of(id)
                .is_some_and(|l| self.peer(l).fenced.is_some())
        };
        let Some(record) = &self.record else { return };
        let heard = record
            .members
            .iter()
            .map(|m| m.id)
            .filter(|id| fenced(*id))
            .collect();
        if record.is_majority(&heard) && !breaks::on(Break::ReadAfterLease) {
            self.notice(Notice::Deposed {
                holder: holder.clone(),
            });
            self.stop(format!("{holder} took over in generation {number}"));
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
            if let Some(because_of) = self.peer(link).member {
                self.notice(Notice::NewReign { because_of });
            }
        }
        if self.commit == self.last() && self.record_settled() && self.is_active() {
            self.activate_again(now);
        }
    }
}
