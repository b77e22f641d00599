//! The commands that arrive at a node, and who may give them.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_nfs::NfsServer;
use trivet_protocol::{BLOCK_BYTES, Generation, VolumeId};
use trivet_replica::Volume;
use trivet_transport::call::CallHandler;
use trivet_transport::{Peer, Role as PeerRole};

use crate::clients;
use crate::error::{NodeError, Result};
use crate::members;
use crate::messages::{Answer, Ask, Demote, EventKind, MakeMember, Mount, Promote, Standing, Want};
use crate::node::Node;
use crate::role::Role;
use crate::scrub;

/// A move to another node takes at most this long.
const MOVE: Duration = Duration::from_secs(20);

/// All nodes have heard of a command after this long, or are not asked about it.
const SPREAD: Duration = Duration::from_secs(2);

/// Answers calls for a node.
pub struct Control(Weak<Node>);

impl Control {
    /// For this node, for as long as it lives.
    pub fn new(node: &Arc<Node>) -> Control {
        Control(Arc::downgrade(node))
    }
}

impl CallHandler for Control {
    fn call(&self, peer: &Peer, request: Bytes) -> Bytes {
        let answer = match serde_json::from_slice::<Ask>(&request) {
            Ok(ask) => self.answer(peer, ask),
            Err(e) => Answer::Refused(format!("this version does not know that command: {e}")),
        };
        // These are plain data; an empty answer is an error to whoever asked.
        serde_json::to_vec(&answer)
            .map(Bytes::from)
            .unwrap_or_default()
    }
}

impl Control {
    fn answer(&self, peer: &Peer, ask: Ask) -> Answer {
        let Some(node) = self.0.upgrade() else {
            return Answer::Refused("the node stops".into());
        };
        let looks_only = matches!(
            ask,
            Ask::Report
                | Ask::Cluster
                | Ask::Clients { .. }
                | Ask::Locks { .. }
                | Ask::Events { .. }
        );
        if !looks_only {
            tracing::info!(from = peer.name, command = ?ask, "command");
        }
        let makes = matches!(ask, Ask::MakeMember(_) | Ask::MakeReady { .. });
        if peer.role == PeerRole::Exporter && makes {
            return Answer::Refused("an exporter keeps no members and makes none".into());
        }
        let nodes_only = matches!(
            ask,
            Ask::GiveUp { .. } | Ask::HandBack { .. } | Ask::MakeReady { .. }
        );
        if peer.role == PeerRole::Operator && nodes_only {
            return Answer::Refused(
                "only nodes ask that of each other; use `trivet demote` or `trivet replica`".into(),
            );
        }
        let done = match ask {
            Ask::Report => Ok(Answer::Report(Box::new(node.report()))),
            Ask::Cluster => Ok(Answer::Cluster(node.cluster())),
            Ask::Promote(p) => promote(&node, p),
            Ask::Mount(m) => mount(&node, peer, m),
            Ask::Demote(d) => demote(&node, &d),
            Ask::GiveUp { volume } => give_up(&node, &volume),
            Ask::Clients { ref volume } => at_holder(&node, volume, &ask, |nfs| {
                Answer::Clients(clients::clients(nfs))
            }),
            Ask::Locks { ref volume } => at_holder(&node, volume, &ask, |nfs| {
                Answer::Locks(clients::locks(nfs))
            }),
            Ask::ClearLocks {
                ref volume,
                ref client,
            } => {
                let client = client.clone();
                at_holder(&node, volume, &ask, move |nfs| {
                    match clients::clear(nfs, &client) {
                        Ok(n) => Answer::Cleared(n),
                        Err(e) => Answer::Refused(format!("locks of {client}: {e}")),
                    }
                })
            }
            Ask::Events { after } => Ok(Answer::Events(node.events().after(after))),
            Ask::HandBack { volume, generation } => hand_back(&node, peer, volume, generation),
            Ask::MakeMember(m) => make_member(&node, &m),
            Ask::Change(c) => members::change(&node, &c),
            Ask::MakeReady { joining, pool } => {
                members::make_ready(&node, &joining, &pool).map(|()| Answer::Done)
            }
            Ask::DeleteMember { volume, dry_run } => members::delete(&node, volume, dry_run),
            Ask::Resize { ref volume, bytes } => resize(&node, volume, bytes, &ask),
            Ask::ResyncRate {
                ref volume,
                bytes_per_second,
            } => resync_rate(&node, volume, bytes_per_second, &ask),
            Ask::Scrub { ref volume, what } => match elsewhere(&node, volume) {
                Ok(Some(holder)) => node.ask(&holder, &ask, MOVE),
                Ok(None) => scrub::scrub(&node, volume, what),
                Err(e) => Err(e),
            },
            Ask::Evict {
                node: whom,
                evicted,
            } => node.set_evicted(&whom, evicted).map(|()| Answer::Done),
            Ask::Drain {
                node: whom,
                drained,
            } => drain(&node, &whom, drained),
        };
        done.unwrap_or_else(|e| Answer::Refused(e.to_string()))
    }
}

