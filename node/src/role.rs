//! What this node is for one volume: standby, active, or between the two.
//!
//! One thread per volume does everything, one thing at a time, so no two commands can meet half
//! way: jobs come through a queue, and between them it looks after the reign (is the volume still
//! held?) or, as a standby of a volume with automatic moves, whether its turn has come.
//!
//! Bounded: [`QUEUE`] jobs wait; a promotion takes at most its own time-out.

mod mounts;
mod network;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use trivet_fs::Fs;
use trivet_nfs::NfsServer;
use trivet_protocol::VolumeId;
use trivet_replica::driver::ReplicatedVolume;

use crate::agent::{Decision, decide};
use crate::config::{Driver, Role as NodeRole, VolumeConfig};
use crate::error::{NodeError, Result};
use crate::guard::{self, BootMs, Held};
use crate::messages::{
    ActiveReport, Answer, Ask, EventKind, Mount, Move, MoveKind, Promote, RoleReport, Standing,
    Want,
};
use crate::node::Node;
use crate::scrub;
use crate::stack::{Around, Stack};
use crate::timeline::Timeline;
use network::Network;

/// Jobs that wait, at most.
const QUEUE: usize = 16;
/// How often it looks around.
const TICK: Duration = Duration::from_millis(50);
/// After an attempt that failed, the next one of its own waits.
const PAUSE: Duration = Duration::from_secs(1);
/// An attempt of its own may take this long.
const ATTEMPT: Duration = Duration::from_secs(10);
/// A promotion by command takes at most this long, whatever was asked for: while it waits, this
/// node does nothing else for the volume.
const LONGEST: Duration = Duration::from_secs(60);
/// A former holder gives up within this time, or is taken for dead.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Looks at what runs, if it does.
type Look = Box<dyn FnOnce(Option<&Stack>) + Send>;

enum Job {
    Promote(Promote, SyncSender<Result<Move>>),
    /// The answer: whether it became active by that.
    Mount(Mount, SyncSender<Result<bool>>),
    GiveUp(SyncSender<Result<Vec<SocketAddr>>>),
    Look(Look),
    Quit,
}

/// What others may know.
struct View {
    standing: Standing,
    since: Instant,
    trouble: Option<String>,
    last_move: Option<Move>,
    clients: Vec<SocketAddr>,
    active: Option<ActiveReport>,
    mounted: Option<PathBuf>,
}

