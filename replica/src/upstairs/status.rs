//! How the volume is, for people and programs.

use trivet_protocol::message::DataState;
use trivet_protocol::{MemberId, MemberKind, Millis, Now, Seq};

use super::{LinkId, Phase, ResyncStatus, ScrubStatus, Upstairs};

/// One member, as the active upstairs sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Identity.
    pub id: MemberId,
    /// Name of its node.
    pub node: String,
    /// Replica or witness.
    pub kind: MemberKind,
    /// In the in-sync set.
    pub in_sync: bool,
    /// A connection stands.
    pub up: bool,
    /// State of its data, if it was heard.
    pub data: Option<DataState>,
    /// Durable up to here.
    pub durable: Seq,
    /// Why it is not used, if it is not.
    pub trouble: Option<String>,
    /// Progress of its resync.
    pub resync: Option<ResyncStatus>,
    /// Bytes free in its pool.
    pub pool_free: u64,
}

/// The volume, as its active upstairs sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// It serves.
    pub active: bool,
    /// Number of its generation.
    pub generation: u64,
    /// How long the lease still runs.
    pub lease_left: Millis,
    /// End of the history.
    pub last: Seq,
    /// Durable up to here.
    pub commit: Seq,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
    /// Members, in the record's order.
    pub members: Vec<MemberStatus>,
    /// Replicas that can be lost now without losing data or service.
    pub failures_tolerated: usize,
    /// It runs on a node without a replica of its own.
    pub diskless: bool,
    /// Who is being replaced by whom.
    pub replacing: Option<(MemberId, MemberId)>,
    /// The scrub of this reign that goes on, or the one that ended last.
    pub scrub: Option<ScrubStatus>,
    /// What people must know without asking: one line each.
    pub warnings: Vec<String>,
}

impl Upstairs {
    /// Who was found at a link's end, once its connection stands and it answered.
    pub fn member_at(&self, link: LinkId) -> Option<MemberId> {
        let peer = self.peers.get(link.index())?;
        peer.welcome.as_ref().filter(|_| peer.up)?;
        peer.member
    }

    /// See [`Status`].
    pub fn status(&self, now: Now) -> Status {
        let members: Vec<MemberStatus> = self
            .record
            .iter()
            .flat_map(|r| r.members.iter().map(move |m| (r, m)))
            .map(|(r, m)| {
                let link = self.link_of(m.id);
                let peer = link.map(|l| self.peer(l));
                MemberStatus {
                    id: m.id,
                    node: m.node.clone(),
                    kind: m.kind,
                    in_sync: r.in_sync.contains(&m.id),
                    up: peer.is_some_and(|p| p.up),
                    data: peer.and_then(super::peer::Peer::data),
                    durable: peer.map(|p| p.durable).unwrap_or_default(),
                    trouble: peer
                        .and_then(|p| p.unusable.map(str::to_owned).or_else(|| p.refused.clone())),
                    resync: link.and_then(|l| self.resync_status(now, l)),
                    pool_free: peer
                        .and_then(|p| p.welcome.as_ref())
                        .map_or(0, |(_, w)| w.pool_free),
                }
            })
            .collect();
        let alive = members.iter().filter(|m| m.in_sync && m.up).count();
        let voters = members.iter().filter(|m| m.up).count();
        let least = self
            .record
            .as_ref()
            .map_or(1, |r| usize::from(r.min_copies));
        let by_votes = voters.saturating_sub(members.len() / 2 + 1);
        Status {
            active: self.is_active(),
            generation: self.generation.number,
            lease_left: self
                .lease_until()
                .map_or(Millis(0), |until| now.until(until)),
            last: self.last(),
            commit: self.commit,
            stopped: match &self.phase {
                Phase::Stopped(why) => Some(why.clone()),
                _ => None,
            },
            failures_tolerated: alive.saturating_sub(least).min(by_votes),
            diskless: self.config.local.is_none(),
            replacing: self.replacing,
            scrub: self.scrub_status(now),
            warnings: self.warnings(now),
            members,
        }
    }

    fn warnings(&self, now: Now) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(record) = self.record.as_ref().filter(|_| self.is_active()) else {
            return lines;
        };
        if self.below_policy() {
            lines.push(format!(
                "{} in sync, and {} copies are asked for: no flush is answered until another \
                 replica has caught up",
                copies(record.in_sync.len()),
                record.min_copies
            ));
        } else if record.in_sync.len() == 1 {
            lines.push(
                "only one copy is in sync: losing it loses data; bring another replica back, or \
                 replace it"
                    .to_owned(),
            );
        }
        if !self.lease_valid(now) {
            lines.push("no lease from a majority of members: nothing is answered".to_owned());
        }
        lines
    }

    /// What a read from this node's own replica must reflect, if that replica may be read now.
    /// `member` is who that is: another one may have come to live on the same node.
    pub fn local_reads_from(&self, now: Now, member: MemberId) -> Option<Seq> {
        let link = self.config.local?;
        // One that is slow (a disk that hangs, say) is left alone, as by reads from elsewhere.
        let ours = self.peer(link).member == Some(member) && !self.peer(link).slow;
        let good = ours && self.is_active() && self.lease_valid(now) && self.readable(link);
        good.then(|| self.last())
    }

    /// Free bytes and size of the smallest pool beneath the in-sync set.
    pub fn space(&self) -> (u64, u64) {
        let pools = || {
            self.all_sets()
                .map(|m| self.link_of(m).map(|l| self.peer(l)))
                .filter_map(|peer| {
                    let (peer, (_, w)) = (peer?, peer?.welcome.as_ref()?);
                    let free = match peer.flows() {
                        true => peer.room.0.saturating_sub(peer.sent_bytes),
                        false => w.pool_free,
                    };
                    Some((free, w.pool_size))
                })
        };
        (
            pools().map(|p| p.0).min().unwrap_or(0),
            pools().map(|p| p.1).min().unwrap_or(0),
        )
    }

    /// How long callers are kept waiting.
    pub fn lapse_patience(&self) -> std::time::Duration {
        self.config.limits.lapse_patience
    }
}

fn copies(n: usize) -> String {
    match n {
        1 => "only one copy is".to_owned(),
        n => format!("{n} copies are"),
    }
}
