//! Who keeps a volume, changed by command while it is served.
//!
//! A change is planned first ([`plan`], which looks only), so that what cannot be done is refused
//! with its cause before anything is touched, and `--dry-run` says the same as the command does.
//! Then the new member is made ready on its node, under a new identity, and the active upstairs
//! changes the record (invariant 6, `trivet_replica::driver`).
//!
//! A crash in between leaves a region that is no member, which the next attempt on that node throws
//! away, or a member more, which the same command goes on with.
//!
//! Bounded: one change of a volume at a time, each step by the driver's own limits and [`MAKE`].

use std::sync::Arc;
use std::time::Duration;

use trivet_cluster::Joining;
use trivet_protocol::limits::MAX_IN_SYNC;
use trivet_protocol::{MemberId, MemberKind, Record, VolumeId};
use trivet_replica::driver::{MemberError, NewMember};
use trivet_replica::upstairs::{ChangeError, Status};

use crate::config::{Config, NodeConfig, Role as NodeRole};
use crate::error::{NodeError, Result};
use crate::messages::{Answer, Ask, Change, ChangeKind, Changed, EventKind, Standing};
use crate::node::Node;

/// A node makes a region, with its log written in full, within this time.
const MAKE: Duration = Duration::from_secs(60);

/// What is to be done, in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// A member more.
    Add {
        /// On which node.
        node: String,
        /// In which pool.
        pool: String,
        /// Replica or witness.
        kind: MemberKind,
    },
    /// A member less.
    Remove {
        /// Which.
        member: MemberId,
        /// On which node.
        node: String,
    },
    /// A member in the place of another.
    Move {
        /// Which goes.
        old: MemberId,
        /// From which node.
        from: String,
        /// To which node.
        node: String,
        /// In which pool.
        pool: String,
        /// Replica or witness.
        kind: MemberKind,
        /// It was brought in by an earlier attempt.
        begun: Option<MemberId>,
    },
}

/// What a plan is made from.
pub struct Seen<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The volume's record.
    pub record: &'a Record,
    /// How it is.
    pub status: &'a Status,
    /// Whether a node answers and was not given up.
    pub usable: &'a dyn Fn(&str) -> bool,
}

/// Whether a node may keep a member of this kind.
pub fn may_keep(node: &NodeConfig, kind: MemberKind) -> bool {
    let fit = match kind {
        MemberKind::Replica => node.is(NodeRole::Replica),
        MemberKind::Witness => node.is(NodeRole::Replica) || node.is(NodeRole::Witness),
    };
    fit && !node.pools.is_empty()
}

/// What a command comes to, or why it cannot be done and what can be done instead.
///
/// # Errors
/// The refusal, for people.
pub fn plan(seen: &Seen<'_>, what: &ChangeKind) -> Result<Plan, String> {
    if let Some((old, new)) = seen.status.replacing {
        let name = |id| seen.record.member(id).map_or("?", |m| m.node.as_str());
        let (from, to) = (name(old), name(new));
        let begun = matches!(what, ChangeKind::Move { node, .. } if node == to);
        if !begun {
            return Err(format!(
                "its member on {from} is being replaced by one on {to}; wait for that (`trivet \
                 wait VOLUME --for redundant`), or remove one of the two"
            ))
            .or_else(|e| match what {
                ChangeKind::Remove { node } if node == from || node == to => remove(seen, node),
                _ => Err(e),
            });
        }
    }
    match what {
        ChangeKind::Add {
            node,
            pool,
            witness,
        } => add(seen, node, pool.as_deref(), *witness),
        ChangeKind::Remove { node } => remove(seen, node),
        ChangeKind::Move { from, node, pool } => {
            move_to(seen, from.as_deref(), node, pool.as_deref())
        }
    }
}

