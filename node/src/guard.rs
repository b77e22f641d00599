//! What outlives the daemon: its parent, which is told what the daemon holds and, when it dies,
//! takes the service address away, keeps its connections from being ended with it, and hands its
//! leases back.
//!
//! Why connections: a client that is told of the end of its connection waits seconds before it
//! makes another one. So the parent has a duplicate of each, which keeps it open beyond the
//! daemon's death; once the address is gone nothing can be told any more, and the duplicates go.
//!
//! And the lease: the daemon says again and again how long it runs. When it has run out, because
//! the daemon stands still or is cut off, the parent takes the address away before another node
//! can have it, so that no two hosts answer for one address; it gives it back if the lease is held
//! again after all.
//!
//! One word is one message on a socket pair; a connection comes along as a descriptor. When a lease
//! runs out is told by the clock that both read (CLOCK_BOOTTIME), so that it matters little when a
//! word is read. The daemon waits for its parent ([`TOLD`], at most) only to say that a volume is,
//! or ceases to be, active: nothing may be served that nobody guards. Anything else that cannot be
//! told only makes it slower to be taken over.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use trivet_protocol::{Generation, VolumeId};
use trivet_replica::driver::boot_time;

use crate::config::ServiceConfig;

/// Bytes of a word, at most.
const MAX_WORD: usize = 16 * 1024;
/// Connections held for all volumes together, at most.
const MAX_HELD: usize = 16 * 1024;
/// The parent takes a word that matters within this time.
const TOLD: Duration = Duration::from_secs(1);
/// A lease in milliseconds, at most: the protocol's own bound.
const LONGEST: u64 = 60_000;
/// How often connections that have ended are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// A volume that is active in the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name.
    pub volume: String,
    /// Its identity.
    pub id: VolumeId,
    /// The reign.
    pub generation: Generation,
    /// Its service address, if it has one.
    pub service: Option<ServiceConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Active { held: Held, until: BootMs },
    Ended(String),
    Connection(String),
    Lease { volume: String, until: BootMs },
}

/// Milliseconds of CLOCK_BOOTTIME, which all processes of a host have in common.
pub type BootMs = u64;

/// That clock now.
pub fn now() -> BootMs {
    boot_time().0 / 1_000_000
}

/// The daemon's end.
#[derive(Debug)]
pub struct Guard(Option<OwnedFd>);

impl Guard {
    /// Nobody is there to be told.
    pub fn none() -> Guard {
        Guard(None)
    }

    /// The parent is at the other end of this socket.
    pub fn new(socket: OwnedFd) -> Guard {
        Guard(Some(socket))
    }

    /// The volume is active here, with a lease until then. Without a later word in time the parent
    /// takes the service address away until the next one.
    ///
    /// # Errors
    /// The parent does not take the word: the volume must not be served.
    pub fn active(&self, held: Held, until: BootMs) -> std::io::Result<()> {
        self.tell(&Word::Active { held, until }, None, TOLD)
    }

    /// It is active here no longer, in order.
    pub fn ended(&self, volume: &str) {
        if let Err(error) = self.tell(&Word::Ended(volume.to_owned()), None, TOLD) {
            // Its lease is handed back, or runs out: the parent takes no address but a stale one.
            tracing::warn!(volume, %error, "the supervisor was not told of the end");
        }
    }

    /// Its lease runs until then.
    pub fn lease(&self, volume: &str, until: BootMs) {
        let volume = volume.to_owned();
        self.try_tell(&Word::Lease { volume, until }, None);
    }

    /// A socket of its export.
    pub fn connection(&self, volume: &str, socket: BorrowedFd<'_>) {
        self.try_tell(&Word::Connection(volume.to_owned()), Some(socket));
    }

    fn try_tell(&self, word: &Word, socket: Option<BorrowedFd<'_>>) {
        if let Err(error) = self.tell(word, socket, Duration::ZERO) {
            tracing::debug!(%error, ?word, "the supervisor was not told");
        }
    }

    fn tell(
        &self,
        word: &Word,
        socket: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> std::io::Result<()> {
        let Some(parent) = &self.0 else { return Ok(()) };
        let raw = serde_json::to_vec(word)?;
        let deadline = Instant::now() + patience;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut along = SendAncillaryBuffer::new(&mut space);
            let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
            if !sockets.is_empty() {
                along.push(SendAncillaryMessage::ScmRights(&sockets));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(parent, &[IoSlice::new(&raw)], &mut along, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    wait_for(parent, rustix::event::PollFlags::OUT, left);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Waits until a socket is ready; whether it is.
pub(crate) fn wait_for(
    socket: &OwnedFd,
    what: rustix::event::PollFlags,
    patience: Duration,
) -> bool {
    let mut fds = [rustix::event::PollFd::new(socket, what)];
    let timeout = rustix::event::Timespec {
        tv_sec: patience.as_secs() as i64,
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1..))
}

/// The parent's end.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    held: Vec<Held>,
    leases: Vec<Lease>,
    sockets: Vec<(String, OwnedFd)>,
    swept: Instant,
}

/// Of a volume that is held: until when, and whether that has passed and been dealt with.
#[derive(Debug)]
struct Lease {
    volume: String,
    until: BootMs,
    lapsed: bool,
}

/// What becomes of service addresses as leases run out, and are held again after all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// These go: their daemon stands still, or is cut off, and another may be active by now.
    pub lapsed: Vec<Held>,
    /// These come back.
    pub renewed: Vec<Held>,
}

/// What the parent heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Something, or nothing in time.
    Alive,
    /// The daemon's end is closed: it has ended.
    Ended,
}

impl Watch {
    /// Both ends: the parent's, and the socket for the daemon.
    ///
    /// # Errors
    /// The system gives no sockets.
    pub fn pair() -> std::io::Result<(Watch, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let watch = Watch {
            socket: ours,
            held: Vec::new(),
            leases: Vec::new(),
            sockets: Vec::new(),
            swept: Instant::now(),
        };
        Ok((watch, theirs))
    }