fn promote(node: &Arc<Node>, p: Promote) -> Result<Answer> {
    if p.node != node.name() {
        let patience = Duration::from_millis(p.timeout_ms) + MOVE;
        let whom = p.node.clone();
        return node.ask(&whom, &Ask::Promote(p), patience);
    }
    let role = node.role(&p.volume)?;
    role.promote(p).map(Answer::Promoted)
}

fn mount(node: &Arc<Node>, peer: &Peer, m: Mount) -> Result<Answer> {
    // Its directories are its own business; whoever has its key is root there.
    if peer.role != PeerRole::Local && peer.name != node.name() {
        return Err(NodeError::Refused {
            volume: m.volume,
            why: format!(
                "{} may not mount on {}; run it there, with that node's key",
                peer.name,
                node.name()
            ),
        });
    }
    let by_use = node.role(&m.volume)?.mount(m)?;
    Ok(Answer::Mounted { by_use })
}

fn give_up(node: &Arc<Node>, volume: &str) -> Result<Answer> {
    let clients = node.role(volume)?.give_up()?;
    Ok(Answer::Demoted { clients })
}

fn demote(node: &Arc<Node>, d: &Demote) -> Result<Answer> {
    let role = node.role(&d.volume)?;
    if d.elsewhere {
        return move_elsewhere(node, &d.volume);
    }
    let here = |r: &Role| r.report().0.standing == Standing::Active;
    let holder = || match here(&role) {
        true => Some(node.name().to_owned()),
        false => node.holder(role.id()),
    };
    let before = holder();
    // First, and everywhere, or an agent would take it up again, or for the first time.
    node.set_wish(role.id(), Want::Stopped);
    let deadline = Instant::now() + SPREAD;
    while !node.wish_is_known(role.id()) && Instant::now() < deadline {
        // Between two looks; what is waited for arrives on other threads.
        thread::sleep(Duration::from_millis(20));
    }
    let volume = d.volume.clone();
    let Some(holder) = holder().or(before) else {
        let why = "it is active nowhere that this node can see, and no agent takes it up now";
        return Err(NodeError::Refused {
            volume,
            why: why.into(),
        });
    };
    match holder == node.name() {
        true => give_up(node, &volume),
        false => node.ask(&holder, &Ask::GiveUp { volume }, MOVE),
    }
}

/// Moves a volume from here to the best other node.
fn move_elsewhere(node: &Arc<Node>, volume: &str) -> Result<Answer> {
    let role = node.role(volume)?;
    let here = role.report().0.standing == Standing::Active;
    let holder = match here {
        true => Some(node.name().to_owned()),
        false => node.holder(role.id()),
    };
    let candidates = node.candidates(role.id());
    let best = candidates.iter().find(|c| {
        c.standing == Standing::Standby && !c.drained && Some(&c.node) != holder.as_ref()
    });
    let Some(best) = best else {
        return Err(NodeError::Refused {
            volume: volume.to_owned(),
            why: "no other node can take it".into(),
        });
    };
    let p = Promote {
        volume: volume.to_owned(),
        node: best.node.clone(),
        take: true,
        wait: true,
        timeout_ms: MOVE.as_millis() as u64,
        accept_data_loss: false,
    };
    promote(node, p)
}

/// Asks the export of a volume, here or where it is active.
fn at_holder(
    node: &Arc<Node>,
    volume: &str,
    ask: &Ask,
    f: impl FnOnce(&NfsServer) -> Answer + Send + 'static,
) -> Result<Answer> {
    let role = node.role(volume)?;
    if role.report().0.standing == Standing::Active {
        return role.with_export(f);
    }
    match node.holder(role.id()) {
        Some(holder) => node.ask(&holder, ask, MOVE),
        None => Err(NodeError::Refused {
            volume: volume.to_owned(),
            why: "it is active nowhere that this node can see".into(),
        }),
    }
}