fn add(seen: &Seen<'_>, node: &str, pool: Option<&str>, witness: bool) -> Result<Plan, String> {
    let kind = match witness {
        true => MemberKind::Witness,
        false => MemberKind::Replica,
    };
    let pool = home(seen, node, pool, kind)?;
    if let Some(m) = seen.record.members.iter().find(|m| m.node == node) {
        return Err(format!(
            "node {node} keeps a {} of it already, and one is all it may; to put it into another \
             pool: `trivet replica move`",
            name_of(m.kind)
        ));
    }
    if kind == MemberKind::Replica && seen.record.replicas().count() >= MAX_IN_SYNC {
        return Err(format!(
            "{MAX_IN_SYNC} replicas keep it already, and a further one would make nothing safer; \
             to put one elsewhere: `trivet replica move VOLUME {node} --from NODE`"
        ));
    }
    let node = node.to_owned();
    Ok(Plan::Add { node, pool, kind })
}

fn remove(seen: &Seen<'_>, node: &str) -> Result<Plan, String> {
    let here: Vec<_> = seen
        .record
        .members
        .iter()
        .filter(|m| m.node == node)
        .collect();
    let replacing = seen.status.replacing;
    // Of two on one node, the one that is to go.
    let goes = |id| replacing.is_some_and(|(old, _)| old == id);
    let member = match here.as_slice() {
        [] => {
            return Err(format!(
                "no member of it is on {node}; {}",
                whom(seen.record)
            ));
        }
        [one] => one,
        [one, ..] => here.iter().find(|m| goes(m.id)).unwrap_or(one),
    };
    let replicas = seen.record.replicas().count();
    if member.kind == MemberKind::Replica && replicas == 1 {
        return Err(format!(
            "{node} has the only replica; `trivet replica add` another one first, or `trivet \
             volume delete` all of it"
        ));
    }
    let left: usize = seen
        .record
        .in_sync
        .iter()
        .filter(|m| **m != member.id)
        .count();
    let least = usize::from(seen.record.min_copies);
    if seen.record.in_sync.contains(&member.id) && left < least {
        return Err(format!(
            "{left} in-sync copies would be left, and {least} are the least for this volume; \
             `trivet replica add` another one first, or `trivet replica move` this one"
        ));
    }
    Ok(Plan::Remove {
        member: member.id,
        node: node.to_owned(),
    })
}

fn move_to(
    seen: &Seen<'_>,
    from: Option<&str>,
    node: &str,
    pool: Option<&str>,
) -> Result<Plan, String> {
    let members = &seen.record.members;
    let bad = |id: MemberId| {
        let status = seen.status.members.iter().find(|m| m.id == id);
        status.is_none_or(|m| !m.up || m.trouble.is_some())
    };
    let replaced = seen.status.replacing.map(|(old, _)| old);
    let old = match from {
        Some(from) => members
            .iter()
            .find(|m| m.node == from)
            .ok_or_else(|| format!("no member of it is on {from}; {}", whom(seen.record)))?,
        None => {
            let again = members.iter().filter(|m| Some(m.id) == replaced);
            let here = members.iter().filter(|m| m.node == node && pool.is_some());
            let mut gone = again
                .chain(here)
                .chain(members.iter().filter(|m| bad(m.id)));
            gone.next().ok_or_else(|| {
                format!(
                    "all members are well, so say which one is to go: --from NODE; {}",
                    whom(seen.record)
                )
            })?
        }
    };
    let (from, kind) = (old.node.clone(), old.kind);
    let there = members.iter().find(|m| m.node == node && m.id != old.id);
    let begun = match there {
        // Brought in by an earlier attempt: it is one more than there should be.
        Some(m)
            if m.kind == kind
                && surplus(seen.record, kind)
                && (seen.status.replacing == Some((old.id, m.id))
                    || came_in(seen.record, m.id, old.id)) =>
        {
            Some(m.id)
        }
        Some(m) => {
            return Err(format!(
                "node {node} keeps a {} of it already, and one is all it may; choose another node",
                name_of(m.kind)
            ));
        }
        None => None,
    };
    if begun.is_none() && from == node && pool.is_none() {
        return Err(format!(
            "it is on {node} already; name another of its pools ({node}:POOL), or another node"
        ));
    }
    Ok(Plan::Move {
        old: old.id,
        from,
        pool: match begun {
            Some(_) => String::new(),
            None => home(seen, node, pool, kind)?,
        },
        node: node.to_owned(),
        kind,
        begun,
    })
}

