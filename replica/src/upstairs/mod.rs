//! The upstairs: one owner of a volume's order, as a synchronous state machine.
//!
//! Time, frames and callers' wishes come in as method arguments; what is to be done comes out as
//! [`Effect`]s. No clock, no random number, no thread, no socket in here: the very code that
//! ships runs in the simulation.
//!
//! Where each invariant of the design is kept:
//! - 1 one writer: [`activate`] claims a number above every one heard; members refuse others.
//! - 2 nothing stale: [`lease`]; every completion passes [`Upstairs::complete`], which holds it
//!   back unless the lease is valid at that moment.
//! - 3 durable: a flush completes only at the commit position ([`Upstairs::advance`]).
//! - 4, 5 one history of atomic batches: [`history`].
//! - 6 recorded, counted twice while it changes: [`membership`].
//! - 7 end to end: [`reads`] verifies and repairs.
//! - 10 bounded: [`Limits`]; a full queue answers [`Submitted::Full`] and the caller waits.
//! - 11 never all: [`activate`] needs a majority and n-w+1 of the in-sync set.
//!
//! A crash here loses what was completed but not flushed, and nothing else: everything else that
//! matters is on the members.

mod activate;
mod allowance;
mod change;
mod history;
mod lease;
mod links;
mod membership;
mod pace;
mod peer;
mod reads;
mod reign;
mod resync;
mod scarce;
mod scrub;
mod status;
mod stream;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::message::{self, Refusal, Reply, Request};
use trivet_protocol::{Generation, MemberId, Now, Record, Seq};

pub use change::ChangeError;
pub use history::{OutFrame, Prepared};
pub use links::MAX_LINKS;
pub use peer::LinkId;
pub use resync::ResyncStatus;
pub use scrub::{Finding, MAX_FINDINGS, Matter, ScrubStatus};
pub use status::{MemberStatus, Status};
pub use types::*;

use crate::volume::{Receipt, Ticket, VolumeError};
use activate::Activation;
use history::History;
use membership::Pending;
use pace::Pace;
use peer::Peer;
use reads::Reads;
use scarce::{Room, Scarce};
use scrub::Scrub;

/// Life of an upstairs. Transitions go through [`Upstairs::enter`]:
/// Idle → Asking ⇄ Waiting, Asking → Claiming → Leveling → Settling → Active; Claiming and
/// Leveling may fall back to Asking; everything may end in Stopped or (on failure) Idle.
#[derive(Debug)]
enum Phase {
    Idle,
    Activating(Activation),
    Active,
    /// For ever; holds what callers are told.
    Stopped(String),
}

/// See the module's head.
#[derive(Debug)]
pub struct Upstairs {
    config: Config,
    phase: Phase,
    generation: Generation,
    /// The settled record; a placeholder is never acted upon before one was heard.
    record: Option<Record>,
    /// The last record while a new reign is being prepared.
    kept: Option<Record>,
    pending: Option<Pending>,
    /// A replica (or witness) that is to give its place to another one, once that is level.
    replacing: Option<(MemberId, MemberId)>,
    peers: Vec<Peer>,
    history: History,
    commit: Seq,
    /// Flushes that wait for the commit position to reach a place.
    flushes: BTreeMap<Seq, Vec<WaitId>>,
    reads: Reads,
    scarce: Scarce,
    scrub: Option<Scrub>,
    pace: Pace,
    next_request: u64,
    asked: BTreeMap<u64, Asked>,
    /// Completions held back while the lease is not valid (invariant 2).
    withheld: Vec<Effect>,
    lapsed_since: Option<Now>,
    room_wanted: bool,
    /// A new reign is being prepared: see [`reign`].
    renewing: bool,
    renewing_since: Now,
    last_renew: Now,
    last_sync: Now,
    last_record: Now,
    single_copy_told: bool,
    /// When the reign began to serve.
    serving_since: Now,
    out: Vec<Effect>,
}

/// A control request that is not answered yet.
#[derive(Debug)]
struct Asked {
    link: LinkId,
    sent: Now,
    what: Ask,
}

#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Hello,
    Claim,
    Renew,
    PutRecord,
    HandBack,
    Cut,
    Fetch,
    BeginResync,
    FinishResync,
    /// For the resync of this replica.
    ChangedAtSource(LinkId),
    ChangedAtTarget,
    SumsAtSource(LinkId, u64),
    SumsAtTarget(u64),
    /// Which blocks are written: see [`scarce`].
    Written,
    /// What is to be looked at, and a job's range: see [`scrub`].
    ScrubList,
    Scrub(u64),
}

