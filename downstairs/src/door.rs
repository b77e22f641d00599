//! The listening side's door: accepts, makes sure who it is, and takes the first frame.
//!
//! Whoever has not got that far costs little: each has one total time ([`HELLO`]) for the handshake
//! and the first frame together, and there are at most [`MAX_WAITING`] of them. One more makes the
//! oldest leave: a thousand idle connections keep nobody out who speaks at once.
//!
//! Refusals are counted (`transport.refused`) and told once per address and minute.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use trivet_protocol::frame::{Frame, FrameError, Header, Kind, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter};
use trivet_protocol::message::{self, Refusal, Reply};
use trivet_protocol::{Generation, Recorder};
use trivet_transport::{Reader, Security, TransportError, Writer};

use crate::replica::ConnId;

/// Connections that got in, at once, at most.
pub const MAX_CONNECTIONS: usize = 1024;
/// Connections on their way in, at once, at most.
pub const MAX_WAITING: usize = 128;
/// The first frame is there within this time, the handshake included.
pub const HELLO: Duration = Duration::from_secs(5);
/// Threads at once, at most: who had to leave for another may take a moment to do so.
const MAX_THREADS: usize = MAX_CONNECTIONS + 2 * MAX_WAITING;
/// One line per address in this time.
const TELL: Duration = Duration::from_secs(60);
/// Addresses remembered for that, at most.
const MAX_TOLD: usize = 256;

/// A connection that got in.
pub(crate) struct Greeted {
    pub(crate) id: ConnId,
    /// What it began with.
    pub(crate) first: Frame,
    /// To be spoken.
    pub(crate) version: u16,
    pub(crate) reader: FrameReader<Reader>,
    pub(crate) writer: Writer,
}

/// Serves one connection to its end; what it returns is told as a refusal.
pub(crate) type Serve = Box<dyn Fn(Greeted) -> Result<(), String> + Send + Sync>;

/// See the module's head.
pub(crate) struct Door {
    inner: Arc<Inner>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    security: Security,
    versions: Versions,
    recorder: Arc<dyn Recorder>,
    serve: Serve,
    rooms: Mutex<Rooms>,
    told: Mutex<Told>,
    stop: AtomicBool,
}

/// Who is in, and who is on the way.
#[derive(Default)]
struct Rooms {
    next: u64,
    /// The oldest first.
    waiting: BTreeMap<u64, TcpStream>,
    inside: HashMap<u64, Writer>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole by itself.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a connection off the lists, however its thread ends.
struct Leaving<'a>(&'a Inner, u64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut rooms = lock(&self.0.rooms);
        rooms.waiting.remove(&self.1);
        rooms.inside.remove(&self.1);
    }
}

