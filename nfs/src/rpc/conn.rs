//! One TCP connection: what came in, what goes out, and how much of it is in flight.
//!
//! Invariants:
//! - Only the holder of the connection's *turn* takes messages from it; any thread may reply.
//! - A reply is one piece of the outbox, so replies never mix. Replies that are ready together
//!   leave in one `sendmsg`; small ones share one buffer.
//! - Sending never waits: what the socket does not take stays in the outbox until the socket is
//!   writable, and the outbox counts as bytes in flight.
//! - Bytes in flight are bounded per connection and over all: above the bound no more is received
//!   (invariant 10), so a client feels TCP's own backpressure and never an error reply.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::record::{Assembler, mark};

/// Number of a connection, never used twice while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Pieces handed to one `sendmsg`.
const MAX_PIECES: usize = 64;
/// A shared buffer for small replies is closed at this size.
const SMALL_BUFFER: usize = 32 << 10;

/// A payload of at most this many bytes is copied behind its head.
const COPY_BELOW: usize = 2 << 10;

/// What follows a reply's head: bytes that are sent from where they lie.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// In order.
    pub pieces: Vec<Bytes>,
    /// Sum of their lengths.
    pub bytes: usize,
}

impl Payload {
    /// Of these pieces.
    pub fn new(pieces: Vec<Bytes>) -> Payload {
        let bytes = pieces.iter().map(Bytes::len).sum();
        Payload { pieces, bytes }
    }

    fn fill(&self) -> usize {
        self.bytes.wrapping_neg() & 3
    }
}

/// Locks, also after a panic elsewhere: what these locks guard is whole at every step.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Replies being gathered behind `pieces`.
    small: Vec<u8>,
    /// A thread is in `sendmsg`; it will see what others add.
    sending: bool,
}

/// What became of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing is left to send, or another thread is at it.
    Done,
    /// The socket is full: send again when it is writable.
    Full,
    /// The connection is broken.
    Broken,
}

/// One TCP connection.
#[derive(Debug)]
pub struct Conn {
    /// Number.
    pub id: ConnId,
    /// The client.
    pub peer: SocketAddr,
    /// Its own address here.
    pub local: SocketAddr,
    /// Index of the listener that accepted it.
    pub listener: usize,
    pub(crate) socket: TcpStream,
    pub(crate) input: Mutex<Assembler>,
    outbox: Mutex<Outbox>,
    pub(crate) in_flight: AtomicUsize,
    /// Not received from, because too much is in flight.
    pub(crate) stalled: AtomicBool,
    /// Its address is one that no export lists.
    pub(crate) stranger: bool,
    closed: AtomicBool,
    /// Bytes of messages of which more is to come, as counted in the pool's sum.
    pub(crate) unfinished: AtomicUsize,
    /// Milliseconds since the server's start when they began to come.
    pub(crate) unfinished_since: AtomicU64,
    /// Milliseconds since the server's start at the last message.
    pub(crate) last_call_ms: AtomicU64,
}

impl Conn {
    pub(crate) fn new(
        id: ConnId,
        socket: TcpStream,
        peer: SocketAddr,
        listener: usize,
        limit: usize,
        stranger: bool,
    ) -> io::Result<Conn> {
        Ok(Conn {
            id,
            peer,
            local: socket.local_addr()?,
            listener,
            socket,
            input: Mutex::new(Assembler::new(limit)),
            outbox: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
            stranger,
            closed: AtomicBool::new(false),
            unfinished: AtomicUsize::new(0),
            unfinished_since: AtomicU64::new(0),
            last_call_ms: AtomicU64::new(0),
        })
    }

    /// Whether the connection has ended. A call of a closed connection that has not begun is
    /// dropped (design section 8).
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the connection; returns whether this call did it.
    pub fn close(&self) -> bool {
        let first = !self.closed.swap(true, Ordering::AcqRel);
        if first {
            // The peer may be gone already; there is nothing else to do then.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        first
    }

    /// Queues a reply: a head that is copied, and a payload that is not, already padded by
    /// `fill` zero bytes. Returns how many bytes that makes.
    pub fn push(&self, head: &[u8], payload: Option<Payload>) -> usize {
        let tail = payload.as_ref().map_or(0, |p| p.bytes + p.fill());
        let total = 4 + head.len() + tail;
        let mut out = lock(&self.outbox);
        out.small
            .extend_from_slice(&mark(head.len() + tail).to_be_bytes());
        out.small.extend_from_slice(head);
        let Some(payload) = payload else {
            return total;
        };
        let fill = payload.fill();
        if payload.bytes <= COPY_BELOW {
            // Copy: a short payload is cheaper to move than to list.
            for piece in &payload.pieces {
                out.small.extend_from_slice(piece);
            }
        } else {
            let small = std::mem::take(&mut out.small);
            out.pieces.push_back(Bytes::from(small));
            let full = payload.pieces.into_iter().filter(|p| !p.is_empty());
            out.pieces.extend(full);
        }
        out.small.extend_from_slice(&[0; 3][..fill]);
        total
    }

    /// Bytes waiting in the outbox are many enough to be sent at once.
    pub fn wants_send(&self) -> bool {
        let out = lock(&self.outbox);
        out.small.len() >= SMALL_BUFFER || out.pieces.len() >= 16
    }

    /// Sends what is queued, as far as the socket takes it. Never waits. Returns also how many
    /// bytes left the outbox.
    pub fn send(&self) -> (Sent, usize) {
        let mut out = lock(&self.outbox);
        let mut gone = 0;
        if out.sending {
            return (Sent::Done, 0);
        }
        loop {
            if !out.small.is_empty() {
                let small = std::mem::take(&mut out.small);
                out.pieces.push_back(Bytes::from(small));
            }
            if out.pieces.is_empty() {
                return (Sent::Done, gone);
            }
            out.sending = true;
            let n = out.pieces.len().min(MAX_PIECES);
            let mut batch: VecDeque<Bytes> = out.pieces.drain(..n).collect();
            let before: usize = batch.iter().map(Bytes::len).sum();
            drop(out);
            let result = self.send_pieces(&mut batch);
            gone += before - batch.iter().map(Bytes::len).sum::<usize>();
            out = lock(&self.outbox);
            out.sending = false;
            while let Some(piece) = batch.pop_back() {
                out.pieces.push_front(piece);
            }
            match result {
                Ok(()) => {}
                Err(rustix::io::Errno::AGAIN) => return (Sent::Full, gone),
                Err(_) => {
                    let lost = out.small.len() + out.pieces.iter().map(Bytes::len).sum::<usize>();
                    out.pieces.clear();
                    out.small.clear();
                    return (Sent::Broken, gone + lost);
                }
            }
        }
    }

    /// Sends pieces from the front until all are gone or the socket refuses.
    fn send_pieces(&self, batch: &mut VecDeque<Bytes>) -> rustix::io::Result<()> {
        while !batch.is_empty() {
            let slices: Vec<IoSlice<'_>> = batch.iter().map(|b| IoSlice::new(b)).collect();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = rustix::net::sendmsg(
                &self.socket,
                &slices,
                &mut SendAncillaryBuffer::default(),
                flags,
            );
            let mut n = match sent {
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e),
            };
            while n > 0
                && let Some(front) = batch.front_mut()
            {
                let cut = n.min(front.len());
                n -= cut;
                if cut == front.len() {
                    batch.pop_front();
                } else {
                    *front = front.slice(cut..);
                }
            }
        }
        Ok(())
    }
}
