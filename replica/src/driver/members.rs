//! Members that come and go while the volume is served, as a node's daemon asks for it.
//!
//! The one who asks mints the identity, has the region or witness made ready where it is to live
//! (see `trivet_cluster::Joining`), and then calls in here. Each call waits until its record is
//! settled; a resync goes on by itself afterwards and shows in the status.
//!
//! A crash in the middle leaves a record that is settled or not: whoever is active next finds out,
//! and the same call made again goes on from there. One that was made ready and never added is no
//! member, and can be thrown away.
//!
//! Bounds: [`ANSWER`] for a new member to answer, [`SETTLE`] for a record to be settled.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use trivet_protocol::{MemberId, MemberInfo, MemberKind, Now, Position};

use super::ways::Way;
use super::{ReplicatedVolume, TICK};
use crate::upstairs::{ChangeError, LinkId, MAX_LINKS, Upstairs};

/// A new member must answer within this time.
const ANSWER: Duration = Duration::from_secs(10);
/// A change must be begun, and then settled, within this time each.
const SETTLE: Duration = Duration::from_secs(10);
/// One that was removed is given this long to store it.
const TOLD: Duration = Duration::from_secs(2);

/// A region or witness that was made ready to come in.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// Its identity.
    pub id: MemberId,
    /// Name of its node.
    pub node: String,
    /// Where the node is reached, the replication network first.
    pub addresses: Vec<SocketAddr>,
}

