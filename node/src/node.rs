//! One node: what it keeps, what it is for each volume, what it has heard of the others.
//!
//! Threads: one for each other node, which asks how that one is; one per volume (`role`); and
//! those of the server of members and calls. Locks are held for moments, never over a call.
//!
//! What was heard is bounded by the configuration: one report for each node in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_cluster::{Attach, Host, Reach, attach};
use trivet_nfs::export::ExportSpec;
use trivet_protocol::frame::VERSION;
use trivet_protocol::{Recorder, VolumeId};
use trivet_replica::driver::ReplicatedVolume;
use trivet_transport::call::Client;
use trivet_transport::{Expect, Security};

use crate::agent::{Candidate, FRESH};
use crate::config::{Config, NodeConfig, Role as NodeRole, VolumeConfig};
use crate::error::{NodeError, Result};
use crate::events::Events;
use crate::guard::Guard;
use crate::known::Known;
use crate::messages::{
    Answer, Ask, ClusterReport, EventKind, Heard, MemberReport, PoolReport, Promote, Report,
    Standing, VolumeReport, Want, Wish,
};
use crate::role::Role;
use crate::state::State;

mod clients;
mod keeper;
mod look;

/// How often each other node is asked.
const EVERY: Duration = Duration::from_millis(200);
/// A node that does not answer within this time is not there.
const ANSWER: Duration = Duration::from_secs(1);

/// See the module's head.
pub struct Node {
    name: String,
    started: Instant,
    config: RwLock<Arc<Config>>,
    security: Security,
    host: OnceLock<Host>,
    roles: RwLock<BTreeMap<String, Arc<Role>>>,
    heard: Mutex<BTreeMap<String, HeardOf>>,
    clients: Mutex<BTreeMap<VolumeId, Known>>,
    state: Mutex<State>,
    /// Room in its pools, a few seconds old at most.
    pools: Mutex<Vec<PoolReport>>,
    /// Size of a packet towards the others, likewise.
    mtu: Mutex<Option<u32>>,
    recorder: Arc<dyn Recorder>,
    guard: Arc<Guard>,
    /// Held while members of a volume are changed from here.
    changing: Mutex<()>,
    events: Events,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: AtomicBool,
}

struct HeardOf {
    address: Option<SocketAddr>,
    at: Instant,
    report: Option<Report>,
    trouble: Option<String>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole after each statement.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// A node that knows its configuration and has not started anything.
    ///
    /// # Errors
    /// The configuration does not name it.
    pub fn new(
        name: &str,
        config: Config,
        security: Security,
        state: State,
        recorder: Arc<dyn Recorder>,
        guard: Guard,
    ) -> Result<Arc<Node>> {
        if config.node(name).is_none() {
            let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
            return Err(NodeError::NoSuchNode(name.to_owned(), all.join(", ")));
        }
        let clients = clients::recall(state.dir());
        Ok(Arc::new(Node {
            name: name.to_owned(),
            started: Instant::now(),
            config: RwLock::new(Arc::new(config)),
            security,
            host: OnceLock::new(),
            roles: RwLock::default(),
            heard: Mutex::default(),
            clients: Mutex::new(clients),
            state: Mutex::new(state),
            pools: Mutex::default(),
            mtu: Mutex::default(),
            recorder,
            guard: Arc::new(guard),
            changing: Mutex::default(),
            events: Events::start(name).map_err(NodeError::Thread)?,
            threads: Mutex::default(),
            stop: AtomicBool::new(false),
        }))
    }