/// A volume on this node.
pub struct Role {
    id: VolumeId,
    jobs: SyncSender<Job>,
    view: Arc<Mutex<View>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Role {
    /// Starts as a standby.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(node: &Arc<Node>, config: &VolumeConfig) -> Result<Role> {
        let (jobs, queue) = sync_channel(QUEUE);
        let exporter = node.me().is_some_and(|n| n.is(NodeRole::Exporter));
        let view = Arc::new(Mutex::new(View {
            standing: match exporter {
                true => Standing::Standby,
                false => Standing::None,
            },
            since: Instant::now(),
            trouble: None,
            last_move: None,
            clients: Vec::new(),
            active: None,
            mounted: None,
        }));
        let worker = Worker {
            node: Arc::downgrade(node),
            name: config.name.clone(),
            id: config.id,
            view: view.clone(),
            stack: None,
            by_use: false,
            eligible: None,
            not_before: Instant::now(),
            said: None,
            degraded: None,
            network: Network::default(),
        };
        let thread = thread::Builder::new()
            .name(format!("role-{}", config.name))
            .spawn(move || {
                // Half a role is none: the process ends, and its supervisor clears up.
                let ran = catch_unwind(AssertUnwindSafe(|| worker.run(&queue)));
                if ran.is_err() {
                    std::process::abort();
                }
            })
            .map_err(NodeError::Thread)?;
        Ok(Role {
            id: config.id,
            jobs,
            view,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The volume.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// What it is.
    pub fn report(&self) -> (RoleReport, Vec<SocketAddr>, Option<ActiveReport>) {
        let v = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let role = RoleReport {
            standing: v.standing,
            for_ms: u64::try_from(v.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            trouble: v.trouble.clone(),
            last_move: v.last_move.clone(),
            mounted: v.mounted.clone(),
        };
        (role, v.clients.clone(), v.active.clone())
    }

    /// Becomes active.
    ///
    /// # Errors
    /// Why it did not.
    pub fn promote(&self, p: Promote) -> Result<Move> {
        let mut p = p;
        p.timeout_ms = p.timeout_ms.min(LONGEST.as_millis() as u64);
        let patience = Duration::from_millis(p.timeout_ms);
        self.ask(patience + GIVE_UP, |reply| Job::Promote(p, reply))
    }

    /// Shows it in a directory, and becomes active for as long as it is mounted there, unless it is
    /// active here already. True if it became active by this.
    ///
    /// # Errors
    /// Why it did not.
    pub fn mount(&self, m: Mount) -> Result<bool> {
        let mut m = m;
        m.timeout_ms = m.timeout_ms.min(LONGEST.as_millis() as u64);
        let patience = Duration::from_millis(m.timeout_ms);
        self.ask(patience + GIVE_UP, |reply| Job::Mount(m, reply))
    }

    /// Ceases to be active; returns the clients that were connected.
    ///
    /// # Errors
    /// It is not active, or what could not be written.
    pub fn give_up(&self) -> Result<Vec<SocketAddr>> {
        self.ask(GIVE_UP * 4, Job::GiveUp)
    }

    /// Does something with the running export; quickly, for everything else waits for it.
    ///
    /// # Errors
    /// The volume is not active here, or has no export.
    pub fn with_export<T: Send + 'static>(
        &self,
        f: impl FnOnce(&NfsServer) -> T + Send + 'static,
    ) -> Result<T> {
        let volume = self.id.to_string();
        self.ask(GIVE_UP, move |reply: SyncSender<Result<T>>| {
            Job::Look(Box::new(move |stack| {
                let done = stack.and_then(Stack::nfs).map(f);
                // Nobody waits any more: nothing to tell.
                let _ = reply.send(done.ok_or_else(|| NodeError::Refused {
                    volume,
                    why: "it is not exported from this node now".into(),
                }));
            }))
        })
    }

    /// The volume and its file system, where it is active.
    ///
    /// # Errors
    /// It is not active here.
    pub fn handles(&self) -> Result<(Arc<ReplicatedVolume>, Arc<Fs>)> {
        let volume = self.id.to_string();
        self.ask(GIVE_UP, move |reply: SyncSender<Result<_>>| {
            Job::Look(Box::new(move |stack| {
                // Nobody waits any more: nothing to tell.
                let _ = reply.send(stack.map(Stack::handles).ok_or_else(|| {
                    let why = "it is not active on this node now".into();
                    NodeError::Refused { volume, why }
                }));
            }))
        })
    }

    fn ask<T>(
        &self,
        patience: Duration,
        job: impl FnOnce(SyncSender<Result<T>>) -> Job,
    ) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        let busy = |why: &str| NodeError::Refused {
            volume: self.id.to_string(),
            why: why.to_owned(),
        };
        self.jobs
            .try_send(job(reply))
            .map_err(|_| busy("too many commands wait already"))?;
        answer
            .recv_timeout(patience)
            .unwrap_or_else(|_| Err(busy("no end in time; look at its status")))
    }

    /// Ends it in order.
    pub fn stop(&self) {
        // A full queue or a thread that is gone already: the join tells.
        let _ = self.jobs.send(Job::Quit);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic there was reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Worker {
    node: Weak<Node>,
    name: String,
    id: VolumeId,
    view: Arc<Mutex<View>>,
    stack: Option<Stack>,
    /// The reign began by a mount, and ends with it.
    by_use: bool,
    /// Since when a claim of its own could succeed.
    eligible: Option<Instant>,
    /// No attempt of its own before this.
    not_before: Instant,
    /// What it said last about not taking over: each thing once.
    said: Option<String>,
    /// Whether redundancy was missing when it looked last.
    degraded: Option<bool>,
    network: Network,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            match queue.recv_timeout(TICK) {
                Ok(Job::Promote(p, reply)) => {
                    // Nobody waits any more: done is done.
                    let _ = reply.send(self.promote(&p, None));
                }
                Ok(Job::Mount(m, reply)) => {
                    let done = self.mount(&m);
                    let mounted = done.is_ok();
                    if reply.send(done).is_err() && mounted {
                        self.unmount_unasked();
                    }
                }
                Ok(Job::GiveUp(reply)) => {
                    let _ = reply.send(self.give_up());
                }
                Ok(Job::Look(look)) => look(self.stack.as_ref()),
                Ok(Job::Quit) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_around();
        }
        if self.stack.is_some()
            && let Err(error) = self.give_up()
        {
            tracing::error!(volume = self.name, %error, "ending");
        }
    }

    fn prepare_network(&mut self) {
        if let Some((node, config)) = self.config() {
            let exporter = node.me().is_some_and(|n| n.is(NodeRole::Exporter));
            self.network.prepare(&config, exporter);
        }
    }

    fn config(&self) -> Option<(Arc<Node>, VolumeConfig)> {
        let node = self.node.upgrade()?;
        let config = node.config().volume(&self.name)?.clone();
        Some((node, config))
    }

    fn view(&self, f: impl FnOnce(&mut View)) {
        f(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stand(&self, standing: Standing) {
        self.view(|v| {
            v.standing = standing;
            v.since = Instant::now();
        });
    }

    /// Roles of the node may come and go with the configuration.
    fn keep_standing(&self, exporter: bool) {
        let standing = self
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .standing;
        match (standing, exporter) {
            (Standing::None, true) => self.stand(Standing::Standby),
            (Standing::Standby, false) => self.stand(Standing::None),
            _ => {}
        }
    }

    /// Whether its own agent serves a volume that is to be served no more: the command was given
    /// where this node was not heard, or while it took over.
    fn unwanted(&self) -> bool {
        self.config().is_some_and(|(node, config)| {
            config.driver == Driver::Automatic && node.wish(self.id) == Want::Stopped
        })
    }

    fn look_around(&mut self) {
        if self.stack.is_some() && self.unwanted() {
            if let Err(error) = self.give_up() {
                tracing::error!(volume = self.name, %error, "given up, not in order");
            }
            return;
        }
        if self.use_is_over() {
            return;
        }
        match &self.stack {
            Some(stack) => match stack.lost() {
                Some(why) => self.lose(why),
                None => {
                    let before = guard::now();
                    let (clients, active) = (stack.clients(), stack.report());
                    self.tell_guard(before, active.lease_left_ms);
                    if let Some(node) = self.node.upgrade() {
                        node.learn_clients(self.id, &clients);
                    }
                    let mounted = stack.mounted().map(Path::to_owned);
                    self.watch_redundancy(&active);
                    self.watch_scrub(&active);
                    self.view(|v| {
                        v.mounted = mounted;
                        v.clients = clients;
                        v.active = Some(active);
                    });
                }
            },
            None => {
                self.prepare_network();
                self.consider();
            }
        }
    }

    fn lose(&mut self, why: String) {
        tracing::error!(
            volume = self.name,
            why,
            "the volume is lost; serving no more"
        );
        if let Some(stack) = self.stack.take() {
            stack.abandon(|| self.unguard());
        }
        self.by_use = false;
        self.view(|v| {
            v.trouble = Some(why);
            v.active = None;
            v.mounted = None;
        });
        self.stand(Standing::Standby);
        self.not_before = Instant::now() + PAUSE;
    }

    fn consider(&mut self) {
        let Some((node, config)) = self.config() else {
            return;
        };
        let exporter = node.me().is_some_and(|n| n.is(NodeRole::Exporter));
        self.keep_standing(exporter);
        let wanted = node.wish(self.id) == Want::Served;
        if config.driver != Driver::Automatic || !exporter || !wanted || node.drained() {
            self.eligible = None;
            return;
        }
        if let Some(other) = node.other_driver(self.id, config.driver) {
            self.eligible = None;
            if self.said.as_ref() != Some(&other) {
                tracing::error!(volume = self.name, why = other, "not taking over");
                self.said = Some(other);
            }
            return;
        }
        let heard = node.candidates(self.id);
        match decide(node.name(), &heard, &config.prefer) {
            Decision::Leave => self.eligible = None,
            Decision::Hopeless(why) => {
                self.eligible = None;
                if self.said.as_ref() != Some(&why) {
                    tracing::warn!(volume = self.name, why, "nobody can take over");
                    self.said = Some(why);
                }
            }
            Decision::After(turn) => {
                self.said = None;
                let now = Instant::now();
                let since = *self.eligible.get_or_insert(now);
                if now.duration_since(since) >= turn && now >= self.not_before {
                    self.take_over(&config);
                }
            }
        }
    }

    fn take_over(&mut self, config: &VolumeConfig) {
        let p = Promote {
            volume: config.name.clone(),
            node: String::new(),
            take: false,
            wait: true,
            timeout_ms: ATTEMPT.as_millis() as u64,
            accept_data_loss: false,
        };
        // A failure was told as an event.
        let _ = self.promote(&p, Some(MoveKind::Takeover));
        self.eligible = None;
    }

    fn promote(&mut self, p: &Promote, why: Option<MoveKind>) -> Result<Move> {
        let Some((node, config)) = self.config() else {
            return Err(NodeError::NoSuchVolume(self.name.clone()));
        };
        if !node.me().is_some_and(|n| n.is(NodeRole::Exporter)) {
            return Err(NodeError::NotExporter(node.name().to_owned()));
        }
        let already = self.stack.is_some();
        let last = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(last)) = (already, &last.last_move) {
            if why.is_none() {
                node.set_wish(self.id, Want::Served);
            }
            // Wanted here also without its mount from now on.
            self.by_use = false;
            return Ok(last.clone());
        }
        drop(last);
        self.stand(Standing::Promoting);
        let done = self.try_promote(&node, &config, p, why);
        match done {
            Ok((stack, done)) => {
                let last = done.timeline.last().map_or(0.0, |(_, ms)| *ms);
                let text = format!(
                    "active on {}, generation {}, after {last} ms ({:?})",
                    done.node, done.generation, done.why
                );
                self.event(EventKind::Active, text);
                self.degraded = None;
                self.stack = Some(stack);
                self.view(|v| {
                    v.trouble = None;
                    v.last_move = Some(done.clone());
                });
                self.stand(Standing::Active);
                if why.is_none() {
                    node.set_wish(self.id, Want::Served);
                }
                Ok(done)
            }
            Err(e) => {
                self.not_before = Instant::now() + PAUSE;
                self.view(|v| v.trouble = Some(e.to_string()));
                self.stand(Standing::Standby);
                self.event(EventKind::Failed, format!("not active: {e}"));
                Err(e)
            }
        }
    }

    fn try_promote(
        &mut self,
        node: &Arc<Node>,
        config: &VolumeConfig,
        p: &Promote,
        why: Option<MoveKind>,
    ) -> Result<(Stack, Move)> {
        let mut timeline = Timeline::begin();
        let deadline = Instant::now() + Duration::from_millis(p.timeout_ms);
        let mut clients = node.clients_of(self.id);
        let mut kind = why.unwrap_or(MoveKind::Promoted);
        // A takeover of its own was decided from what the members say; who says that he is active
        // may be dead, and his word younger than his lease.
        if why.is_none()
            && let Some(holder) = node.holder(self.id)
        {
            if !p.take {
                return Err(NodeError::ActiveElsewhere {
                    volume: self.name.clone(),
                    node: holder,
                });
            }
            // And those that were its clients before: it may know less than all. Whatever it
            // answers, or does not: the members decide whether it still holds the volume.
            match self.take_from(node, &holder) {
                Ok(its) => clients.extend(its),
                Err(error) => {
                    tracing::warn!(volume = self.name, %error, "the former holder gave no word");
                }
            }
            kind = MoveKind::Planned;
            timeline.mark("given up by the former holder");
        }
        self.network.take(config)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let volume = node.attach(config, p, left)?;
        timeline.mark("claimed and recovered");
        let generation = volume.with(|u, _| u.generation());
        let held = Held {
            volume: self.name.clone(),
            id: self.id,
            generation,
            service: network::wanted(config).cloned(),
        };
        // In this order: a pause in between makes the lease seem shorter, never longer.
        let before = guard::now();
        let until = before.saturating_add(volume.status().lease_left.0);
        if let Err(why) = node.guard().active(held, until) {
            // Nothing was served yet: back with it, for others to have.
            let _ = volume.hand_back();
            return Err(NodeError::Refused {
                volume: self.name.clone(),
                why: format!("the supervisor cannot be told of it: {why}"),
            });
        }
        let around = Around {
            guard: Arc::clone(node.guard()),
            recorder: Arc::clone(node.recorder()),
        };
        let stack = Stack::start(config, volume, clients, around, &mut timeline)?;
        Ok((stack, timeline.done(node.name(), kind, generation.number)))
    }

    fn take_from(&self, node: &Arc<Node>, holder: &str) -> Result<Vec<SocketAddr>> {
        let ask = Ask::GiveUp {
            volume: self.name.clone(),
        };
        match node.ask(holder, &ask, GIVE_UP)? {
            Answer::Demoted { clients } => Ok(clients),
            Answer::Refused(why) => Err(NodeError::Told {
                node: holder.to_owned(),
                why,
            }),
            _ => Err(NodeError::Told {
                node: holder.to_owned(),
                why: "an answer to another question".into(),
            }),
        }
    }

    fn event(&self, kind: EventKind, text: String) {
        if let Some(node) = self.node.upgrade() {
            node.event(kind, Some(&self.name), text);
        }
    }

    /// Tells when redundancy is lost and when it is back.
    fn watch_redundancy(&mut self, active: &ActiveReport) {
        let degraded = active.failures_tolerated == 0;
        let before = self.degraded.replace(degraded);
        match (before, degraded) {
            (None | Some(false), true) => {
                let text = "no replica can be lost now without losing service or data";
                self.event(EventKind::Degraded, text.into());
            }
            (Some(true), false) => {
                self.event(EventKind::Redundant, "a replica can be lost again".into());
            }
            _ => {}
        }
    }

    fn watch_scrub(&self, active: &ActiveReport) {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let before = view.active.as_ref().and_then(|a| a.scrub.clone());
        drop(view);
        if let Some(text) = scrub::news(before.as_ref(), active.scrub.as_ref()) {
            self.event(EventKind::Scrub, text);
        }
    }

    /// Nothing is said of a lease that has run out: the silence says it.
    fn tell_guard(&self, before: BootMs, lease_left_ms: u64) {
        if let (1.., Some(node)) = (lease_left_ms, self.node.upgrade()) {
            node.guard()
                .lease(&self.name, before.saturating_add(lease_left_ms));
        }
    }

    /// Nothing is held here any more.
    fn unguard(&self) {
        if let Some(node) = self.node.upgrade() {
            node.guard().ended(&self.name);
        }
    }

    fn give_up(&mut self) -> Result<Vec<SocketAddr>> {
        let Some(stack) = self.stack.take() else {
            // It heard of the wish and was faster than the command, or was not active: which is
            // what is asked for, unless it ended badly.
            let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            return match &view.trouble {
                None => Ok(Vec::new()),
                Some(why) => Err(NodeError::Refused {
                    volume: self.name.clone(),
                    why: format!("it is not active on this node: {why}"),
                }),
            };
        };
        self.stand(Standing::Demoting);
        // The parent is told before the lease is handed back, or it would bring back an address
        // that had gone with a lapse, beside the successor's. Where the address stays it is not
        // told, and takes it away when the lease has run out.
        let (clients, ended) = stack.end(|| self.unguard());
        self.by_use = false;
        self.view(|v| {
            v.active = None;
            v.mounted = None;
            v.clients.clear();
            v.trouble = ended.as_ref().err().map(ToString::to_string);
        });
        self.stand(Standing::Standby);
        self.event(EventKind::GivenUp, "active here no longer".into());
        self.not_before = Instant::now() + PAUSE;
        ended.map(|()| clients)
    }
}
