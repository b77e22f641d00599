//! A connection: a half that reads, for one thread, and a half that writes, for many. Plain, or
//! TLS; whoever uses it need not know which.
//!
//! **Locks.** Under TLS both directions share one state. The reader takes ciphertext from the
//! socket without any lock and decrypts it under [`Tls::state`]. A writer holds [`Tls::out`] for
//! as long as it writes, and the state only while it encrypts: so what is encrypted first is sent
//! first, and a full socket holds up no reader. Order: `out`, then `state`; the reader takes
//! `state` alone. Neither direction ever waits for the other.
//!
//! **Copies** that TLS adds to a payload: sending, one into the record that is encrypted in place
//! and one into the buffer that is sent; receiving, one into the record that is decrypted in place
//! and two on its way to the caller.
//!
//! **End.** The end of the TCP stream counts as the end, with or without TLS's own: what Trivet
//! sends has its lengths in it, so a stream cut short is noticed above.
//!
//! Bounds: 64 KiB of text is encrypted at a time, and nothing more before it is sent; ciphertext
//! is read 64 KiB at a time.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::peers::{Peer, Registered};

/// Text encrypted before it is sent, and ciphertext read at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// A peer that acknowledges nothing for this long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(4);
/// A silent connection is probed after this long, and that often.
const PROBE: Duration = Duration::from_secs(10);

/// Both halves share it.
struct Shared {
    socket: TcpStream,
    address: SocketAddr,
    peer: Peer,
    tls: Option<Tls>,
    /// Reads fail after this many nanoseconds since `born`; zero: never.
    deadline: AtomicU64,
    born: Instant,
    _registered: Option<Registered>,
}

struct Tls {
    state: Mutex<rustls::Connection>,
    out: Mutex<Outgoing>,
}

/// Ciphertext on its way out.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn send(&mut self, socket: &TcpStream, flags: SendFlags) -> io::Result<()> {
        while !self.is_empty() {
            match send(socket, &[IoSlice::new(&self.bytes[self.sent..])], flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // After a panic inside the TLS library its state refuses to go on by itself, or the peer
    // finds the record damaged: in both cases the connection ends.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &TcpStream, parts: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
    let mut control = SendAncillaryBuffer::default();
    let flags = flags | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, parts, &mut control, flags)?)
}

/// Options of every socket between nodes.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let probes = socket2::TcpKeepalive::new()
        .with_time(PROBE)
        .with_interval(PROBE);
    socket.set_tcp_keepalive(&probes)
}

/// A connection whose other end is known. See the module's head.
pub struct Connection {
    shared: Arc<Shared>,
}

impl Connection {
    pub(crate) fn new(
        socket: TcpStream,
        address: SocketAddr,
        peer: Peer,
        tls: Option<rustls::Connection>,
        registered: Option<Registered>,
    ) -> Connection {
        let tls = tls.map(|mut state| {
            state.set_buffer_limit(Some(CHUNK));
            Tls {
                state: Mutex::new(state),
                out: Mutex::default(),
            }
        });
        Connection {
            shared: Arc::new(Shared {
                socket,
                address,
                peer,
                tls,
                deadline: AtomicU64::new(0),
                born: Instant::now(),
                _registered: registered,
            }),
        }
    }

    /// Who is on the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// Where the other end is.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The two halves. The connection ends when both are dropped, or one is shut down.
    pub fn split(self) -> (Reader, Writer) {
        let cipher = match self.shared.tls {
            Some(_) => vec![0; CHUNK],
            None => Vec::new(),
        };
        let reader = Reader {
            shared: self.shared.clone(),
            cipher,
            start: 0,
            end: 0,
        };
        (
            reader,
            Writer {
                shared: self.shared,
            },
        )
    }
}

/// The half that reads; for one thread.
pub struct Reader {
    shared: Arc<Shared>,
    /// Ciphertext, not yet decrypted from `start` to `end`.
    cipher: Vec<u8>,
    start: usize,
    end: usize,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.shared.tls else {
            return self.shared.receive(out);
        };
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let mut from = &self.cipher[self.start..self.end];
            let got = decrypt(&mut lock(&tls.state), &mut from, out)?;
            self.start = self.end - from.len();
            if got > 0 {
                return Ok(got);
            }
            (self.start, self.end) = (0, self.shared.receive(&mut self.cipher)?);
            if self.end == 0 {
                return Ok(0);
            }
        }
    }
}

