//! Ways to members: connecting, falling back to another address, returning to the first, and links
//! that come and go while the volume is served.
//!
//! Each link has its addresses in the order of preference. An address that cannot be connected to,
//! or whose connections do not last, gives way to the next; while a later one is in use the earlier
//! ones are tried from time to time, and the link returns to them by itself. A log line tells of a
//! change, never of an attempt.
//!
//! Bounds: [`CONNECT_EVERY`] between two rounds of attempts, and [`SELDOM`] where nobody was there
//! for long; [`RETURN_AFTER`], doubled up to [`RETURN_AT_MOST`] each time that a return did not
//! last; two threads a link.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use trivet_protocol::io::FrameReader;
use trivet_transport::{Connection, Expect, TransportError};

use super::lease::Attendant;
use super::{Inner, spawn};
use crate::upstairs::LinkId;

/// A host that does not answer is given up after this long.
const CONNECT: Duration = Duration::from_millis(500);
/// One that does has this long to prove who it is; a busy machine may take a while.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Between two rounds of attempts to connect.
const CONNECT_EVERY: Duration = Duration::from_millis(100);
/// The same after [`OFTEN`] rounds in vain.
const SELDOM: Duration = Duration::from_millis(500);
/// Rounds in vain after which nobody is expected to be back at any moment.
const OFTEN: u32 = 300;
/// A connection that ended sooner says nothing for its address.
const LASTING: Duration = Duration::from_secs(2);
/// A link that uses a later address tries the earlier ones after this long.
pub const RETURN_AFTER: Duration = Duration::from_secs(5);
/// And at most this long, if returns do not last.
const RETURN_AT_MOST: Duration = Duration::from_secs(300);
/// How often links are looked after.
const LOOK: Duration = Duration::from_millis(500);