impl Upstairs {
    /// An upstairs that does nothing yet. Links are reported by [`Upstairs::link_up`].
    pub fn new(config: Config) -> Upstairs {
        let links = config.links.iter().take(MAX_LINKS);
        let peers = links.map(|n| Peer::new(n.clone())).collect();
        let pace = Pace::new(config.limits.window_bytes);
        Upstairs {
            config,
            phase: Phase::Idle,
            generation: Generation::NONE,
            record: None,
            kept: None,
            pending: None,
            replacing: None,
            peers,
            history: History::default(),
            commit: Seq::ZERO,
            flushes: BTreeMap::new(),
            reads: Reads::default(),
            scarce: Scarce::default(),
            scrub: None,
            pace,
            next_request: 1,
            asked: BTreeMap::new(),
            withheld: Vec::new(),
            lapsed_since: None,
            room_wanted: false,
            renewing: false,
            renewing_since: Now::default(),
            last_renew: Now::default(),
            last_sync: Now::default(),
            last_record: Now::default(),
            single_copy_told: false,
            serving_since: Now::default(),
            out: Vec::new(),
        }
    }

    /// Takes what is to be done, in order.
    pub fn effects(&mut self) -> std::vec::Drain<'_, Effect> {
        self.out.drain(..)
    }

    /// The volume's record as far as it is settled.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref().or(self.kept.as_ref())
    }

    /// The reign; number 0 before the first claim.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether it serves.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Whether callers may wait here: it is active, or about to be again.
    fn serves(&self) -> bool {
        self.is_active() || self.renewing
    }

    /// The newest place in the history.
    pub fn last(&self) -> Seq {
        self.history.last()
    }

    /// Where each generation of the history ended.
    pub fn table(&self) -> &trivet_protocol::GenerationTable {
        self.history.table()
    }

    /// Whether every replica that flows was told the commit position, so that it can move all it
    /// has from its log.
    pub fn commit_is_told(&self) -> bool {
        let flowing = || self.peers.iter().filter(|p| p.flows());
        flowing().all(|p| p.commit_told >= self.commit && p.durable >= self.commit)
    }

    /// Known durable on enough replicas.
    pub fn commit(&self) -> Seq {
        self.commit
    }

    fn notice(&mut self, n: Notice) {
        self.out.push(Effect::Notice(n));
    }

    fn not_active(&self) -> VolumeError {
        VolumeError::NotActive(match &self.phase {
            Phase::Stopped(why) => why.clone(),
            _ => "it was not promoted here".into(),
        })
    }

    // ---- callers ----

    /// Orders a batch (invariants 4 and 5). It is checked against the volume's size before.
    pub fn submit(&mut self, now: Now, batch: &Arc<Prepared>) -> Submitted {
        if !self.serves() {
            return Submitted::Failed(self.not_active());
        }
        if self.renewing || !self.lease_valid(now) || self.window_full() {
            self.room_wanted = true;
            return Submitted::Full;
        }
        // What gives back more than it takes is never refused: pools keep a reserve, and to refuse
        // a deletion would leave a full one full.
        if !batch.frees()
            && let Some(e) = self.no_credit(batch.data_len() as u64)
        {
            match self.room_for(now, batch, e) {
                Room::Overwrites => {}
                Room::Asking => {
                    self.room_wanted = true;
                    return Submitted::Full;
                }
                Room::None(e) => return Submitted::Failed(e),
            }
        }
        self.scarce.ordered(batch);
        self.scrub_ordered(batch);
        let seq = self.history.push(self.generation.number, batch.clone());
        self.pump_all();
        Submitted::At(seq)
    }

    fn window_full(&self) -> bool {
        let limits = &self.config.limits;
        self.history.bytes_after(self.commit) >= limits.window_bytes
            || self.history.bytes() >= limits.retain_bytes
    }

    /// Answers `wait` with [`Effect::Flushed`] once everything up to `upto` is durable.
    pub fn flush(&mut self, now: Now, upto: Seq, wait: WaitId) {
        if !self.serves() {
            self.out.push(Effect::Flushed(wait, Err(self.not_active())));
        } else if upto <= self.commit && !self.below_policy() {
            self.complete(now, Effect::Flushed(wait, Ok(self.receipt())));
        } else {
            self.flushes
                .entry(upto.min(self.last()))
                .or_default()
                .push(wait);
            self.request_sync(now);
        }
    }

    fn receipt(&self) -> Receipt {
        Receipt::by_flush_path(Ticket(self.commit))
    }

    /// Lets a completion out if the lease is valid at this moment, else keeps it (invariant 2).
    fn complete(&mut self, now: Now, effect: Effect) {
        if self.lease_valid(now) || breaks_read_after_lease(&effect) {
            self.out.push(effect);
        } else {
            self.withheld.push(effect);
        }
    }

    /// Recomputes the commit position and completes what waited for it.
    fn advance(&mut self, now: Now) {
        if !self.is_active() {
            return;
        }
        let reached = self.durable_position();
        if reached > self.commit {
            self.commit = reached;
            self.pace.durable(now, reached);
            self.answer_flushes(now);
        }
        // Also where nothing new is durable on enough: what was kept for the last to follow may
        // have been what left no room.
        self.release_history();
        self.offer_room(now);
    }

    /// Answers the flushes that the commit position has reached.
    fn answer_flushes(&mut self, now: Now) {
        if self.below_policy() {
            return;
        }
        let waiting = self.flushes.split_off(&self.commit.next());
        let done = std::mem::replace(&mut self.flushes, waiting);
        let receipt = self.receipt();
        for wait in done.into_values().flatten() {
            self.complete(now, Effect::Flushed(wait, Ok(receipt)));
        }
    }

    fn offer_room(&mut self, now: Now) {
        let open = !self.renewing && self.lease_valid(now) && !self.window_full();
        if self.room_wanted && open {
            self.room_wanted = false;
            self.out.push(Effect::Room);
        }
    }

    /// Ends for ever: every caller is answered with an error.
    fn stop(&mut self, why: String) {
        self.phase = Phase::Stopped(why);
        self.renewing = false;
        for peer in &mut self.peers {
            peer.lease_from = None;
        }
        let error = self.not_active();
        self.withheld.clear_into(&mut self.out, &error);
        for wait in std::mem::take(&mut self.flushes).into_values().flatten() {
            self.out.push(Effect::Flushed(wait, Err(error.clone())));
        }
        for wait in self.reads.end() {
            self.out.push(Effect::Read(wait, Err(error.clone())));
        }
        self.out.push(Effect::Room);
    }

    /// Gives the volume back: the caller has flushed. Members are told that the promise ends.
    pub fn hand_back(&mut self, now: Now) {
        if matches!(self.phase, Phase::Stopped(_)) {
            return;
        }
        for link in self.links() {
            if self.peer(link).granted {
                self.ask(now, link, Ask::HandBack, &Request::HandBack);
            }
        }
        self.stop("it was handed back".into());
    }

    /// Whether members still have to confirm that they stored the hand-back. A claim that is still
    /// on its way is handed back once it is answered.
    pub fn handing_back(&self) -> bool {
        let ends = |a: &Asked| matches!(a.what, Ask::HandBack | Ask::Claim);
        self.asked.values().any(|a| ends(a) && self.peer(a.link).up)
    }

    // ---- frames ----

    fn header(&self, kind: Kind, seq: u64) -> Header {
        let mut header = Header::new(kind, self.generation, seq);
        header.commit = self.commit;
        header.trim = self.trim_position();
        header
    }

    fn send(&mut self, link: LinkId, header: Header, meta: Bytes) {
        let frame = Frame {
            header,
            meta,
            data: Vec::new(),
        };
        self.out
            .push(Effect::Send(link, OutFrame { frame, crc: None }));
    }

    fn ask(&mut self, now: Now, link: LinkId, what: Ask, request: &Request) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.asked.insert(
            id,
            Asked {
                link,
                sent: now,
                what,
            },
        );
        let header = self.header(Kind::Request, id);
        if let Request::Renew = request {
            let frame = Frame {
                header,
                meta: message::encode(request),
                data: Vec::new(),
            };
            let out = OutFrame { frame, crc: None };
            self.out.push(Effect::Renew(link, out));
        } else {
            self.send(link, header, message::encode(request));
        }
        id
    }

    /// A connection to a member stands.
    pub fn link_up(&mut self, now: Now, link: LinkId) {
        let Some(peer) = self.peers.get_mut(link.index()).filter(|p| !p.retired) else {
            return;
        };
        peer.connected(now);
        self.hello(now, link);
    }

    fn hello(&mut self, now: Now, link: LinkId) {
        let (volume, node) = (self.config.volume, self.config.node.clone());
        let member = self.peer(link).member.or(self.peer(link).expected);
        self.ask(
            now,
            link,
            Ask::Hello,
            &Request::Hello {
                volume,
                member,
                node,
            },
        );
    }

    /// A connection is gone; everything on its way is lost.
    pub fn link_down(&mut self, now: Now, link: LinkId) {
        let Some(peer) = self.peers.get_mut(link.index()) else {
            return;
        };
        peer.disconnected(now);
        self.asked.retain(|_, a| a.link != link);
        self.peer_mut(link).closing = false;
        self.scarce.link_lost(link);
        self.resync_link_lost(now, link);
        self.scrub_link_lost(now, link);
        self.reads_link_lost(now, link);
        self.activation_link_lost(now, link);
        // Less may be kept for it now.
        self.advance(now);
    }

    /// A frame arrived.
    pub fn frame(&mut self, now: Now, link: LinkId, frame: Frame) {
        if self
            .peers
            .get(link.index())
            .is_none_or(|p| !p.up || p.closing)
        {
            return;
        }
        match frame.header.kind {
            Kind::Durable => self.on_durable(now, link, &frame.header),
            Kind::ReadOk => self.on_read_ok(link, frame),
            Kind::LogEntry => self.on_log_entry(now, link, frame),
            Kind::Reply => match message::decode::<Reply>(&frame.meta) {
                Ok(reply) => self.on_reply(now, link, frame.header.seq, reply),
                Err(why) => self.refuse_link(link, why),
            },
            kind => self.refuse_link(link, format!("unexpected frame {kind:?} from a member")),
        }
    }

    /// A peer that talks nonsense is disconnected; the driver connects again, with back-off.
    fn refuse_link(&mut self, link: LinkId, why: String) {
        if std::mem::replace(&mut self.peer_mut(link).closing, true) {
            return;
        }
        self.tell_refused(link, why);
        self.out.push(Effect::Reset(link));
    }

    /// Asked again and again, on one connection after the other; said once.
    fn tell_refused(&mut self, link: LinkId, why: String) {
        let told = &mut self.peer_mut(link).told;
        if told.as_ref() != Some(&why) {
            *told = Some(why.clone());
            self.notice(Notice::LinkRefused { link, why });
        }
    }

    fn on_reply(&mut self, now: Now, link: LinkId, id: u64, reply: Reply) {
        // Answers to reads that failed come as replies too.
        if self.reads.asked.contains_key(&id) {
            return self.on_read_refused(now, link, id, reply);
        }
        // An answer to something no longer wanted (an earlier attempt) is dropped.
        let Some(asked) = self.asked.remove(&id) else {
            return self.on_unasked(now, link, id, reply);
        };
        if asked.link != link {
            return;
        }
        match reply {
            Reply::Sums(sums) if asked.what == Ask::Written => self.on_written(now, id, Some(sums)),
            Reply::Refused(_) if asked.what == Ask::Written => self.on_written(now, id, None),
            Reply::Refused(refusal) => self.on_refused(now, link, asked.what, refusal),
            Reply::Welcome(w) => self.on_welcome(now, link, asked.sent, w),
            Reply::Granted(w) => self.on_granted(now, link, asked.sent, w),
            Reply::Renewed => self.on_renewed(now, link, asked.sent),
            Reply::Recorded(version) => self.on_recorded(now, link, version),
            Reply::Fetched { .. } => self.on_fetched(now, link),
            Reply::Done => match asked.what {
                Ask::Cut => self.on_cut(link),
                Ask::BeginResync => self.on_resync_begun(now, link),
                Ask::FinishResync => self.on_resync_finished(now, link),
                _ => {}
            },
            Reply::Changed { ranges, next } if asked.what == Ask::ScrubList => {
                self.on_scrub_list(now, link, &ranges, next);
            }
            Reply::Scrubbed(found) => self.on_scrubbed(now, link, &asked.what, found),
            Reply::Changed { ranges, next } => {
                self.on_changed(now, link, &asked.what, ranges, next);
            }
            Reply::Sums(sums) => self.on_sums(now, link, &asked.what, sums),
        }
    }

    /// A refusal that answers a streamed frame (`Append`, `Sync`, `Copy`) has no request number.
    fn on_unasked(&mut self, now: Now, link: LinkId, id: u64, reply: Reply) {
        if let Reply::Refused(refusal) = reply {
            match refusal {
                Refusal::Fenced { .. } | Refusal::Removed(_) => {
                    self.on_refused(now, link, Ask::Renew, refusal);
                }
                // To something that is no longer wanted.
                _ if id != 0 => {}
                other => {
                    // Its disk is full or broken: it takes nothing more. It leaves the set when
                    // the stall bound passes; a new connection shows how it is then.
                    self.refuse_link(link, other.to_string());
                }
            }
        }
    }

    fn on_refused(&mut self, now: Now, link: LinkId, what: Ask, refusal: Refusal) {
        let gone = what == Ask::Hello && matches!(refusal, Refusal::NotHere(_));
        if gone && self.ask_who_is_there(now, link) {
            return;
        }
        // Renewals are in no order with claims: one of an earlier generation of ours may arrive
        // after the claim of the present one, and is refused in our own favour.
        if let Refusal::Fenced { promise, .. } = &refusal
            && what == Ask::Renew
            && *promise == self.generation
        {
            return;
        }
        self.scrub_refused(now, link, &what);
        match (&refusal, &self.phase) {
            (Refusal::Fenced { promise, holder }, Phase::Active)
                if promise.number > self.generation.number
                    || (promise.number == self.generation.number
                        && promise.claim != self.generation.claim) =>
            {
                let (holder, number) = (holder.clone(), promise.number);
                self.fenced_by(now, link, holder, number);
            }
            (Refusal::Removed(record), _) => {
                let record = record.clone();
                self.on_removed(now, link, *record);
            }
            // Whoever refuses to be handed back has no promise to us.
            _ if what == Ask::HandBack => {}
            (_, Phase::Activating(_)) => self.activation_refused(now, link, &what, refusal),
            _ => match what {
                // An earlier holder's promise still runs there: asked again until it has ended.
                Ask::Claim if matches!(refusal, Refusal::Leased { .. }) => {}
                Ask::Hello | Ask::Claim => {
                    let why = refusal.to_string();
                    self.peer_mut(link).refused = Some(why.clone());
                    self.tell_refused(link, why);
                }
                Ask::SumsAtTarget(id) if matches!(refusal, Refusal::Disk(_)) => {
                    self.target_sums_unknown(now, link, id);
                }
                Ask::BeginResync
                | Ask::FinishResync
                | Ask::ChangedAtSource(_)
                | Ask::ChangedAtTarget
                | Ask::SumsAtSource(..)
                | Ask::SumsAtTarget(_) => self.resync_failed(link, refusal.to_string()),
                // It is not looked at; what reads and writes is another matter.
                Ask::ScrubList | Ask::Scrub(_) => {}
                _ => self.refuse_link(link, refusal.to_string()),
            },
        }
    }

    /// Time passes; to be called at least every 10 ms or so. Drives renewals, time-outs, syncs.
    pub fn tick(&mut self, now: Now) {
        self.tick_activation(now);
        self.tick_renewals(now);
        self.tick_lease(now);
        if self.is_active() {
            self.tick_sync(now);
            self.tick_membership(now);
            self.tick_reads(now);
            self.tick_resync(now);
            self.tick_scrub(now);
            self.tick_reign(now);
            self.offer_room(now);
        }
    }

    fn links(&self) -> impl Iterator<Item = LinkId> + use<> {
        (0..self.peers.len()).map(LinkId::from_index)
    }

    fn peer(&self, link: LinkId) -> &Peer {
        &self.peers[link.index()]
    }

    fn peer_mut(&mut self, link: LinkId) -> &mut Peer {
        &mut self.peers[link.index()]
    }

    fn link_of(&self, member: MemberId) -> Option<LinkId> {
        self.links().find(|l| self.peer(*l).member == Some(member))
    }
}

/// Only under test: lets reads out after the lease.
fn breaks_read_after_lease(effect: &Effect) -> bool {
    use trivet_protocol::breaks::{self, Break};
    matches!(effect, Effect::Read(..)) && breaks::on(Break::ReadAfterLease)
}

trait ClearInto {
    fn clear_into(&mut self, out: &mut Vec<Effect>, error: &VolumeError);
}

impl ClearInto for Vec<Effect> {
    /// Turns completions that were never allowed out into failures.
    fn clear_into(&mut self, out: &mut Vec<Effect>, error: &VolumeError) {
        for effect in self.drain(..) {
            out.push(match effect {
                Effect::Flushed(wait, _) => Effect::Flushed(wait, Err(error.clone())),
                Effect::Read(wait, _) => Effect::Read(wait, Err(error.clone())),
                other => other,
            });
        }
    }
}
