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
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::io::{FrameReader, FrameWriter};
use trivet_protocol::message::{self, Reply, Request};
use trivet_protocol::{Generation, MemberId, VolumeId};

use super::link::connect;

/// Between two attempts to connect, while the link stands.
const RETRY: Duration = Duration::from_millis(500);
/// Between two looks at whether the member on the link has answered yet.
const LOOK: Duration = Duration::from_millis(20);

/// Where renewals to one member leave.
#[derive(Default)]
pub(super) struct LeaseDoor {
    socket: Mutex<Option<TcpStream>>,
}

impl LeaseDoor {
    fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        // A socket or none: whole at any moment.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a renewal, without waiting. False if it has to go with the stream.
    pub(super) fn send(&self, frame: &Frame) -> bool {
        let mut door = self.lock();
        let Some(socket) = door.as_ref() else {
            return false;
        };
        let mut out = FrameWriter::default();
        out.push(frame, None);
        let sent = out.write_with(|parts| {
            let mut control = SendAncillaryBuffer::default();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            Ok(sendmsg(socket, parts, &mut control, flags)?)
        });
        if sent.is_err() {
            // The thread that reads from it finds its end.
            let _ = socket.shutdown(Shutdown::Both);
            *door = None;
        }
        sent.is_ok()
    }

    fn close(&self) {
        if let Some(socket) = self.lock().take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Keeps the connection up for as long as the link's own stands.
pub(super) struct Attendant<'a> {
    pub door: &'a LeaseDoor,
    pub address: SocketAddr,
    pub volume: VolumeId,
    /// The link's own connection has ended.
    pub ended: &'a AtomicBool,
}

impl Attendant<'_> {
    /// The link's connection has ended: this one ends, too.
    pub(super) fn end(&self, thread: &thread::Thread) {
        let mut door = self.door.lock();
        // Under the lock: no socket is put there once this is set.
        self.ended.store(true, Ordering::Release);
        if let Some(socket) = door.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        thread.unpark();
    }

    /// Connects, again where need be, and hands over what is answered.
    pub(super) fn run(&self, member: impl Fn() -> Option<MemberId>, answer: impl Fn(Frame)) {
        prefer();
        while !self.ended.load(Ordering::Acquire) {
            let Some(expected) = member() else {
                thread::park_timeout(LOOK);
                continue;
            };
            if let Err(e) = self.attend(expected, &answer) {
                tracing::debug!(address = %self.address, error = %e, "connection for renewals");
            }
            self.door.close();
            if !self.ended.load(Ordering::Acquire) {
                thread::park_timeout(RETRY);
            }
        }
    }

    fn attend(&self, member: MemberId, answer: &impl Fn(Frame)) -> io::Result<()> {
        let socket = connect(self.address)?;
        let hello = Request::Attend {
            volume: self.volume,
            member: Some(member),
        };
        let mut out = FrameWriter::default();
        let frame = Frame {
            header: Header::new(Kind::Request, Generation::NONE, 0),
            meta: message::encode(&hello),
            data: Vec::<Bytes>::new(),
        };
        out.push(&frame, None);
        out.write_with(|parts| io::Write::write_vectored(&mut &socket, parts))?;
        let mut reader = FrameReader::new(socket.try_clone()?);
        socket.set_read_timeout(Some(super::link::CONNECT))?;
        let first = reader.next_frame().map_err(io::Error::other)?;
        let welcome = message::decode::<Reply>(&first.meta).map_err(io::Error::other)?;
        if welcome != Reply::Done {
            return Err(io::Error::other("the member takes none"));
        }
        socket.set_read_timeout(None)?;
        {
            let mut door = self.door.lock();
            if self.ended.load(Ordering::Acquire) {
                return Ok(());
            }
            *door = Some(socket);
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
