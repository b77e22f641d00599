//! The connection for renewals that stands beside each link (invariant 2).
//!
//! Renewals go out here, where nothing is ahead of them, and their answers come in on a thread that
//! only hands them to the state machine: no full socket, no slow callback and no load of the
//! stream keeps the lease from being renewed. As long as this connection is not up (an older
//! member, a network that lets only one through), renewals go with the stream.
//!
//! It lives as long as the link's own connection: what a member granted counts for that one.
//! Bounds: one frame at a time; a socket that cannot take one at once is given up.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_protocol::frame::{Frame, Header, Kind, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter};
use trivet_protocol::message::{self, Reply, Request};
use trivet_protocol::{Generation, MemberId, VolumeId};
use trivet_transport::{Connection, TransportError, Writer};

/// A member answers the first question within this time.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two attempts to connect, while the link stands.
const RETRY: Duration = Duration::from_millis(500);
/// Between two looks at whether the member on the link has answered yet.
const LOOK: Duration = Duration::from_millis(20);

/// Where renewals to one member leave.
#[derive(Default)]
pub(super) struct LeaseDoor {
    socket: Mutex<Option<Open>>,
}

/// A connection that stands, and the version spoken on it.
struct Open {
    writer: Writer,
    version: u16,
}

impl LeaseDoor {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // A socket or none: whole at any moment.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a renewal, without waiting. False if it has to go with the stream.
    pub(super) fn send(&self, frame: &Frame) -> bool {
        let mut door = self.lock();
        let Some(open) = door.as_ref() else {
            return false;
        };
        let mut out = FrameWriter::default();
        out.set_version(open.version);
        out.push(frame, None);
        let sent = out
            .write_with(|parts| open.writer.try_write(parts))
            .and_then(|()| open.writer.try_flush());
        if sent.is_err() {
            // The thread that reads from it finds its end.
            open.writer.shutdown();
            *door = None;
        }
        sent.is_ok()
    }

    /// Closes it, unless it is another attendant's by now.
    fn close(&self, ended: &AtomicBool) {
        let mut door = self.lock();
        if !ended.load(Ordering::Acquire)
            && let Some(open) = door.take()
        {
            open.writer.shutdown();
        }
    }

    /// The link's connection has ended: this one ends, too, and `ended` says so to its attendant.
    pub(super) fn end(&self, ended: &AtomicBool) {
        let mut door = self.lock();
        // Under the lock: this attendant puts no socket there once this is set.
        ended.store(true, Ordering::Release);
        if let Some(open) = door.take() {
            open.writer.shutdown();
        }
    }
}

/// Keeps the connection up for as long as the link's own stands.
pub(super) struct Attendant<'a> {
    pub door: &'a LeaseDoor,
    /// Connects to where the link leads.
    pub connect: &'a (dyn Fn() -> Result<Connection, TransportError> + Sync),
    pub versions: Versions,
    pub volume: VolumeId,
    /// The link's own connection has ended. An attendant may see it late, beside its successor.
    pub ended: &'a AtomicBool,
}

impl Attendant<'_> {
    /// Connects, again where need be, and hands over what is answered.
    pub(super) fn run(&self, member: impl Fn() -> Option<MemberId>, answer: impl Fn(Frame)) {
        prefer();
        while !self.ended.load(Ordering::Acquire) {
            let Some(expected) = member() else {
                thread::park_timeout(LOOK);
                continue;
            };
            if let Err(e) = self.attend(expected, &answer) {
                tracing::debug!(member = %expected, error = %e, "connection for renewals");
            }
            self.door.close(self.ended);
            if !self.ended.load(Ordering::Acquire) {
                thread::park_timeout(RETRY);
            }
        }
    }

    fn attend(&self, member: MemberId, answer: &impl Fn(Frame)) -> io::Result<()> {
        let (reader, writer) = (self.connect)().map_err(io::Error::other)?.split();
        let hello = Request::Attend {
            volume: self.volume,
            member: Some(member),
        };
        let frame = Frame {
            header: Header::new(Kind::Request, Generation::NONE, 0),
            meta: message::encode(&hello),
            data: Vec::<Bytes>::new(),
        };
        let mut out = FrameWriter::opening(self.versions);
        out.push(&frame, None);
        out.write_with(|parts| writer.write(parts))?;
        let mut reader = FrameReader::with_versions(reader, self.versions);
        reader
            .get_ref()
            .set_deadline(Some(Instant::now() + ANSWER))?;
        let first = reader.next_frame().map_err(io::Error::other)?;
        let welcome = message::decode::<Reply>(&first.meta).map_err(io::Error::other)?;
        if welcome != Reply::Done {
            return Err(io::Error::other("the member takes none"));
        }
        reader.get_ref().set_deadline(None)?;
        let version = reader.version();
        {
            let mut door = self.door.lock();
            if self.ended.load(Ordering::Acquire) {
                return Ok(());
            }
            *door = Some(Open { writer, version });
        }
        loop {
            answer(reader.next_frame().map_err(io::Error::other)?);
        }
    }
}

/// A higher priority for the calling thread. Best effort: without the privilege it runs as any
/// other.
pub(super) fn prefer() {
    let _ = rustix::process::setpriority_process(None, -10);
}