/// Whether a replica may be one that an unfinished replacement of `old` brought in: it is not in
/// sync yet, or there are copies enough without `old`.
pub(crate) fn came_in(record: &Record, new: MemberId, old: MemberId) -> bool {
    let others = record.in_sync.iter().filter(|m| **m != old).count();
    !record.in_sync.contains(&new) || others >= MAX_IN_SYNC
}

/// More members of a kind than any volume is meant to have.
fn surplus(record: &Record, kind: MemberKind) -> bool {
    let have = record.members.iter().filter(|m| m.kind == kind).count();
    let witness = record.members.iter().any(|m| m.kind == MemberKind::Witness);
    match kind {
        MemberKind::Witness => have > 1,
        MemberKind::Replica => have > MAX_IN_SYNC || (witness && have > 2),
    }
}

/// The pool for a new member, if its node can keep one now.
fn home(
    seen: &Seen<'_>,
    node: &str,
    pool: Option<&str>,
    kind: MemberKind,
) -> Result<String, String> {
    let Some(config) = seen.config.node(node) else {
        let all: Vec<&str> = seen.config.nodes.iter().map(|n| n.name.as_str()).collect();
        let all = all.join(", ");
        return Err(format!("no node {node} is configured; there are: {all}"));
    };
    if !may_keep(config, kind) {
        return Err(format!(
            "node {node} keeps no {}s: give it the role and a pool in the configuration",
            name_of(kind)
        ));
    }
    let names: Vec<&str> = config.pools.keys().map(String::as_str).collect();
    let pool = match (pool, names.as_slice()) {
        (Some(pool), names) if names.contains(&pool) => pool,
        (None, [only]) => only,
        (Some(pool), names) => {
            let names = names.join(", ");
            return Err(format!("node {node} has no pool {pool}; it has: {names}"));
        }
        (None, names) => {
            let names = names.join(", ");
            return Err(format!(
                "node {node} has several pools: {names}; say {node}:POOL"
            ));
        }
    };
    if !(seen.usable)(node) {
        return Err(format!(
            "node {node} does not answer, is out of service or was given up; look at `trivet \
             status`"
        ));
    }
    Ok(pool.to_owned())
}

fn name_of(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::Replica => "replica",
        MemberKind::Witness => "witness",
    }
}

fn whom(record: &Record) -> String {
    let all: Vec<&str> = record.members.iter().map(|m| m.node.as_str()).collect();
    format!("its members are on: {}", all.join(", "))
}

/// What a plan does, for people.
fn describe(plan: &Plan, volume: &str, here: &str, record: &Record) -> String {
    match plan {
        Plan::Add { node, pool, kind } => {
            let (kind, copied) = match kind {
                MemberKind::Replica => ("replica", ", which gets a copy of all its data"),
                MemberKind::Witness => ("witness", ", which votes and keeps no data"),
            };
            format!("{volume} gets a {kind} on {node}:{pool}{copied}")
        }
        Plan::Remove { member, node } => {
            let mut text = format!(
                "{volume} loses its member on {node}, and what that one keeps is thrown away"
            );
            let left = record.members.iter().filter(|m| m.id != *member);
            let replicas = left
                .clone()
                .filter(|m| m.kind == MemberKind::Replica)
                .count();
            if left.count() == 2 {
                text.push_str("; with two votes left, the loss of either stops it");
            }
            if replicas == 1 {
                text.push_str("; ONE copy is left, and its loss loses data");
            }
            if node == here {
                text.push_str("; it is active there, and will be without a replica of its own");
            }
            text
        }
        Plan::Move {
            from,
            node,
            pool,
            begun: None,
            ..
        } => format!(
            "{volume} gets a member on {node}:{pool} in the place of the one on {from}, which is \
             thrown away once the new one has everything"
        ),
        Plan::Move { from, node, .. } => format!(
            "{volume}: the member on {node}, which is one already, takes the place of the one on \
             {from}"
        ),
    }
}

