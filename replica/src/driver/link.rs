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
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use trivet_protocol::frame::{Kind, Versions};
use trivet_protocol::io::FrameWriter;
use trivet_transport::Writer as Socket;

use super::lease::LeaseDoor;
use crate::upstairs::OutFrame;

/// The writer thread looks again after this long, whatever the socket says.
const WAIT: Duration = Duration::from_millis(100);

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
    /// The version agreed on; 0: none yet. For people alone.
    spoken: AtomicU16,
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
    socket: Option<Socket>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere cannot leave it in a state that matters after a reconnect.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// A connection stands; frames queued from now on go there.
    pub fn open(&self, socket: Socket, versions: Versions) {
        let mut writer = lock(&self.writer);
        writer.out = FrameWriter::opening(versions);
        writer.socket = Some(socket);
        let mut queue = lock(&self.queue);
        queue.frames.clear();
        queue.bytes = 0;
        queue.open = true;
        queue.blocked = false;
    }

    /// The member answered in this version: so does everything from now on.
    pub fn speak(&self, version: u16) {
        lock(&self.writer).out.set_version(version);
        self.spoken.store(version, Ordering::Relaxed);
    }

    /// The version in which the member answered; 0 while no connection stands.
    pub fn spoken(&self) -> u16 {
        self.spoken.load(Ordering::Relaxed)
    }

    /// The connection is to end; what is queued is dropped.
    pub fn close(&self) {
        self.spoken.store(0, Ordering::Relaxed);
        {
            let mut queue = lock(&self.queue);
            queue.open = false;
            queue.frames.clear();
            queue.bytes = 0;
        }
        let mut writer = lock(&self.writer);
        if let Some(socket) = writer.socket.take() {
            // The reader thread, which waits on the same socket, wakes up with an end of file.
            socket.shutdown();
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
            if let Err(e) = writer.send() {
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
            if writer.is_empty() {
                lock(&self.queue).blocked = false;
                break;
            }
            match writer.send() {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Wait without the lock, so that close() can get in.
                    let Some(socket) = writer.socket.clone() else {
                        break;
                    };
                    drop(writer);
                    socket.wait_writable(WAIT);
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

impl Writer {
    /// Nothing is queued here, nor under way in the connection.
    fn is_empty(&self) -> bool {
        self.out.is_empty() && self.socket.as_ref().is_none_or(|s| !s.has_pending())
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            self.out = FrameWriter::default();
            return Ok(());
        };
        self.out.write_with(|parts| socket.try_write(parts))?;
        socket.try_flush()
    }

    fn fail(&mut self) {
        if let Some(socket) = &self.socket {
            socket.shutdown();
        }
        self.out = FrameWriter::default();
    }
}