/// Why the members are as they were, or are not known to be otherwise. Wording is stable.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A rule, or another change.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The new member does not answer.
    #[error(
        "the new member {id} on node {node} does not answer at {addresses:?} within {} s{why}; \
         is it made ready and served there?",
        ANSWER.as_secs()
    )]
    NoAnswer {
        /// Who.
        id: MemberId,
        /// On which node.
        node: String,
        /// Where it was looked for.
        addresses: Vec<SocketAddr>,
        /// What was heard instead, with a colon before it; or nothing.
        why: String,
    },
    /// The record was sent and is not stored by enough members.
    #[error(
        "the change was sent to the members but is not settled after {} s; it may still be: look \
         at the volume's status before anything else",
        SETTLE.as_secs()
    )]
    NotSettled,
    /// No more links.
    #[error("there are {MAX_LINKS} links to members already; remove a member first")]
    TooMany,
    /// No thread for a link.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl ReplicatedVolume {
    /// Adds a replica: it comes in outside the set, is resynced, and joins by itself.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn add_replica(&self, new: &NewMember) -> Result<(), MemberError> {
        self.add(new, MemberKind::Replica)
    }

    /// Adds a witness.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn add_witness(&self, new: &NewMember) -> Result<(), MemberError> {
        self.add(new, MemberKind::Witness)
    }

    fn add(&self, new: &NewMember, kind: MemberKind) -> Result<(), MemberError> {
        let info = info(new, kind);
        self.bring_in(new, |u, now| u.add_member(now, info.clone()))
    }

    /// Puts `new` in the place of `old`, which may be dead. Returns once `new` is a member; when
    /// it is level, one record swaps it in and takes `old` out ([`Upstairs::replacing`]).
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn replace_member(&self, old: MemberId, new: &NewMember) -> Result<(), MemberError> {
        let kind = self.with(|u, _| u.record().and_then(|r| r.member(old)).map(|m| m.kind));
        let info = info(new, kind.unwrap_or(MemberKind::Replica));
        self.bring_in(new, |u, now| u.replace_member(now, old, info.clone()))
    }

    fn bring_in(
        &self,
        new: &NewMember,
        change: impl Fn(&mut Upstairs, Now) -> Result<(), ChangeError>,
    ) -> Result<(), MemberError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = self.link_for(new)?;
        let done = self.answer_of(new).and_then(|()| {
            self.begin(&change)?;
            self.settle(|u| u.record().is_some_and(|r| r.member(new.id).is_some()))
        });
        if let Some(link) = opened {
            match (&done, self.inner.way(link)) {
                // It may yet be settled: then its link is needed.
                (Ok(()) | Err(MemberError::NotSettled), Some(way)) => way.let_go(),
                _ => self.inner.close_way(link),
            }
        }
        done
    }

    /// Removes a member. It is told, if it can be reached; one that cannot learns it when it comes
    /// back.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn remove_member(&self, id: MemberId) -> Result<(), MemberError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin(&|u: &mut Upstairs, now| u.remove_member(now, id))?;
        self.settle(|u| u.record().is_some_and(|r| r.member(id).is_none()))?;
        // Its link goes, if it came for it, when it knows; see `ways`.
        let deadline = Instant::now() + TOLD;
        while Instant::now() < deadline && self.with(|u, _| u.takes_part(id) && !u.has_record(id)) {
            thread::park_timeout(TICK);
        }
        Ok(())
    }

    /// Notes that the node of a member is called something else: a volume of one machine is taken
    /// into a cluster.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn rename_node(&self, id: MemberId, node: &str) -> Result<(), MemberError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin(&|u: &mut Upstairs, now| u.rename_node(now, id, node))?;
        let named = |u: &Upstairs| {
            let member = u.record().and_then(|r| r.member(id));
            member.is_some_and(|m| m.node == node)
        };
        self.settle(named)
    }

    /// A link to the new member: the one that there is, or a new one (returned).
    fn link_for(&self, new: &NewMember) -> Result<Option<LinkId>, MemberError> {
        if self.with(|u, _| u.link_to(new.id)).is_some() {
            return Ok(None);
        }
        let link = self.with(|u, _| u.add_link(new.node.clone(), Some(new.id)));
        let link = link.ok_or(MemberError::TooMany)?;
        let way = Way::new(new.node.clone(), new.addresses.clone(), true);
        match self.inner.open_way(link, way) {
            Ok(()) => Ok(Some(link)),
            Err(e) => {
                self.inner.close_way(link);
                Err(MemberError::Thread(e))
            }
        }
    }

    fn answer_of(&self, new: &NewMember) -> Result<(), MemberError> {
        let deadline = Instant::now() + ANSWER;
        while !self.with(|u, _| u.takes_part(new.id)) {
            if !self.with(|u, _| u.is_active()) {
                return Err(ChangeError::NotActive.into());
            }
            if Instant::now() > deadline {
                let why = self.with(|u, _| u.refusal_of(new.id));
                return Err(MemberError::NoAnswer {
                    id: new.id,
                    node: new.node.clone(),
                    addresses: new.addresses.clone(),
                    why: why.map_or_else(String::new, |w| format!(": {w}")),
                });
            }
            thread::park_timeout(TICK);
        }
        Ok(())
    }

    /// Sends the record as soon as it can be sent.
    fn begin(
        &self,
        change: &dyn Fn(&mut Upstairs, Now) -> Result<(), ChangeError>,
    ) -> Result<(), MemberError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let Err(e) = self.inner.with(|u, now| change(u, now)) else {
                return Ok(());
            };
            if e == ChangeError::NotActive || Instant::now() > deadline {
                return Err(e.into());
            }
            // Another record is under way, or a replica that stays is not level yet. What breaks a
            // rule for good is refused for good after the same time.
            if let ChangeError::Refused { passing: false, .. } = e {
                return Err(e.into());
            }
            thread::park_timeout(TICK);
        }
    }

    fn settle(&self, done: impl Fn(&Upstairs) -> bool) -> Result<(), MemberError> {
        let deadline = Instant::now() + SETTLE;
        while !self.with(|u, _| u.record_settled() && done(u)) {
            if Instant::now() > deadline {
                return Err(MemberError::NotSettled);
            }
            thread::park_timeout(TICK);
        }
        Ok(())
    }
}

fn info(new: &NewMember, kind: MemberKind) -> MemberInfo {
    MemberInfo {
        id: new.id,
        node: new.node.clone(),
        kind,
        opens: 0,
        durable: Position::default(),
    }
}