/// Where a volume is active, if that is not here.
fn elsewhere(node: &Arc<Node>, volume: &str) -> Result<Option<String>> {
    let role = node.role(volume)?;
    if role.report().0.standing == Standing::Active {
        return Ok(None);
    }
    node.holder(role.id())
        .map(Some)
        .ok_or_else(|| NodeError::Refused {
            volume: volume.to_owned(),
            why: "it is active nowhere that this node can see; `trivet promote` it first".into(),
        })
}

fn resize(node: &Arc<Node>, volume: &str, bytes: u64, ask: &Ask) -> Result<Answer> {
    if let Some(holder) = elsewhere(node, volume)? {
        return node.ask(&holder, ask, MOVE);
    }
    let (upstairs, fs) = node.role(volume)?.handles()?;
    let now = upstairs.info().blocks * BLOCK_BYTES as u64;
    if bytes < now {
        return Err(NodeError::Refused {
            volume: volume.to_owned(),
            why: format!(
                "it has {now} bytes and does not shrink; copy its files to a smaller one instead"
            ),
        });
    }
    let bytes = fs.grow(bytes)?;
    let text = format!("enlarged from {now} to {bytes} bytes");
    node.event(EventKind::Resized, Some(volume), text);
    Ok(Answer::Resized(bytes))
}

fn resync_rate(node: &Arc<Node>, volume: &str, rate: u64, ask: &Ask) -> Result<Answer> {
    if let Some(holder) = elsewhere(node, volume)? {
        return node.ask(&holder, ask, MOVE);
    }
    let (upstairs, _) = node.role(volume)?.handles()?;
    upstairs.with(|u, _| u.set_resync_rate(rate));
    Ok(Answer::Done)
}

fn drain(node: &Arc<Node>, whom: &str, drained: bool) -> Result<Answer> {
    if whom != node.name() {
        let ask = Ask::Drain {
            node: whom.to_owned(),
            drained,
        };
        return node.ask(whom, &ask, MOVE * 2);
    }
    node.set_drained(drained)?;
    if !drained {
        return Ok(Answer::Done);
    }
    for volume in &node.config().volumes {
        let role = node.role(&volume.name)?;
        if role.report().0.standing == Standing::Active {
            match move_elsewhere(node, &volume.name)? {
                Answer::Refused(why) => return Ok(Answer::Refused(why)),
                _ => continue,
            }
        }
    }
    Ok(Answer::Done)
}

fn hand_back(
    node: &Arc<Node>,
    peer: &Peer,
    volume: VolumeId,
    generation: Generation,
) -> Result<Answer> {
    let refused = |why: String| NodeError::Refused {
        volume: volume.to_string(),
        why,
    };
    let served = node.host().and_then(|h| h.member_of(volume));
    let served = served.ok_or_else(|| refused("this node keeps no member of it".into()))?;
    let holder = served.with(|r| r.member().state().holder.clone());
    // The supervisor has its node's own key.
    if peer.role != PeerRole::Local && peer.name != holder {
        return Err(refused(format!("{holder} holds it, not {}", peer.name)));
    }
    served
        .with(|r| r.hand_back(generation))
        .map_err(|e| refused(e.to_string()))?;
    Ok(Answer::Done)
}

fn make_member(node: &Arc<Node>, m: &MakeMember) -> Result<Answer> {
    let refused = |why: &str| NodeError::Refused {
        volume: m.record.volume.to_string(),
        why: why.to_owned(),
    };
    let config = node.config();
    let me = node
        .me()
        .ok_or_else(|| refused("this node is not in the configuration"))?;
    if !config.volumes.iter().any(|v| v.id == m.record.volume) {
        return Err(refused(
            "this node's configuration does not name it; copy the file to all nodes first",
        ));
    }
    let pool = me
        .pools
        .get(&m.pool)
        .ok_or_else(|| refused("this node has no such pool"))?;
    let host = node.host().ok_or_else(|| refused("the node starts"))?;
    host.make_member(pool, &m.record, m.member)?;
    Ok(Answer::Done)
}