impl Door {
    pub(crate) fn open(
        listen: SocketAddr,
        security: Security,
        versions: Versions,
        recorder: Arc<dyn Recorder>,
        serve: Serve,
    ) -> Result<Door, TransportError> {
        security.check(listen)?;
        let failed = |source| TransportError::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let inner = Arc::new(Inner {
            security,
            versions,
            recorder,
            serve,
            rooms: Mutex::default(),
            told: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let accepting = inner.clone();
        let thread = thread::Builder::new()
            .name("accept".into())
            .spawn(move || accepting.accept(&listener))
            .map_err(failed)?;
        Ok(Door {
            inner,
            address,
            accepting: Mutex::new(Some(thread)),
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections and waits for their threads.
    pub(crate) fn close(&self) {
        self.inner.stop.store(true, Ordering::Release);
        let mut wake = self.address;
        if wake.ip().is_unspecified() {
            wake.set_ip(match wake {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        // Wakes the accepting thread; whether it connects does not matter.
        let _ = TcpStream::connect_timeout(&wake, Duration::from_millis(200));
        self.inner.send_away();
        if let Some(thread) = lock(&self.accepting).take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        for socket in listener.incoming() {
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            threads.retain(|t| !t.is_finished());
            if threads.len() >= MAX_THREADS {
                // Those that had to leave have not all got round to it: this one is let go.
                self.recorder.count("transport.crowded_out", 1);
                continue;
            }
            // Out of descriptors, most likely: let some connections end first.
            let Some((socket, id)) = socket.ok().and_then(|s| self.let_wait(s)) else {
                thread::park_timeout(Duration::from_millis(50));
                continue;
            };
            let inner = self.clone();
            let thread = thread::Builder::new().name("conn".into());
            match thread.spawn(move || inner.connection(id, socket)) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    lock(&self.rooms).waiting.remove(&id);
                    tracing::error!(error = %e, "no thread for a connection");
                }
            }
        }
        // Those that came in after close() looked, before it was heard.
        self.send_away();
        for t in threads {
            let _ = t.join();
        }
    }

    fn send_away(&self) {
        let rooms = lock(&self.rooms);
        for socket in rooms.waiting.values() {
            // Closed already is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
        rooms.inside.values().for_each(Writer::shutdown);
    }

    /// A place among those on their way in; the oldest has to leave for it where there is none.
    fn let_wait(&self, socket: TcpStream) -> Option<(TcpStream, u64)> {
        let handle = socket.try_clone().ok()?;
        let mut rooms = lock(&self.rooms);
        if rooms.waiting.len() >= MAX_WAITING
            && let Some((_, oldest)) = rooms.waiting.pop_first()
        {
            self.recorder.count("transport.crowded_out", 1);
            let _ = oldest.shutdown(Shutdown::Both);
        }
        rooms.next += 1;
        let id = rooms.next;
        rooms.waiting.insert(id, handle);
        Some((socket, id))
    }

    fn connection(&self, id: u64, socket: TcpStream) {
        let _leaving = Leaving(self, id);
        let from = socket.peer_addr();
        if let Err(why) = self.greet(id, socket)
            && !self.stop.load(Ordering::Acquire)
        {
            self.recorder.count("transport.refused", 1);
            if let Ok(from) = from {
                self.tell(from, &why);
            }
        }
    }

    fn greet(&self, id: u64, socket: TcpStream) -> Result<(), String> {
        let until = Instant::now() + HELLO;
        let connection = self
            .security
            .accept(socket, HELLO)
            .map_err(|e| e.to_string())?;
        let (reader, writer) = connection.split();
        let late = reader.set_deadline(Some(until));
        late.map_err(|e| e.to_string())?;
        let mut reader = FrameReader::with_versions(reader, Versions::ANY);
        let first = reader
            .next_frame()
            .map_err(|e| format!("before its first request: {e}"))?;
        let began = reader.version();
        let agreed = self.versions.agree(began, first.header.aux).map_err(|e| {
            self.say_versions(&e, &writer);
            e.to_string()
        })?;
        // What it had sent before it heard that is still in the version in which it began.
        reader.set_versions(Versions {
            oldest: self.versions.oldest.min(began),
            newest: self.versions.newest,
        });
        self.let_in(id, &writer)?;
        let greeted = Greeted {
            id: ConnId(id),
            first,
            version: agreed,
            reader,
            writer,
        };
        (self.serve)(greeted)
    }

    /// Answers whoever is too new or too old, in our own version: its side can then say so too.
    fn say_versions(&self, e: &FrameError, writer: &Writer) {
        let frame = Frame {
            header: Header::new(Kind::Reply, Generation::NONE, 0),
            meta: message::encode(&Reply::Refused(Refusal::BadRequest(e.to_string()))),
            data: Vec::new(),
        };
        let mut out = FrameWriter::default();
        out.set_version(self.versions.newest);
        out.push(&frame, None);
        // It is told as far as it goes without waiting.
        let _ = out.write_with(|parts| writer.try_write(parts));
    }

    fn let_in(&self, id: u64, writer: &Writer) -> Result<(), String> {
        let mut rooms = lock(&self.rooms);
        if rooms.waiting.remove(&id).is_none() {
            return Err("it was crowded out by newer connections".into());
        }
        if rooms.inside.len() >= MAX_CONNECTIONS {
            return Err(format!("there are {MAX_CONNECTIONS} connections already"));
        }
        rooms.inside.insert(id, writer.clone());
        Ok(())
    }

    fn tell(&self, from: SocketAddr, why: &str) {
        let due = lock(&self.told).due(from.ip(), Instant::now());
        if let Some(untold) = due {
            tracing::warn!(%from, why, untold, "connection refused");
        }
    }
}

/// When each address was last told of.
#[derive(Default)]
struct Told(HashMap<IpAddr, (Instant, u64)>);

impl Told {
    /// Whether one more refusal of this address is to be told: the number of those that were not
    /// since the last. One per address and [`TELL`], of [`MAX_TOLD`] addresses.
    fn due(&mut self, from: IpAddr, now: Instant) -> Option<u64> {
        let fresh = |at: Instant| now.duration_since(at) < TELL;
        if let Some((at, untold)) = self.0.get_mut(&from)
            && fresh(*at)
        {
            *untold += 1;
            return None;
        }
        let untold = self.0.remove(&from).map_or(0, |(_, untold)| untold);
        if self.0.len() >= MAX_TOLD {
            self.0.retain(|_, (at, _)| fresh(*at));
        }
        if self.0.len() >= MAX_TOLD {
            return None;
        }
        self.0.insert(from, (now, 0));
        Some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_of_once_a_minute_and_not_too_many_are() {
        let mut told = Told::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let ip = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        assert_eq!(told.due(ip(1), at(0)), Some(0));
        assert_eq!(told.due(ip(1), at(1)), None);
        assert_eq!(told.due(ip(1), at(59)), None);
        assert_eq!(told.due(ip(2), at(59)), Some(0));
        assert_eq!(
            told.due(ip(1), at(60)),
            Some(2),
            "the two that were not told"
        );
        let heard = (10..10_000).filter(|n| told.due(ip(*n), at(61)).is_some());
        assert!(heard.count() < MAX_TOLD);
        assert!(told.0.len() <= MAX_TOLD);
        assert_eq!(told.due(ip(20_000), at(200)), Some(0), "those went by");
    }
}