/// Does it, or has the active node do it.
///
/// # Errors
/// Why not.
pub(crate) fn change(node: &Arc<Node>, c: &Change) -> Result<Answer> {
    let role = node.role(&c.volume)?;
    let refused = |why: String| NodeError::Refused {
        volume: c.volume.clone(),
        why,
    };
    if role.report().0.standing != Standing::Active {
        let holder = node.holder(role.id()).ok_or_else(|| {
            refused(
                "its members are changed while it is active, and it is active nowhere that this \
                 node can see; `trivet promote` it first"
                    .into(),
            )
        })?;
        return node.ask(&holder, &Ask::Change(c.clone()), MAKE * 2);
    }
    let (volume, _) = role.handles()?;
    // From the plan to its end: two plans made from one record would both make somebody ready.
    let _one = node.change_members().ok_or_else(|| {
        refused("another change of members is under way; try again after it".into())
    })?;
    let record = volume.with(|u, _| u.record_settled().then(|| u.record().cloned()));
    let record = record.flatten().ok_or_else(|| {
        let why = "its last change of members is not settled yet; try again when all its members \
                   answer (`trivet status`)";
        refused(why.into())
    })?;
    let config = node.config();
    let usable = |n: &str| node.hears(n) && !node.evicted(n);
    let seen = Seen {
        config: &config,
        record: &record,
        status: &volume.status(),
        usable: &usable,
    };
    let plan = plan(&seen, &c.what).map_err(refused)?;
    let what = describe(&plan, &c.volume, node.name(), &record);
    let mut done = Changed {
        what: what.clone(),
        new: None,
        old: None,
    };
    match &plan {
        Plan::Remove { member, .. } => done.old = Some(*member),
        Plan::Move { old, begun, .. } => (done.old, done.new) = (Some(*old), *begun),
        Plan::Add { .. } => {}
    }
    if c.dry_run {
        return Ok(Answer::Changed(done));
    }
    match plan {
        Plan::Add {
            node: at,
            pool,
            kind,
        } => {
            let id = make_ready_at(node, &record, kind, &at, &pool)?;
            let new = new_member(&config, id, &at)?;
            let added = match kind {
                MemberKind::Replica => volume.add_replica(&new),
                MemberKind::Witness => volume.add_witness(&new),
            };
            changed(&c.volume, added)?;
            done.new = Some(id);
        }
        Plan::Remove { member, .. } => changed(&c.volume, volume.remove_member(member))?,
        Plan::Move {
            old,
            node: at,
            pool,
            kind,
            begun,
            ..
        } => {
            let id = match begun {
                Some(id) => id,
                None => make_ready_at(node, &record, kind, &at, &pool)?,
            };
            let new = new_member(&config, id, &at)?;
            changed(&c.volume, volume.replace_member(old, &new))?;
            done.new = Some(id);
        }
    }
    node.event(EventKind::Members, Some(&c.volume), what);
    Ok(Answer::Changed(done))
}

/// An error of the driver's with what can be done about it.
pub(crate) fn changed(volume: &str, done: Result<(), MemberError>) -> Result<()> {
    done.map_err(|source| NodeError::Members {
        next: match &source {
            MemberError::Change(ChangeError::Refused { passing: true, .. }) => {
                "; look at `trivet status`, and try again when all its members answer"
            }
            MemberError::NoAnswer { .. } => "; look at that node's log, and try again",
            _ => "",
        },
        volume: volume.to_owned(),
        source: Box::new(source),
    })
}