    /// Waits at most `patience` for a word.
    pub fn listen(&mut self, patience: Duration) -> Heard {
        if !wait_for(&self.socket, rustix::event::PollFlags::IN, patience) {
            self.sweep();
            return Heard::Alive;
        }
        let mut raw = vec![0; MAX_WORD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut along = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut raw)],
            &mut along,
            flags,
        );
        let bytes = match got {
            Ok(m) if m.bytes == 0 => return Heard::Ended,
            Ok(m) => m.bytes,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Heard::Alive,
            Err(_) => return Heard::Ended,
        };
        let mut sockets = Vec::new();
        for message in along.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                sockets.extend(fds);
            }
        }
        match serde_json::from_slice(&raw[..bytes]) {
            Ok(word) => self.heed(word, sockets),
            Err(error) => tracing::warn!(%error, "a word of the daemon's makes no sense"),
        }
        Heard::Alive
    }

    /// Whether a word waits to be read: no conclusion before the last one.
    pub fn has_more(&self) -> bool {
        wait_for(&self.socket, rustix::event::PollFlags::IN, Duration::ZERO)
    }

    fn heed(&mut self, word: Word, sockets: Vec<OwnedFd>) {
        match word {
            Word::Active { held, until } => {
                self.held.retain(|h| h.volume != held.volume);
                self.leases.retain(|l| l.volume != held.volume);
                let volume = held.volume.clone();
                self.held.push(held);
                self.prolong(volume, until);
            }
            Word::Lease { volume, until } => self.prolong(volume, until),
            Word::Ended(volume) => {
                self.held.retain(|h| h.volume != volume);
                self.leases.retain(|l| l.volume != volume);
                self.let_go(&volume);
            }
            Word::Connection(volume) => {
                if self.swept.elapsed() > SWEEP || self.sockets.len() >= MAX_HELD {
                    self.sweep();
                }
                if self.sockets.len() < MAX_HELD {
                    self.sockets
                        .extend(sockets.into_iter().map(|s| (volume.clone(), s)));
                }
            }
        }
    }

    fn prolong(&mut self, volume: String, until: BootMs) {
        if !self.held.iter().any(|h| h.volume == volume) {
            return;
        }
        let until = until.min(now() + LONGEST);
        match self.leases.iter_mut().find(|l| l.volume == volume) {
            Some(l) => l.until = until,
            None => self.leases.push(Lease {
                volume,
                until,
                lapsed: false,
            }),
        }
    }

    /// What has changed by `now`; each change is told once.
    pub fn changes(&mut self, now: BootMs) -> Changes {
        let mut changes = Changes::default();
        for l in &mut self.leases {
            let over = now >= l.until;
            let Some(held) = self.held.iter().find(|h| h.volume == l.volume) else {
                continue;
            };
            match (over, l.lapsed) {
                (true, false) => changes.lapsed.push(held.clone()),
                (false, true) => changes.renewed.push(held.clone()),
                _ => continue,
            }
            l.lapsed = over;
        }
        changes
    }

    /// Whether this volume is held.
    pub fn holds(&self, volume: &str) -> bool {
        self.reign(volume).is_some()
    }

    /// The reign that this volume is held in.
    pub fn reign(&self, volume: &str) -> Option<Generation> {
        let held = self.held.iter().find(|h| h.volume == volume);
        held.map(|h| h.generation)
    }

    /// How long the lease of a reign still runs at `now`; nothing if it does not.
    pub fn left(&self, volume: &str, reign: Generation, now: BootMs) -> Option<Duration> {
        let lease = self.leases.iter().find(|l| l.volume == volume)?;
        let left = lease.until.checked_sub(now).filter(|left| *left > 0)?;
        (self.reign(volume) == Some(reign)).then_some(Duration::from_millis(left))
    }

    /// Lets go of connections that have ended in order.
    fn sweep(&mut self) {
        if self.swept.elapsed() < SWEEP {
            return;
        }
        self.swept = Instant::now();
        self.sockets.retain(|(_, s)| {
            let mut fds = [rustix::event::PollFd::new(
                s,
                rustix::event::PollFlags::empty(),
            )];
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let over = rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR;
            match rustix::event::poll(&mut fds, Some(&now)) {
                Ok(_) => !fds[0].revents().intersects(over),
                Err(_) => true,
            }
        });
    }

    /// The daemon is dead: what it held, for the last time.
    pub fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// Drops the connections of a volume without a word to their other ends. To be called when
    /// its address is gone.
    pub fn let_go(&mut self, volume: &str) {
        self.sockets.retain(|(v, s)| {
            let goes = v == volume;
            if goes {
                // Resets at once: nothing of it stays to be sent again when the address is back.
                let _ = socket2::SockRef::from(&s.as_fd()).set_linger(Some(Duration::ZERO));
            }
            !goes
        });
    }

    /// Connections held.
    pub fn connections(&self) -> usize {
        self.sockets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn held(volume: &str) -> Held {
        Held {
            volume: volume.into(),
            id: VolumeId::from_bytes([1; 16]),
            generation: Generation::NONE,
            service: None,
        }
    }

    fn hear_all(watch: &mut Watch) -> Heard {
        for _ in 0..100 {
            if watch.listen(Duration::from_millis(20)) == Heard::Ended {
                return Heard::Ended;
            }
        }
        Heard::Alive
    }

    #[test]
    fn a_connection_outlives_the_daemon_until_it_is_let_go() {
        let (mut watch, theirs) = Watch::pair().unwrap();
        let guard = Guard::new(theirs);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        guard.active(held("v"), now() + 2000).unwrap();
        guard.connection("v", served.as_fd());
        drop(served);
        drop(guard);
        assert_eq!(hear_all(&mut watch), Heard::Ended);
        assert_eq!(watch.take_held(), [held("v")]);
        client
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let still = client.read(&mut [0]).unwrap_err();
        assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
        client.write_all(b"x").unwrap();
        watch.let_go("v");
        let gone = client.read(&mut [0]).unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_lease_that_is_not_prolonged_lapses_once_and_comes_back_once() {
        let (mut watch, theirs) = Watch::pair().unwrap();
        let guard = Guard::new(theirs);
        guard.lease("v", now() + 50_000);
        guard.active(held("v"), now() + 2000).unwrap();
        let start = now();
        for _ in 0..2 {
            watch.listen(Duration::from_secs(5));
        }
        let later = start + 30_000;
        let nothing = Changes::default();
        // What was told before it was active counts for nothing; from then on its lease is what
        // came with that word, also if its daemon never says another.
        assert_eq!(watch.changes(start + 1000), nothing);
        assert_eq!(watch.changes(later).lapsed, [held("v")]);
        assert_eq!(watch.changes(later), nothing, "told once");
        guard.lease("v", now() + 50_000);
        watch.listen(Duration::from_secs(5));
        assert_eq!(watch.changes(later).renewed, [held("v")]);
        assert_eq!(watch.changes(later), nothing, "told once");
        guard.ended("v");
        watch.listen(Duration::from_secs(5));
        let end = later + 60_000;
        assert_eq!(watch.changes(end), nothing, "ended in order");
    }

    /// A word that lay in the socket while nobody read it prolonged a lease by that time.
    #[test]
    fn a_lease_ends_when_the_daemon_meant_it_to_however_late_its_word_is_read() {
        let (mut watch, theirs) = Watch::pair().unwrap();
        let guard = Guard::new(theirs);
        let until = now() - 1;
        guard.active(held("v"), until).unwrap();
        watch.listen(Duration::from_secs(5));
        assert_eq!(watch.changes(until - 1), Changes::default());
        assert_eq!(watch.changes(until).lapsed, [held("v")]);
    }

    /// With the parent's socket full of words, a reign began that nobody guarded.
    #[test]
    fn nothing_becomes_active_that_the_parent_is_not_told_of() {
        let (mut watch, theirs) = Watch::pair().unwrap();
        let guard = Guard::new(theirs);
        let fill = "x".repeat(1000);
        for _ in 0..10_000 {
            guard.lease(&fill, 1);
        }
        assert!(guard.active(held("v"), now() + 2000).is_err());
        watch.listen(Duration::from_secs(1));
        let reader = std::thread::spawn(move || {
            hear_all(&mut watch);
            watch
        });
        guard.active(held("v"), now() + 2000).unwrap();
        drop(guard);
        let mut watch = reader.join().unwrap();
        while watch.listen(Duration::from_millis(20)) == Heard::Alive {}
        assert!(watch.holds("v"));
    }

    #[test]
    fn what_ended_in_order_is_not_held() {
        let (mut watch, theirs) = Watch::pair().unwrap();
        let guard = Guard::new(theirs);
        guard.active(held("v"), now() + 2000).unwrap();
        guard.active(held("w"), now() + 2000).unwrap();
        guard.ended("v");
        drop(guard);
        assert_eq!(hear_all(&mut watch), Heard::Ended);
        assert_eq!(watch.take_held(), [held("w")]);
    }
}