/// As much text as there is room for and ciphertext gives; no waiting. `from` moves on.
fn decrypt(state: &mut rustls::Connection, from: &mut &[u8], out: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    loop {
        match state.reader().read(&mut out[got..]) {
            Ok(0) => return Ok(got),
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if got == out.len() || from.is_empty() {
            return Ok(got);
        }
        state.read_tls(from)?;
        state.process_new_packets().map_err(damaged)?;
    }
}

/// What the other side's alert means to a person; `PermissionDenied` if it knows us not.
fn damaged(e: rustls::Error) -> io::Error {
    use rustls::AlertDescription as Alert;
    let refused = match &e {
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::CertificateUnknown | Alert::BadCertificate | Alert::AccessDenied
        ),
        _ => false,
    };
    if refused {
        let why = "it refused this node's key; is that in its list of peers?";
        return io::Error::new(io::ErrorKind::PermissionDenied, why);
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, format!("TLS: {e}"))
}

impl Reader {
    /// Where the other end is.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// From now on reads fail with `TimedOut` at this time; `None`: never. A peer that sends a
    /// byte now and then does not gain time.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        self.shared.set_deadline(at)
    }

    /// Who is on the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }
}

impl Shared {
    fn set_deadline(&self, at: Option<Instant>) -> io::Result<()> {
        let nanos = at.map_or(0, |at| {
            let since = at.saturating_duration_since(self.born).as_nanos();
            u64::try_from(since).unwrap_or(u64::MAX).max(1)
        });
        self.deadline.store(nanos, Ordering::Release);
        match at {
            Some(_) => Ok(()),
            None => self.socket.set_read_timeout(None),
        }
    }

    fn receive(&self, out: &mut [u8]) -> io::Result<usize> {
        let deadline = self.deadline.load(Ordering::Acquire);
        if deadline != 0 {
            let at = self.born + Duration::from_nanos(deadline);
            self.socket.set_read_timeout(Some(time_left(at)?))?;
        }
        match (&self.socket).read(out) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"))
            }
            other => other,
        }
    }
}

/// Until `at`; never zero, which sockets take for no limit.
pub(crate) fn time_left(at: Instant) -> io::Result<Duration> {
    let left = at.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
    }
    Ok(left)
}

/// The half that writes. Clones write to the same connection, one at a time.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// Takes as much as goes without waiting, and says how much. Under TLS the last of it may
    /// still be on its way out of this process: [`Writer::try_flush`] says so.
    ///
    /// # Errors
    /// `WouldBlock`: the socket is full ([`Writer::wait_writable`]). Else the connection is over.
    pub fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.shared.tls else {
            return send(&self.shared.socket, parts, SendFlags::DONTWAIT);
        };
        let mut out = lock(&tls.out);
        out.send(&self.shared.socket, SendFlags::DONTWAIT)?;
        let taken = tls.encrypt(&mut out, parts)?;
        match out.send(&self.shared.socket, SendFlags::DONTWAIT) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// Sends on what [`Writer::try_write`] took; without waiting.
    ///
    /// # Errors
    /// `WouldBlock`: something is left. Else the connection is over.
    pub fn try_flush(&self) -> io::Result<()> {
        match &self.shared.tls {
            Some(tls) => lock(&tls.out).send(&self.shared.socket, SendFlags::DONTWAIT),
            None => Ok(()),
        }
    }

    /// Whether something that was taken is still on its way out of this process.
    pub fn has_pending(&self) -> bool {
        let tls = self.shared.tls.as_ref();
        tls.is_some_and(|tls| !lock(&tls.out).is_empty())
    }

    /// Takes something and sends it, waiting as long as [`Writer::set_write_timeout`] allows.
    ///
    /// # Errors
    /// The connection is over, or the peer takes nothing.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.shared.tls else {
            return send(&self.shared.socket, parts, SendFlags::empty());
        };
        let mut out = lock(&tls.out);
        out.send(&self.shared.socket, SendFlags::empty())?;
        let taken = tls.encrypt(&mut out, parts)?;
        out.send(&self.shared.socket, SendFlags::empty())?;
        Ok(taken)
    }

    /// How long a [`Writer::write`] may wait for the peer to take anything at all.
    ///
    /// # Errors
    /// The socket is gone, or the time is zero.
    pub fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
        self.shared.socket.set_write_timeout(Some(limit))
    }

    /// Waits until there is room, or something else is to be known, at most this long.
    pub fn wait_writable(&self, limit: Duration) {
        let mut fds = [PollFd::new(&self.shared.socket, PollFlags::OUT)];
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // Whatever it says, the next write tells how things stand.
        let _ = poll(&mut fds, Some(&limit));
    }

    /// Ends the connection, whoever uses either half.
    pub fn shutdown(&self) {
        // Closed already is as good.
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }

    /// Who is on the other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }
}

impl Tls {
    /// Encrypts as much of `parts` as the bounds allow; `out` is empty before.
    fn encrypt(&self, out: &mut Outgoing, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = lock(&self.state);
        let taken = state.writer().write_vectored(parts)?;
        while state.wants_write() {
            state.write_tls(&mut out.bytes)?;
        }
        Ok(taken)
    }
}