/// Has a node make a new member ready; returns its identity.
pub(crate) fn make_ready_at(
    node: &Arc<Node>,
    record: &Record,
    kind: MemberKind,
    at: &str,
    pool: &str,
) -> Result<MemberId> {
    let joining = Joining::new(kind, record.clone());
    let member = joining.member;
    if at == node.name() {
        return make_ready(node, &joining, pool).map(|()| member);
    }
    let pool = pool.to_owned();
    match node.ask(at, &Ask::MakeReady { joining, pool }, MAKE)? {
        Answer::Done => Ok(member),
        Answer::Refused(why) => Err(NodeError::Told {
            node: at.to_owned(),
            why,
        }),
        _ => Err(NodeError::Told {
            node: at.to_owned(),
            why: "an answer to another question".into(),
        }),
    }
}

pub(crate) fn new_member(config: &Config, id: MemberId, node: &str) -> Result<NewMember> {
    let at = config.node(node);
    let addresses = at.map(|n| n.addresses.clone()).unwrap_or_default();
    if addresses.is_empty() {
        let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        return Err(NodeError::NoSuchNode(node.to_owned(), all.join(", ")));
    }
    Ok(NewMember {
        id,
        node: node.to_owned(),
        addresses,
    })
}

/// Makes a member ready here. What an earlier attempt left, and was never added, goes first.
pub(crate) fn make_ready(node: &Node, joining: &Joining, pool: &str) -> Result<()> {
    let volume = joining.record.volume;
    let refused = |why: &str| NodeError::Refused {
        volume: volume.to_string(),
        why: why.to_owned(),
    };
    let me = node.me();
    let me = me.ok_or_else(|| refused("this node is not in the configuration"))?;
    if !node.config().volumes.iter().any(|v| v.id == volume) {
        return Err(refused(
            "this node's configuration does not name it; copy the file to all nodes first",
        ));
    }
    let dir = me
        .pools
        .get(pool)
        .ok_or_else(|| refused("this node has no such pool"))?;
    let host = node.host().ok_or_else(|| refused("the node starts"))?;
    for served in host.served() {
        let listed = joining.record.member(served.member()).is_some();
        let version = served.with(|r| r.member().state().record.version);
        // A record older than the one here says nothing about who is a member.
        if served.volume() == volume && !listed && version <= joining.record.version {
            host.discard(volume, served.member())?;
        }
    }
    Ok(host.make_ready(dir, joining)?)
}

/// Throws away what this node keeps of a volume that is to go.
pub(crate) fn delete(node: &Node, volume: VolumeId, dry_run: bool) -> Result<Answer> {
    let refused = |why: String| NodeError::Refused {
        volume: volume.to_string(),
        why,
    };
    let config = node.config();
    let name = config.volumes.iter().find(|v| v.id == volume);
    if let Some(name) = name
        && !matches!(
            node.role(&name.name)?.report().0.standing,
            Standing::None | Standing::Standby
        )
    {
        return Err(refused(format!(
            "it is in use on {}; `trivet demote` it first",
            node.name()
        )));
    }
    let host = node
        .host()
        .ok_or_else(|| refused("the node starts".into()))?;
    let of_volume = || host.served().into_iter().filter(|s| s.volume() == volume);
    let now = trivet_downstairs::server::boot_time();
    for served in of_volume() {
        let held = served.with(|r| {
            let (member, holder) = (r.member(), r.member().state().holder.clone());
            // Everybody waits for one lease after a start; that is not somebody's use of it.
            (member.lease_left(now).0 > 0 && !holder.is_empty()).then_some(holder)
        });
        if let Some(holder) = held {
            return Err(refused(format!(
                "its member on {} is promised to {holder} still; wait for the lease to run out",
                node.name()
            )));
        }
    }
    if !dry_run {
        for served in of_volume() {
            host.discard(volume, served.member())?;
        }
    }
    Ok(Answer::Done)
}

#[cfg(test)]
mod tests;
