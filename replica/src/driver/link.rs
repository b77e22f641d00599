//! One connection to one member, and the threads around it.
//!
//! Sending: whoever has something to send queues it and then tries to write it out itself,
//! without waiting (handing it to another thread would cost a wake-up on the path of each durable
//! write). If somebody is writing already, that one takes it along. If the socket is full, the
//! link's own writer thread goes on.
//!
//! Entries alone are not urgent: they are volatile until a sync is asked for, which follows within
//! milliseconds and takes them along in one system call. [`CORK`] bounds what waits for that.
//!
//! Bounded by what the upstairs retains: queued frames share its memory.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use trivet_protocol::frame::Kind;
use trivet_protocol::io::FrameWriter;

use super::lease::LeaseDoor;
use crate::upstairs::OutFrame;

/// A connection attempt is given up after this long.
pub(super) const CONNECT: Duration = Duration::from_millis(500);
/// A peer that acknowledges nothing for this long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// Bytes of entries that wait for a frame that is urgent, at most.
const CORK: usize = 64 * 1024;

/// Where frames for a member wait.
#[derive(Default)]
pub struct Link {
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
    /// Signalled when the writer thread has to go on.
    stuck: Condvar,
    /// Renewals leave here while it is open.
    pub(super) lease: LeaseDoor,
}

#[derive(Default)]
struct Queue {
    frames: Vec<OutFrame>,
    /// Bytes in them.
    bytes: usize,
    /// Frames are taken only while a connection stands.
    open: bool,
    blocked: bool,
}

#[derive(Default)]
struct Writer {
    out: FrameWriter,
    socket: Option<TcpStream>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere cannot leave it in a state that matters after a reconnect.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects, with the options that both ends use.
///
/// # Errors
/// The connection cannot be made in time.
pub fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, CONNECT)?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

impl Link {
    /// A connection stands; frames queued from now on go there.
    pub fn open(&self, socket: TcpStream) {
        let mut writer = lock(&self.writer);
        writer.out = FrameWriter::default();
        writer.socket = Some(socket);
        let mut queue = lock(&self.queue);
        queue.frames.clear();
        queue.bytes = 0;
        queue.open = true;
        queue.blocked = false;
    }

    /// The connection is to end; what is queued is dropped.
    pub fn close(&self) {
        {
            let mut queue = lock(&self.queue);
            queue.open = false;
            queue.frames.clear();
            queue.bytes = 0;
        }
        let mut writer = lock(&self.writer);
        if let Some(socket) = writer.socket.take() {
            // The reader thread, which waits on the same socket, wakes up with an end of file.
            let _ = socket.shutdown(Shutdown::Both);
        }
        writer.out = FrameWriter::default();
        self.stuck.notify_all();
    }

    /// Queues a frame; [`Link::kick`] sends it. To be called in the order of the stream. Returns
    /// whether it is time to send.
    pub fn push(&self, frame: OutFrame) -> bool {
        let urgent = frame.frame.header.kind != Kind::Append;
        let mut queue = lock(&self.queue);
        if queue.open {
            queue.bytes += frame.frame.wire_len();
            queue.frames.push(frame);
        }
        urgent || queue.bytes >= CORK
    }

    /// Writes out what is queued, as far as it goes without waiting.
    pub fn kick(&self) {
        loop {
            {
                let queue = lock(&self.queue);
                if queue.frames.is_empty() || queue.blocked {
                    return;
                }
            }
            // Somebody is writing: it looks at the queue again before it lets go.
            let Ok(mut writer) = self.writer.try_lock() else {
                return;
            };
            self.take_queued(&mut writer);
            if let Err(e) = writer.send(SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                if e.kind() == io::ErrorKind::WouldBlock {
                    lock(&self.queue).blocked = true;
                    self.stuck.notify_all();
                } else {
                    writer.fail();
                }
                return;
            }
            drop(writer);
        }
    }

    fn take_queued(&self, writer: &mut Writer) {
        let frames = {
            let mut queue = lock(&self.queue);
            queue.bytes = 0;
            std::mem::take(&mut queue.frames)
        };
        frames.iter().for_each(|f| writer.out.push(&f.frame, f.crc));
    }

    /// The writer thread: goes on where the socket was full. Returns when `done` says so.
    pub fn run_writer(&self, done: impl Fn() -> bool) {
        while !done() {
            let mut queue = lock(&self.queue);
            while !queue.blocked {
                let wait = self.stuck.wait_timeout(queue, Duration::from_millis(500));
                queue = wait.unwrap_or_else(PoisonError::into_inner).0;
                if done() {
                    return;
                }
            }
            drop(queue);
            self.drain();
        }
    }

    fn drain(&self) {
        let mut writer = lock(&self.writer);
        loop {
            self.take_queued(&mut writer);
            if writer.out.is_empty() {
                lock(&self.queue).blocked = false;
                break;
            }
            match writer.send(SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Wait without the lock, so that close() can get in.
                    let Some(socket) = writer.socket.as_ref().and_then(|s| s.try_clone().ok())
                    else {
                        break;
                    };
                    drop(writer);
                    wait_writable(&socket);
                    writer = lock(&self.writer);
                }
                Err(_) => {
                    writer.fail();
                    lock(&self.queue).blocked = false;
                    break;
                }
            }
        }
        drop(writer);
        self.kick();
    }
}

fn wait_writable(socket: &TcpStream) {
    let mut fds = [rustix::event::PollFd::new(
        socket,
        rustix::event::PollFlags::OUT,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    // Whatever it says, the next send tells how things stand.
    let _ = rustix::event::poll(&mut fds, Some(&timeout));
}

impl Writer {
    fn send(&mut self, flags: SendFlags) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            self.out = FrameWriter::default();
            return Ok(());
        };
        self.out.write_with(|parts| {
            let mut control = SendAncillaryBuffer::default();
            Ok(sendmsg(socket, parts, &mut control, flags)?)
        })
    }

    fn fail(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.out = FrameWriter::default();
    }
}
