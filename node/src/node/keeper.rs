//! What nobody waits for: how much room the pools have, who the clients are, throwing away what a
//! volume gave up, and finding new homes for the replicas of nodes that were given up.
//!
//! One thread, which looks every [`LOOK`]. Each step can be taken again: a crash in between, or
//! another node that becomes active, leaves it to be found anew.
//!
//! A region here is thrown away only if it knows durably that it was removed, and the active node
//! of its volume says now that it is no member, with enough others in sync.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use trivet_protocol::{MemberId, MemberKind, Record, VolumeId};

use super::{Node, lock, look};
use crate::agent::FRESH;
use crate::config::{Config, Driver};
use crate::error::{NodeError, Result};
use crate::members;
use crate::messages::{ActiveReport, EventKind, Standing};
use crate::role::Role;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);
/// How often at the pools.
const POOLS: u32 = 5;

impl Node {
    pub(super) fn keep_house(self: &Arc<Self>) -> Result<()> {
        let node = self.clone();
        let thread = thread::Builder::new()
            .name("keeper".into())
            .spawn(move || node.keep())
            .map_err(NodeError::Thread)?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    fn keep(self: Arc<Self>) {
        let mut round = 0u32;
        let (mut told, mut unkept) = (None, None);
        let mut stored = super::clients::Addresses::new();
        while !self.stop.load(Ordering::Acquire) {
            if round.is_multiple_of(POOLS) {
                let pools = look::pools(&self.config(), &self.name);
                *lock(&self.pools) = pools;
                let first = self.me().and_then(|n| n.addresses.first().copied());
                let towards = first.and_then(|a| crate::host::interface(a.ip()));
                *lock(&self.mtu) = towards.and_then(|i| i.mtu);
            }
            round = round.wrapping_add(1);
            if let Err(e) = self.keep_clients(&mut stored) {
                let e = e.to_string();
                if unkept.as_ref() != Some(&e) {
                    tracing::warn!(error = e, "who the clients are is not stored");
                    unkept = Some(e);
                }
            }
            self.throw_away_removed();
            for role in self.active_roles() {
                self.give_up_silent(&role);
                if let Err(e) = self.rehome(&role) {
                    // Said once for as long as it stays.
                    let e = e.to_string();
                    if told.as_ref() != Some(&e) {
                        tracing::warn!(error = e, "a replica of a node that was given up stays");
                        told = Some(e);
                    }
                }
            }
            thread::park_timeout(LOOK);
        }
    }

    fn active_roles(&self) -> Vec<Arc<Role>> {
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        let active = |r: &&Arc<Role>| r.report().0.standing == Standing::Active;
        roles.values().filter(active).cloned().collect()
    }

    /// How a volume is, as its active node says, here or elsewhere.
    pub fn active_report(&self, volume: VolumeId) -> Option<ActiveReport> {
        for role in self.active_roles() {
            if role.id() == volume {
                return role.report().2;
            }
        }
        let heard = lock(&self.heard);
        let fresh = heard.values().filter(|h| h.at.elapsed() < FRESH);
        fresh
            .filter_map(|h| h.report.as_ref())
            .flat_map(|r| &r.volumes)
            .filter(|v| v.id == volume && v.role.standing == Standing::Active)
            .find_map(|v| v.active.clone())
    }

    fn throw_away_removed(&self) {
        let Some(host) = self.host() else { return };
        for served in host.served() {
            let (removed, copies) = served.with(|r| {
                let state = r.member().state();
                (state.removed, usize::from(state.record.min_copies))
            });
            if !removed {
                continue;
            }
            let (volume, member) = (served.volume(), served.member());
            let Some(active) = self.active_report(volume) else {
                continue;
            };
            let sound = active.members.iter().filter(|m| m.in_sync && m.up).count();
            let listed = active.members.iter().any(|m| m.id == member);
            // While another takes its place, that one may not have everything yet.
            if listed || sound < copies || active.replacing.is_some() {
                continue;
            }
            match host.discard(volume, member) {
                Ok(_) => self.event(
                    EventKind::Members,
                    self.name_of(volume).as_deref(),
                    format!("{}: member {member}, removed, was thrown away", self.name),
                ),
                Err(error) => {
                    tracing::error!(%volume, %member, %error, "a removed member stays on disk");
                }
            }
        }
    }

    fn name_of(&self, volume: VolumeId) -> Option<String> {
        let config = self.config();
        let found = config.volumes.iter().find(|v| v.id == volume);
        found.map(|v| v.name.clone())
    }

    // --- nodes that were given up -------------------------------------------------------------

    /// Gives a node up, or takes it back; all nodes hear of it.
    ///
    /// # Errors
    /// It is not configured, it is alive, or that cannot be stored.
    pub fn set_evicted(&self, node: &str, evicted: bool) -> Result<()> {
        let config = self.config();
        if config.node(node).is_none() {
            let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
            return Err(NodeError::NoSuchNode(node.to_owned(), all.join(", ")));
        }
        if evicted && self.hears(node) {
            return Err(NodeError::Alive(node.to_owned()));
        }
        if self.evicted(node) == evicted {
            return Ok(());
        }
        lock(&self.state).set_evicted(node, evicted)?;
        let text = match evicted {
            true => format!("{node} was given up: its replicas go to other nodes if they can"),
            false => format!("{node} was taken back: it may keep replicas and be active again"),
        };
        self.event(EventKind::Evicted, None, text);
        Ok(())
    }

    /// Whether a node is heard, or is this one.
    pub fn hears(&self, node: &str) -> bool {
        let heard = lock(&self.heard);
        let fresh = |n: &str| heard.get(n).is_some_and(|h| h.at.elapsed() < FRESH);
        node == self.name || (fresh(node) && heard.get(node).is_some_and(|h| h.trouble.is_none()))
    }

    /// For how long nothing was heard of a node that was tried.
    fn silent_for(&self, node: &str) -> Option<Duration> {
        let heard = lock(&self.heard);
        let h = heard.get(node).filter(|h| h.trouble.is_some())?;
        Some(h.at.elapsed())
    }

    /// After its time, and only if another node can take its place.
    fn give_up_silent(&self, role: &Role) {
        let config = self.config();
        let (Some(after), Some(active)) = (config.gives_up_after(), role.report().2) else {
            return;
        };
        let has: Vec<&str> = active.members.iter().map(|m| m.node.as_str()).collect();
        for m in &active.members {
            // A replica that is there is not given up, whatever its node's reports look like.
            let silent = !m.up && self.silent_for(&m.node).is_some_and(|t| t > after);
            if !silent || self.evicted(&m.node) || self.spare(&config, &has, m.kind).is_none() {
                continue;
            }
            tracing::warn!(
                node = m.node,
                ?after,
                "not heard for too long; it is given up"
            );
            if let Err(error) = self.set_evicted(&m.node, true) {
                tracing::error!(%error, "not given up");
            }
        }
    }

    /// A node that could keep a member more, and its pool: the one with the most room.
    pub fn spare(
        &self,
        config: &Config,
        has: &[&str],
        kind: MemberKind,
    ) -> Option<(String, String)> {
        let able = config.nodes.iter().filter(|n| {
            members::may_keep(n, kind)
                && !has.contains(&n.name.as_str())
                && !self.evicted(&n.name)
                && self.hears(&n.name)
        });
        let rooms = able.filter_map(|n| {
            let pools = match n.name == self.name {
                true => lock(&self.pools).clone(),
                false => {
                    let heard = lock(&self.heard);
                    let report = heard.get(&n.name).and_then(|h| h.report.as_ref());
                    report.map(|r| r.pools.clone()).unwrap_or_default()
                }
            };
            let best = pools.into_iter().max_by_key(|p| p.free)?;
            Some((best.free, n.name.clone(), best.name))
        });
        rooms.max().map(|(_, node, pool)| (node, pool))
    }

    /// Puts another member in the place of one on a node that was given up.
    fn rehome(self: &Arc<Self>, role: &Role) -> Result<()> {
        let Some(active) = role.report().2 else {
            return Ok(());
        };
        let gone = active.members.iter().find(|m| self.evicted(&m.node));
        let (Some(gone), None) = (gone, active.replacing) else {
            return Ok(());
        };
        let (volume, _) = role.handles()?;
        // Another change is under way, or not settled: it is looked at again later.
        let Some(_one) = self.change_members() else {
            return Ok(());
        };
        let settled = volume.with(|u, _| u.record_settled().then(|| u.record().cloned()));
        let Some(record) = settled.flatten() else {
            return Ok(());
        };
        let config = self.config();
        let name = self.name_of(role.id()).unwrap_or_default();
        let (member, node) = match self.begun(&record, gone.kind, gone.id) {
            // An earlier attempt brought it in, and came no further.
            Some(m) => m,
            None => {
                let has: Vec<&str> = record.members.iter().map(|m| m.node.as_str()).collect();
                let Some((node, pool)) = self.spare(&config, &has, gone.kind) else {
                    return Err(NodeError::NoSpare {
                        volume: name,
                        node: gone.node.clone(),
                    });
                };
                let member = members::make_ready_at(self, &record, gone.kind, &node, &pool)?;
                (member, node)
            }
        };
        let new = members::new_member(&config, member, &node)?;
        members::changed(&name, volume.replace_member(gone.id, &new))?;
        self.event(
            EventKind::Members,
            Some(&name),
            format!(
                "{node} takes the place of {}, which was given up",
                gone.node
            ),
        );
        Ok(())
    }

    /// A member more than the volume is meant to have: the last one that came.
    fn begun(
        &self,
        record: &Record,
        kind: MemberKind,
        gone: MemberId,
    ) -> Option<(MemberId, String)> {
        let witness = record.members.iter().any(|m| m.kind == MemberKind::Witness);
        let meant = match kind {
            MemberKind::Witness => 1,
            MemberKind::Replica if witness => 2,
            MemberKind::Replica => 3,
        };
        let here = record
            .members
            .iter()
            .filter(|m| m.kind == kind && !self.evicted(&m.node));
        let last = here.clone().last()?;
        // One that has been in sync all along is no replacement: to take it for one would be to
        // have a copy less.
        let came = kind == MemberKind::Replica && members::came_in(record, last.id, gone);
        (came && here.count() >= meant).then(|| (last.id, last.node.clone()))
    }

    // --- who decides --------------------------------------------------------------------------

    /// Says so if another node is configured to have somebody else decide about a volume: two that
    /// decide are one too many.
    pub fn other_driver(&self, volume: VolumeId, own: Driver) -> Option<String> {
        let heard = lock(&self.heard);
        let fresh = heard.values().filter(|h| h.at.elapsed() < FRESH);
        let mut reports = fresh.filter_map(|h| h.report.as_ref());
        reports.find_map(|r| {
            let v = r.volumes.iter().find(|v| v.id == volume)?;
            let other = v.driver.filter(|d| *d != own)?;
            Some(format!(
                "volume {}: its driver is {own} in the configuration of this node and {other} in \
                 that of {}; make it the same on all nodes",
                v.name, r.node
            ))
        })
    }

    pub(super) fn other_drivers(&self, config: &Config) -> Vec<String> {
        let volumes = config.volumes.iter();
        volumes
            .filter_map(|v| self.other_driver(v.id, v.driver))
            .collect()
    }
}