    /// Starts everything on the members that `host` serves.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self: &Arc<Self>, host: Host) -> Result<()> {
        // Called once, by who made the node.
        let _ = self.host.set(host);
        let config = self.config();
        for other in config.nodes.iter().filter(|n| n.name != self.name) {
            self.ask_from_now_on(&other.name)?;
        }
        for volume in &config.volumes {
            self.start_role(volume)?;
        }
        self.keep_house()
    }

    /// Ends in order: what is active here is given up, then nothing is heard any more. The host
    /// is left for the caller to close.
    pub fn stop(&self) {
        let roles =
            std::mem::take(&mut *self.roles.write().unwrap_or_else(PoisonError::into_inner));
        roles.values().for_each(|r| r.stop());
        tracing::info!("every volume was given up");
        self.stop.store(true, Ordering::Release);
        for t in std::mem::take(&mut *lock(&self.threads)) {
            t.thread().unpark();
            // A panic there was reported where it happened.
            let _ = t.join();
        }
    }

    /// Where its daemon listens: at its address, or at all of the host's if it has several.
    ///
    /// # Errors
    /// Its addresses differ in their ports.
    pub fn listen(&self) -> Result<SocketAddr> {
        let me = self.me();
        let addresses = me.map(|n| n.addresses).unwrap_or_default();
        let refused = |why: &str| NodeError::Config {
            path: PathBuf::from("trivet.toml"),
            why: format!("node {}: {why}", self.name),
        };
        match addresses.as_slice() {
            [] => Err(refused("it has no address")),
            [only] => Ok(*only),
            [first, rest @ ..] => {
                if rest.iter().any(|a| a.port() != first.port()) {
                    return Err(refused("its addresses have different ports"));
                }
                let all: IpAddr = match addresses.iter().any(SocketAddr::is_ipv6) {
                    true => Ipv6Addr::UNSPECIFIED.into(),
                    false => Ipv4Addr::UNSPECIFIED.into(),
                };
                Ok(SocketAddr::new(all, first.port()))
            }
        }
    }

    /// The directories of its pools.
    pub fn pools(&self) -> Vec<PathBuf> {
        let me = self.me();
        me.map_or(Vec::new(), |n| n.pools.values().cloned().collect())
    }

    /// What served its members, to be closed; after [`Node::stop`].
    pub fn into_host(self) -> Option<Host> {
        self.host.into_inner()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        config.clone()
    }

    /// What the configuration says of this node; none if it was taken out of it.
    pub fn me(&self) -> Option<NodeConfig> {
        self.config().node(&self.name).cloned()
    }

    /// Where figures go.
    pub fn recorder(&self) -> &Arc<dyn Recorder> {
        &self.recorder
    }

    /// Something happened that people should know.
    pub fn event(&self, kind: EventKind, volume: Option<&str>, text: String) {
        let config = self.config();
        self.events
            .happened(config.notify.as_deref(), kind, volume, text);
    }

    /// What happened lately.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// What outlives this process.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// The role of this node for a volume.
    ///
    /// # Errors
    /// No such volume.
    pub fn role(&self, volume: &str) -> Result<Arc<Role>> {
        let roles = self.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles
            .get(volume)
            .cloned()
            .ok_or_else(|| NodeError::NoSuchVolume(volume.to_owned()))
    }

    /// The server of this node's members.
    pub fn host(&self) -> Option<&Host> {
        self.host.get()
    }

    /// Whether it is out of service, or was given up.
    pub fn drained(&self) -> bool {
        let state = lock(&self.state);
        state.drained() || state.evicted(&self.name)
    }

    /// Whether a node was given up, as far as is known here.
    pub fn evicted(&self, node: &str) -> bool {
        lock(&self.state).evicted(node)
    }

    /// Takes it out of service, or back in.
    ///
    /// # Errors
    /// That cannot be stored.
    pub fn set_drained(&self, drained: bool) -> Result<()> {
        lock(&self.state).set_drained(drained)
    }

    /// The right to change members, of one volume at a time; none while somebody has it.
    pub(crate) fn change_members(&self) -> Option<MutexGuard<'_, ()>> {
        match self.changing.try_lock() {
            Ok(one) => Some(one),
            Err(TryLockError::Poisoned(one)) => Some(one.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What is wanted of a volume.
    pub fn wish(&self, volume: VolumeId) -> Want {
        lock(&self.state).wish(volume)
    }

    /// A command says what is wanted of a volume from now on. Also where that is no news here: an
    /// opposite command may be on its way from elsewhere, and this one is younger.
    pub fn set_wish(&self, volume: VolumeId, want: Want) {
        if let Err(error) = lock(&self.state).wish_for(volume, want) {
            tracing::error!(%error, "a command is forgotten at the next start");
        }
    }

    /// An upstairs of a volume, activated.
    ///
    /// # Errors
    /// Who holds it, or whom it needs.
    pub fn attach(
        &self,
        volume: &VolumeConfig,
        p: &Promote,
        patience: Duration,
    ) -> Result<Arc<ReplicatedVolume>> {
        let config = self.config();
        let keepers = || {
            config
                .nodes
                .iter()
                .filter(|n| n.is(NodeRole::Replica) || n.is(NodeRole::Witness))
        };
        let hosts = keepers()
            .filter(|n| !n.addresses.is_empty())
            .map(|n| Reach {
                node: n.name.clone(),
                addresses: n.addresses.clone(),
            });
        let served = self.host().and_then(|h| h.member_of(volume.id));
        let place = keepers().position(|n| n.name == self.name);
        Ok(attach(Attach {
            volume: volume.id,
            node: self.name.clone(),
            hosts: hosts.collect(),
            security: self.security.clone(),
            local: place.zip(served),
            recorder: self.recorder.clone(),
            limits: look::limits(volume),
            patience,
            wait_for_lease: p.wait,
            accept_data_loss: p.accept_data_loss,
        })?)
    }

    /// Puts another configuration in force, as far as that goes while everything runs: peers,
    /// exports, preferences, new nodes and volumes. This node's own addresses and pools stay as
    /// they are until the next start.
    ///
    /// # Errors
    /// It does not name this node, or drops a volume that is active here; nothing is changed then.
    pub fn reload(self: &Arc<Self>, config: Config) -> Result<()> {
        let before = self.config();
        if config.node(&self.name).is_none() {
            let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
            return Err(NodeError::NoSuchNode(self.name.clone(), all.join(", ")));
        }
        let gone: Vec<String> = before
            .volumes
            .iter()
            .filter(|v| {
                config
                    .volumes
                    .iter()
                    .all(|n| n.id != v.id || n.name != v.name)
            })
            .map(|v| v.name.clone())
            .collect();
        for volume in &gone {
            if self.role(volume)?.report().0.standing == Standing::Active {
                return Err(NodeError::Refused {
                    volume: volume.clone(),
                    why: "it is active here and not in the new configuration; demote it first"
                        .into(),
                });
            }
        }
        if let Security::Tls(tls) = &self.security {
            tls.peers().replace(config.peers()?);
        }
        let config = Arc::new(config);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
        for volume in gone {
            let mut roles = self.roles.write().unwrap_or_else(PoisonError::into_inner);
            let role = roles.remove(&volume);
            drop(roles);
            if let Some(role) = role {
                role.stop();
            }
        }
        let known = |n: &NodeConfig| before.node(&n.name).is_some();
        for node in config.nodes.iter().filter(|n| !known(n)) {
            self.ask_from_now_on(&node.name)?;
        }
        for volume in &config.volumes {
            match self.role(&volume.name) {
                Ok(role) => export_anew(&role, volume),
                Err(_) => self.start_role(volume)?,
            }
        }
        lock(&self.state).keep_config(&config)?;
        self.event(
            EventKind::Reloaded,
            None,
            "the configuration was read again".into(),
        );
        Ok(())
    }

    fn ask_from_now_on(self: &Arc<Self>, name: &str) -> Result<()> {
        let (node, name) = (self.clone(), name.to_owned());
        let thread = thread::Builder::new()
            .name(format!("ask-{name}"))
            .spawn(move || node.listen_to(&name))
            .map_err(NodeError::Thread)?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    fn start_role(self: &Arc<Self>, volume: &VolumeConfig) -> Result<()> {
        let role = Arc::new(Role::start(self, volume)?);
        let mut roles = self.roles.write().unwrap_or_else(PoisonError::into_inner);
        roles.insert(volume.name.clone(), role);
        Ok(())
    }

    // --- what was heard -----------------------------------------------------------------------

    /// The other node that is active for a volume, if one is.
    pub fn holder(&self, volume: VolumeId) -> Option<String> {
        let standing = |r: &Report| {
            let of = r.volumes.iter().find(|v| v.id == volume);
            of.is_some_and(|v| v.role.standing == Standing::Active)
        };
        let heard = lock(&self.heard);
        let mut fresh = heard.iter().filter(|(_, h)| h.at.elapsed() < FRESH);
        fresh
            .find(|(_, h)| h.report.as_ref().is_some_and(standing))
            .map(|(name, _)| name.clone())
    }

    /// Whether every node that is heard of now knows what this one knows to be wanted.
    pub fn wish_is_known(&self, volume: VolumeId) -> bool {
        let number = |wishes: &[Wish]| {
            let of = wishes.iter().find(|w| w.volume == volume);
            of.map_or(0, |w| w.number)
        };
        let own = number(&lock(&self.state).wishes());
        let heard = lock(&self.heard);
        let mut fresh = heard.values().filter(|h| h.at.elapsed() < FRESH);
        fresh.all(|h| h.report.as_ref().is_none_or(|r| number(&r.wishes) >= own))
    }

    /// All nodes with fresh reports, this one among them, in the order of the configuration.
    pub fn candidates(&self, volume: VolumeId) -> Vec<Candidate> {
        let of = |r: &Report| {
            let v = r.volumes.iter().find(|v| v.id == volume)?;
            Some(Candidate {
                node: r.node.clone(),
                standing: v.role.standing,
                drained: r.drained || self.evicted(&r.node),
                members: v.members.clone(),
            })
        };
        let own = self.report();
        let heard = lock(&self.heard);
        let fresh = |name: &str| {
            let h = heard.get(name)?;
            (h.at.elapsed() < FRESH).then_some(h.report.as_ref()?)
        };
        let config = self.config();
        let names = config.nodes.iter().map(|n| n.name.as_str());
        names
            .filter_map(|n| match n == self.name {
                true => of(&own),
                false => fresh(n).and_then(of),
            })
            .collect()
    }

    /// How this node is.
    pub fn report(&self) -> Report {
        let config = self.config();
        let roles = self
            .roles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let volumes = config.volumes.iter().filter_map(|v| {
            let (role, mut clients, active) = roles.get(&v.name)?.report();
            if role.standing != Standing::Active {
                clients = self.clients_of(v.id);
            }
            Some(VolumeReport {
                name: v.name.clone(),
                id: v.id,
                driver: Some(v.driver),
                role,
                members: self.members_of(v.id),
                clients,
                active,
            })
        });
        let mut problems: Vec<String> = self.host().map_or(Vec::new(), |h| {
            h.problems().iter().map(ToString::to_string).collect()
        });
        problems.extend(self.other_drivers(&config));
        let volumes = volumes.collect();
        let state = lock(&self.state);
        Report {
            node: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: VERSION,
            up_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            drained: state.drained(),
            volumes,
            wishes: state.wishes(),
            node_wishes: state.node_wishes(),
            pools: lock(&self.pools).clone(),
            problems,
            host: Some(crate::host::report(*lock(&self.mtu))),
        }
    }

    fn members_of(&self, volume: VolumeId) -> Vec<MemberReport> {
        let served = self.host().map_or(Vec::new(), Host::served);
        let of_volume = served.iter().filter(|s| s.volume() == volume);
        of_volume.map(|s| s.with(|r| look::member(r))).collect()
    }

    /// Everything that was heard.
    pub fn cluster(&self) -> ClusterReport {
        let own = self.report();
        let config = self.config();
        let heard = lock(&self.heard);
        let nodes = config.nodes.iter().map(|n| {
            if n.name == self.name {
                return Heard {
                    node: n.name.clone(),
                    address: n.addresses.first().copied(),
                    age_ms: 0,
                    report: Some(own.clone()),
                    trouble: None,
                };
            }
            let h = heard.get(&n.name);
            Heard {
                node: n.name.clone(),
                address: h.and_then(|h| h.address),
                age_ms: h.map_or(0, |h| {
                    u64::try_from(h.at.elapsed().as_millis()).unwrap_or(u64::MAX)
                }),
                report: h.and_then(|h| h.report.clone()),
                trouble: h.map_or(Some("not heard yet".to_owned()), |h| h.trouble.clone()),
            }
        });
        ClusterReport {
            by: self.name.clone(),
            nodes: nodes.collect(),
        }
    }

    // --- asking -------------------------------------------------------------------------------

    /// Asks another node something.
    ///
    /// # Errors
    /// It cannot be reached at any of its addresses, or does not answer in time.
    pub fn ask(&self, node: &str, ask: &Ask, patience: Duration) -> Result<Answer> {
        let config = self.config();
        crate::client::ask(&config, &self.security, node, ask, patience).map(|(a, _)| a)
    }

    fn listen_to(&self, name: &str) {
        while !self.stop.load(Ordering::Acquire) {
            let Some(addresses) = self.config().node(name).map(|n| n.addresses.clone()) else {
                // Taken out of the configuration; a thread of its own if it ever comes back.
                lock(&self.heard).remove(name);
                return;
            };
            for address in addresses {
                let Err(why) = self.listen_at(name, address);
                self.not_heard(name, why);
            }
            thread::park_timeout(EVERY);
        }
    }

    /// Asks over and over on one connection, until it ends.
    fn listen_at(
        &self,
        name: &str,
        address: SocketAddr,
    ) -> Result<std::convert::Infallible, String> {
        let expect = Expect::Named(name.to_owned());
        let mut client =
            Client::connect(address, &self.security, &expect, ANSWER).map_err(|e| e.to_string())?;
        let question = serde_json::to_vec(&Ask::Report).map_err(|e| e.to_string())?;
        let question = Bytes::from(question);
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Err("this node stops".into());
            }
            if self.config().node(name).is_none() {
                return Err("it is no longer in the configuration".into());
            }
            let raw = client
                .call(question.clone(), ANSWER)
                .map_err(|e| e.to_string())?;
            match serde_json::from_slice(&raw).map_err(|e| e.to_string())? {
                Answer::Report(report) if report.node == name => self.hear(address, *report),
                Answer::Refused(why) => return Err(why),
                _ => return Err("an answer to another question".into()),
            }
            thread::park_timeout(EVERY);
        }
    }

    fn hear(&self, address: SocketAddr, report: Report) {
        let learnt = {
            let mut state = lock(&self.state);
            let nodes = state.learn_of_nodes(&report.node_wishes);
            state.learn(&report.wishes).and(nodes)
        };
        if let Err(error) = learnt {
            tracing::error!(%error, "what another node was told cannot be stored");
        }
        for v in &report.volumes {
            match v.role.standing {
                Standing::Active => self.learn_clients(v.id, &v.clients),
                // What it remembers is for nodes that have just started.
                _ => self.learn_clients_anew(v.id, &v.clients),
            }
        }
        let name = report.node.clone();
        let before = lock(&self.heard).insert(
            name.clone(),
            HeardOf {
                address: Some(address),
                at: Instant::now(),
                report: Some(report),
                trouble: None,
            },
        );
        if before.is_none_or(|b| b.trouble.is_some()) {
            self.event(
                EventKind::NodeBack,
                None,
                format!("{name} is heard at {address}"),
            );
        }
    }

    fn not_heard(&self, name: &str, why: String) {
        let mut heard = lock(&self.heard);
        let entry = heard.entry(name.to_owned()).or_insert_with(|| HeardOf {
            address: None,
            at: Instant::now(),
            report: None,
            trouble: None,
        });
        let news = entry.trouble.is_none();
        entry.address = None;
        entry.trouble = Some(why.clone());
        drop(heard);
        if news && !self.stop.load(Ordering::Acquire) {
            self.event(
                EventKind::NodeGone,
                None,
                format!("{name} is not heard: {why}"),
            );
        }
    }
}

/// The exports of a volume, as they are now in the configuration.
fn export_anew(role: &Role, volume: &VolumeConfig) {
    if let Ok((upstairs, _)) = role.handles() {
        upstairs.with(|u, _| u.set_resync_rate(look::limits(volume).resync_rate));
    }
    let specs: Vec<ExportSpec> = volume.exports.iter().map(ExportSpec::from).collect();
    // Where it is not active, the next promotion reads the configuration.
    if let Ok(Err(error)) = role.with_export(move |nfs| nfs.reload(&specs)) {
        tracing::error!(volume = volume.name, %error, "the exports stay as they were");
    }
}