/// Where a link leads.
pub struct Way {
    /// Under TLS, who must be there.
    expect: Expect,
    node: String,
    addresses: Vec<SocketAddr>,
    /// The link came while the volume was served, and goes when its member does.
    passing: bool,
    /// Whoever added it still works on it.
    held: AtomicBool,
    gone: AtomicBool,
    road: Mutex<Road>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Which address is in use.
#[derive(Default)]
struct Road {
    /// Its place in the list, and since when.
    using: Option<(usize, Instant)>,
    /// What was used last, and what stood in the way last, for the log.
    last: Option<usize>,
    told: Option<String>,
    /// When the earlier addresses are tried again, and how long to wait after that.
    patience: Duration,
    returned: Option<Instant>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole after each statement.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way {
    /// A way with these addresses, the preferred one first.
    pub fn new(node: String, addresses: Vec<SocketAddr>, passing: bool) -> Arc<Way> {
        Arc::new(Way {
            expect: Expect::Node(node.clone()),
            node,
            addresses,
            passing,
            held: AtomicBool::new(passing),
            gone: AtomicBool::new(false),
            road: Mutex::new(Road {
                patience: RETURN_AFTER,
                ..Road::default()
            }),
            threads: Mutex::default(),
        })
    }

    /// Whoever added it is done: it goes when its member does.
    pub fn let_go(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// Waits for its threads, also for those that the others leave behind while it waits.
    fn join(&self) {
        loop {
            // Not under the lock: a thread that ends takes it to leave its helper here.
            let Some(thread) = lock(&self.threads).pop() else {
                return;
            };
            thread.thread().unpark();
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }

    fn connected(&self, link: LinkId, at: usize) {
        let mut road = lock(&self.road);
        road.using = Some((at, Instant::now()));
        if road.last.replace(at) != Some(at) && self.addresses.len() > 1 {
            tracing::info!(
                link = link.0,
                address = %self.addresses[at],
                preferred = at == 0,
                "a member is reached at another address"
            );
        }
    }

    /// Whether it is time to try the addresses before the one in use; if so, which.
    fn wants_back(&self) -> Option<Vec<SocketAddr>> {
        let mut road = lock(&self.road);
        let (at, since) = road.using.filter(|u| u.0 > 0)?;
        let due = since.max(road.returned.unwrap_or(since)) + road.patience;
        if Instant::now() < due {
            return None;
        }
        // A return that lasted makes the next one as quick as the first.
        let lasted = road
            .returned
            .is_none_or(|t| since.saturating_duration_since(t) > RETURN_AT_MOST);
        road.patience = match lasted {
            true => RETURN_AFTER,
            false => (road.patience * 2).min(RETURN_AT_MOST),
        };
        road.returned = Some(Instant::now());
        Some(self.addresses[..at].to_vec())
    }
}

impl Inner {
    /// Starts the threads of a link.
    pub(super) fn open_way(self: &Arc<Self>, link: LinkId, way: Arc<Way>) -> std::io::Result<()> {
        let i = link.index();
        let (reader, writer) = (self.clone(), self.clone());
        let (reading, writing) = (way.clone(), way.clone());
        let mut threads = lock(&way.threads);
        threads.push(spawn(format!("link-{i}"), move || {
            reader.run_link(link, &reading);
        })?);
        threads.push(spawn(format!("link-{i}-out"), move || {
            writer.links[i].run_writer(|| writer.over(&writing));
        })?);
        drop(threads);
        *lock(&self.ways[i]) = Some(way);
        Ok(())
    }

    /// Ends a link and waits until its threads have ended, so that its place can be used again.
    pub(super) fn close_way(&self, link: LinkId) {
        let Some(way) = lock(&self.ways[link.index()]).take() else {
            return;
        };
        way.gone.store(true, Ordering::Release);
        self.links[link.index()].close();
        way.join();
        self.with(|u, now| u.retire_link(now, link));
    }

    /// Ends all of them, at the end.
    pub(super) fn end_ways(&self) {
        for way in &self.ways {
            let way = lock(way).take();
            if let Some(way) = way {
                way.join();
            }
        }
    }

    fn over(&self, way: &Way) -> bool {
        self.stopped() || way.gone.load(Ordering::Acquire)
    }

    pub(super) fn way(&self, link: LinkId) -> Option<Arc<Way>> {
        lock(&self.ways[link.index()]).clone()
    }

    fn run_link(self: &Arc<Self>, link: LinkId, way: &Arc<Way>) {
        let (mut first, mut in_vain) = (0, 0u32);
        while !self.over(way) {
            let n = way.addresses.len();
            let reached = (0..n)
                .map(|i| (first + i) % n)
                .find_map(|i| Some((i, self.connect(way, way.addresses[i])?)));
            first = 0;
            match reached {
                Some((at, connection)) => {
                    in_vain = 0;
                    let began = Instant::now();
                    way.connected(link, at);
                    let refused = self.serve_with_lease(link, way, at, connection);
                    if refused.is_some() {
                        // Somebody has to do something first, and that is told.
                        in_vain = OFTEN;
                    }
                    self.tell_trouble(way, way.addresses[at], refused);
                    lock(&way.road).using = None;
                    if began.elapsed() < LASTING {
                        // Somebody listens there who is of no use; the others are tried before.
                        first = (at + 1) % n;
                    }
                }
                None => in_vain = in_vain.saturating_add(1),
            }
            if !self.over(way) {
                let often = in_vain < OFTEN;
                thread::park_timeout(if often { CONNECT_EVERY } else { SELDOM });
            }
        }
    }

    fn connect(&self, way: &Way, address: SocketAddr) -> Option<Connection> {
        let connected = self
            .security
            .connect_within(address, &way.expect, CONNECT, HANDSHAKE);
        match connected {
            Ok(connection) => Some(connection),
            // It is down, and comes back by itself; the volume's status says so.
            Err(TransportError::Connect { .. }) => None,
            Err(e) => {
                self.tell_trouble(way, address, Some(e.to_string()));
                None
            }
        }
    }

    /// What stays until somebody does something is told once, not ten times a second.
    fn tell_trouble(&self, way: &Way, address: SocketAddr, trouble: Option<String>) {
        let mut road = lock(&way.road);
        if let Some(why) = trouble.filter(|why| road.told.as_ref() != Some(why)) {
            tracing::warn!(volume = %self.volume, node = way.node, to = %address, why, "no connection");
            road.told = Some(why);
        }
    }

    /// A link's connection, with the one for renewals beside it, to the same address. The thread of
    /// the latter is not waited for: it may be busy connecting to a host that does not answer, for
    /// longer than the lease, while the link itself could stand again.
    fn serve_with_lease(
        self: &Arc<Self>,
        link: LinkId,
        way: &Arc<Way>,
        at: usize,
        connection: Connection,
    ) -> Option<String> {
        let ended = Arc::new(AtomicBool::new(false));
        let (inner, its_way, its_end) = (self.clone(), way.clone(), ended.clone());
        let renewals = spawn(format!("lease-{}", link.0), move || {
            inner.attend(link, &its_way, at, &its_end);
        });
        let refused = self.serve_link(link, way, connection);
        self.links[link.index()].lease.end(&ended);
        // Without that thread renewals went with the stream.
        if let Ok(thread) = renewals {
            thread.thread().unpark();
            let mut threads = lock(&way.threads);
            threads.retain(|t| !t.is_finished());
            threads.push(thread);
        }
        refused
    }

    /// Keeps the connection for renewals up until `ended`.
    fn attend(&self, link: LinkId, way: &Way, at: usize, ended: &AtomicBool) {
        let connect = || {
            let security = &self.security;
            security.connect_within(way.addresses[at], &way.expect, CONNECT, HANDSHAKE)
        };
        let attendant = Attendant {
            door: &self.links[link.index()].lease,
            connect: &connect,
            versions: self.versions,
            volume: self.volume,
            ended,
        };
        let member = || self.lock().upstairs.member_at(link);
        let answer = |frame| self.with_lease(|u, now| u.frame(now, link, frame));
        attendant.run(member, answer);
    }

    /// To the end of the connection; returns why the member will have none.
    fn serve_link(&self, link: LinkId, way: &Way, connection: Connection) -> Option<String> {
        let (reader, writer) = connection.split();
        self.links[link.index()].open(writer, self.versions);
        self.with(|u, now| u.link_up(now, link));
        let mut reader = FrameReader::with_versions(reader, self.versions);
        let mut agreed = 0;
        let mut refused = None;
        while !self.over(way) {
            match reader.next_frame() {
                Ok(frame) => {
                    // The first answer settles it; the rest only repeat it.
                    if agreed == 0 {
                        agreed = reader.version();
                        self.links[link.index()].speak(agreed);
                    }
                    self.with(|u, now| u.frame(now, link, frame));
                }
                Err(e) => {
                    tracing::debug!(link = link.0, error = %e, "connection to a member ended");
                    refused = e.is_refusal().then(|| e.to_string());
                    break;
                }
            }
        }
        self.links[link.index()].close();
        self.with(|u, now| u.link_down(now, link));
        refused
    }

    /// Returns links to their preferred address, takes those away whose member is gone, and opens
    /// those that members on known nodes lack.
    pub(super) fn look_after_links(self: &Arc<Self>) {
        while !self.stopped() {
            thread::park_timeout(LOOK);
            for link in (0..self.ways.len()).map(LinkId::from_index) {
                let Some(way) = self.way(link) else { continue };
                let preferred = way.wants_back().unwrap_or_default();
                let reached = |a| self.connect(&way, a).is_some();
                if preferred.into_iter().any(reached) {
                    // Its thread connects again, to the first address that answers.
                    self.links[link.index()].close();
                }
                let held = way.held.load(Ordering::Acquire);
                if way.passing && !held && self.lock().upstairs.is_done_with(link) {
                    self.close_way(link);
                }
            }
            self.open_missing();
        }
    }

    /// A second member on a node that is linked already (while one replaces the other, say) is
    /// reached where the first one is.
    fn open_missing(self: &Arc<Self>) {
        let missing = self.lock().upstairs.unlinked();
        for (member, node, beside) in missing {
            let Some(known) = self.way(beside) else {
                continue;
            };
            let Some(link) = self.with(|u, _| u.add_link(node.clone(), Some(member))) else {
                return;
            };
            let way = Way::new(node, known.addresses.clone(), true);
            way.let_go();
            if let Err(e) = self.open_way(link, way) {
                tracing::error!(error = %e, "no thread for a link");
                self.with(|u, now| u.retire_link(now, link));
            }
        }
    }
}
