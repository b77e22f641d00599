//! ONC RPC: messages, records, connections, and the threads that serve them.
//!
//! `message` knows heads, `record` the framing of a stream, `conn` one connection, `pool` the
//! threads, `gate` how many calls may wait at once, `hold` when replies may leave, `udp`
//! datagrams. Here: programs, how a call reaches one, and how its reply finds the way back, from
//! any thread, in any order.

pub mod conn;
pub mod gate;
pub mod hold;
pub mod message;
pub mod pool;
pub mod record;
pub mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::xdr::{Enc, XdrResult};
use conn::{Conn, Payload};
use hold::Hold;
use message::{AcceptStat, CallHead};
use pool::{Messages, Shared};

/// Largest reply to a datagram.
const MAX_DATAGRAM: usize = 8 << 10;

/// Where a call came from.
pub(crate) enum Origin {
    /// A connection.
    Tcp(Arc<Conn>, Arc<Shared>),
    /// A datagram.
    Udp(Arc<std::net::UdpSocket>, SocketAddr, SocketAddr),
    /// Nowhere: replies are counted and forgotten (fuzzing).
    Nowhere(SocketAddr, Arc<AtomicU64>),
}

/// The way back of one call. Dropped without a reply, the caller hears nothing, which is what the
/// design asks for while the volume is not held (the caller asks again).
pub struct Replier {
    origin: Origin,
    charged: usize,
    /// Says whether the reply may leave, if it is about files.
    hold: Option<Arc<Hold>>,
    /// Told how long the call took, of which stage, since when.
    timed: Option<(Timer, &'static str, Instant)>,
}

/// Told of each reply: the stage that the call belongs to, and nanoseconds from its receipt until
/// its reply was ready.
pub type Timer = Arc<dyn Fn(&'static str, u64) + Send + Sync>;

impl Replier {
    pub(crate) fn new(origin: Origin, bytes: usize) -> Replier {
        if let Origin::Tcp(conn, shared) = &origin {
            shared.charge(conn, bytes);
        }
        Replier {
            origin,
            charged: bytes,
            hold: None,
            timed: None,
        }
    }

    /// For a call that came from no socket, as if from `peer`; replies are counted only.
    pub fn nowhere(peer: SocketAddr, replies: Arc<AtomicU64>) -> Replier {
        Replier::new(Origin::Nowhere(peer, replies), 0)
    }

    /// The caller's address.
    pub fn peer(&self) -> SocketAddr {
        match &self.origin {
            Origin::Tcp(conn, _) => conn.peer,
            Origin::Udp(_, peer, _) | Origin::Nowhere(peer, _) => *peer,
        }
    }

    /// The address here that the call came to.
    pub fn local(&self) -> SocketAddr {
        match &self.origin {
            Origin::Tcp(conn, _) => conn.local,
            Origin::Udp(_, _, local) => *local,
            Origin::Nowhere(peer, _) => *peer,
        }
    }

    /// Whether the caller can no longer be answered.
    pub fn is_gone(&self) -> bool {
        match &self.origin {
            Origin::Tcp(conn, _) => conn.is_closed(),
            Origin::Udp(..) | Origin::Nowhere(..) => false,
        }
    }

    /// Counts `bytes` more as in flight until the reply is sent: the room that a reply will need.
    pub fn charge(&mut self, bytes: usize) {
        if let Origin::Tcp(conn, shared) = &self.origin {
            shared.charge(conn, bytes);
            self.charged += bytes;
        }
    }

    /// Sends a whole reply message.
    pub fn send(self, head: &[u8], payload: Option<Payload>) {
        self.queue(head, payload);
        if let Origin::Tcp(conn, shared) = &self.origin {
            shared.send_soon(conn);
        }
    }

    /// Queues a whole reply message; the caller sends it with [`Replier::flush`] after queueing
    /// others of the same connection.
    pub(crate) fn queue(&self, head: &[u8], payload: Option<Payload>) {
        if let Some((timer, stage, began)) = &self.timed {
            timer(
                stage,
                u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            );
        }
        let kept = self.hold.as_ref().filter(|h| !h.open());
        match (&self.origin, kept) {
            (Origin::Tcp(conn, shared), Some(hold)) => hold.keep(conn, shared, head, payload),
            (Origin::Udp(..) | Origin::Nowhere(..), Some(_)) => {}
            (Origin::Tcp(conn, shared), None) => {
                if !conn.is_closed() {
                    let bytes = conn.push(head, payload);
                    shared.charge(conn, bytes);
                }
            }
            (Origin::Udp(socket, peer, _), None) => {
                let mut whole = head.to_vec();
                for piece in payload.iter().flat_map(|p| &p.pieces) {
                    whole.extend_from_slice(piece);
                }
                if whole.len() <= MAX_DATAGRAM {
                    // A datagram that cannot be sent is a lost one: the caller repeats.
                    let _ = socket.send_to(&whole, peer);
                }
            }
            (Origin::Nowhere(_, replies), None) => {
                replies.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends what was queued on this call's connection.
    pub(crate) fn flush(&self) {
        if let Origin::Tcp(conn, shared) = &self.origin {
            shared.send_soon(conn);
        }
    }

    /// Number of the connection; 0 for datagrams.
    pub(crate) fn conn_id(&self) -> u64 {
        match &self.origin {
            Origin::Tcp(conn, _) => conn.id.0,
            Origin::Udp(..) | Origin::Nowhere(..) => 0,
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if let Origin::Tcp(conn, shared) = &self.origin {
            shared.discharge(conn, self.charged);
        }
    }
}

/// One call on its way through a program.
pub struct Call {
    /// Program, procedure, credential, arguments.
    pub head: CallHead,
    /// The way back.
    pub replier: Replier,
}

impl Call {
    /// Replies with results.
    pub fn reply(self, results: impl FnOnce(&mut Enc)) {
        let mut e = self.success();
        results(&mut e);
        self.replier.send(e.bytes(), None);
    }

    /// A reply that the caller completes and sends itself.
    pub fn success(&self) -> Enc {
        let mut e = Enc::with_capacity(256);
        message::encode_accepted(&mut e, self.head.xid, AcceptStat::Success);
        e
    }

    /// Replies without results.
    pub fn refuse(self, stat: AcceptStat) {
        let mut e = Enc::with_capacity(32);
        message::encode_accepted(&mut e, self.head.xid, stat);
        self.replier.send(e.bytes(), None);
    }

    /// Replies with results if the arguments could be decoded, else that they are garbage.
    pub fn with_args<A>(self, args: XdrResult<A>, then: impl FnOnce(Call, A)) {
        match args {
            Ok(a) => then(self, a),
            Err(_) => self.refuse(AcceptStat::GarbageArgs),
        }
    }
}

/// A remote program.
pub trait Program: Send + Sync {
    /// Its number.
    fn number(&self) -> u32;
    /// Lowest and highest version served; all between are.
    fn versions(&self) -> (u32, u32);
    /// Serves a call of one of these versions. It must answer, now or later, or mean not to.
    fn call(&self, call: Call);
    /// Whether what it replies to a procedure is about files, and leaves only while the volume is
    /// held.
    fn held(&self, procedure: u32) -> bool;
    /// The stage under which a procedure's time is counted.
    fn stage(&self, _procedure: u32) -> &'static str {
        "nfs.aside"
    }
    /// The calls that arrived together have been handled.
    fn turn_ended(&self) {}
    /// A connection ended.
    fn ended(&self, _conn: &Conn) {}
}

/// Counters of what was refused on the RPC level.
#[derive(Debug, Default)]
pub struct RpcCounters {
    /// Calls that reached a program.
    pub calls: AtomicU64,
    /// Messages whose head was no call's.
    pub unreadable: AtomicU64,
    /// Calls refused for their credential or RPC version.
    pub denied: AtomicU64,
    /// Calls of programs or versions that are not served.
    pub unavailable: AtomicU64,
}

/// Says which addresses are expected to call.
pub type Expected = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// The programs behind one listener.
pub struct Programs {
    programs: Vec<Arc<dyn Program>>,
    expected: Expected,
    hold: Option<Arc<Hold>>,
    timer: Option<Timer>,
    /// What was refused.
    pub counters: RpcCounters,
}

impl Programs {
    /// These programs; `expected` tells clients from strangers.
    pub fn new(programs: Vec<Arc<dyn Program>>, expected: Expected) -> Programs {
        Programs {
            programs,
            expected,
            hold: None,
            timer: None,
            counters: RpcCounters::default(),
        }
    }
}

impl Programs {
    /// Lets replies about files leave only when `hold` says so.
    pub fn with_hold(self, hold: &Arc<Hold>) -> Programs {
        let hold = Some(Arc::clone(hold));
        Programs { hold, ..self }
    }

    /// Tells `timer` how long calls take.
    pub fn with_timer(self, timer: Option<Timer>) -> Programs {
        Programs { timer, ..self }
    }
}

impl Messages for Programs {
    fn message(&self, message: Bytes, replier: Replier) {
        let began = self.timer.as_ref().map(|_| Instant::now());
        let head = match CallHead::decode(message) {
            Ok(h) => h,
            Err(e) => {
                let mut reply = Enc::with_capacity(32);
                match message::encode_denied(&mut reply, e) {
                    Some(()) => {
                        self.counters.denied.fetch_add(1, Ordering::Relaxed);
                        replier.send(reply.bytes(), None);
                    }
                    None => {
                        self.counters.unreadable.fetch_add(1, Ordering::Relaxed);
                        if let Origin::Tcp(conn, _) = &replier.origin {
                            conn.close();
                        }
                    }
                }
                return;
            }
        };
        let mut call = Call { head, replier };
        let wanted = |p: &&Arc<dyn Program>| p.number() == call.head.program;
        let Some(program) = self.programs.iter().find(wanted) else {
            self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
            return call.refuse(AcceptStat::ProgramUnavailable);
        };
        let (low, high) = program.versions();
        if !(low..=high).contains(&call.head.version) {
            self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
            return call.refuse(AcceptStat::ProgramMismatch { low, high });
        }
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        if program.held(call.head.procedure) {
            call.replier.hold.clone_from(&self.hold);
        }
        if let (Some(timer), Some(began)) = (&self.timer, began) {
            let stage = program.stage(call.head.procedure);
            call.replier.timed = Some((Arc::clone(timer), stage, began));
        }
        program.call(call);
    }

    fn expected(&self, peer: SocketAddr) -> bool {
        (self.expected)(peer)
    }

    fn turn_ended(&self) {
        for p in &self.programs {
            p.turn_ended();
        }
    }

    fn ended(&self, conn: &Conn) {
        for p in &self.programs {
            p.ended(conn);
        }
    }
}
