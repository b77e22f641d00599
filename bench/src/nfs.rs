//! `trivet bench nfs`: load on any NFSv3 server, from user space, over TCP.
//!
//! One thread per connection keeps its number of calls in flight: it takes every reply that has
//! arrived, puts as many new calls together, and sends them at once. Large payloads go to the
//! socket from the pool of content, without a copy.
//!
//! Bounded by its arguments, and by the client's time-out: a server that answers nothing for
//! that long ends the run with an error.

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use trivet_nfs::client::nfs::{Fh, NfsClient, TIMEOUT, Url, get_wcc, lock_address};
use trivet_nfs::client::rpc::{RpcClient, next_xid, root_credential};
use trivet_nfs::nfs3::types::PROGRAM;
use trivet_nfs::rpc::message::{decode_reply, encode_call};
use trivet_nfs::rpc::record::{Assembler, Progress, mark};
use trivet_nfs::xdr::{Dec, Enc};

use crate::load::Sample;
use crate::rng::Rng;
use crate::{BenchError, histogram::Histogram};

/// Bytes of a large transfer.
const LARGE: u64 = 1 << 20;
/// Bytes of a small one.
const SMALL: u64 = 4096;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GETATTR of the file.
    GetAttr,
    /// WRITE of 4 KiB, FILE_SYNC, anywhere in the file: a virtual machine's disk.
    WriteSync,
    /// WRITE of 4 KiB, UNSTABLE, anywhere in the file; one COMMIT at the end.
    WriteUnstable,
    /// READ of 4 KiB anywhere in the file.
    Read,
    /// WRITE of 1 MiB, UNSTABLE, one after the other; one COMMIT at the end.
    Stream,
    /// READ of 1 MiB, one after the other.
    StreamRead,
    /// NLM: a byte of the file locked, then unlocked; each call in flight has a byte of its own.
    Lock,
}

/// Calls in flight of a stream beside a workload.
const STREAM_DEPTH: usize = 8;
/// `PROGRAM` of NLM, and the procedures used.
const NLM: u32 = 100_021;
const NLM_LOCK: u32 = 2;
const NLM_UNLOCK: u32 = 4;

/// A named load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfsWorkload {
    /// Its name.
    pub name: String,
    /// What.
    pub kind: Kind,
    /// Connections.
    pub connections: usize,
    /// Calls in flight over all connections.
    pub depth: usize,
    /// Whether another connection writes a stream of 1 MiB, UNSTABLE, all the while.
    pub beside_stream: bool,
}

impl NfsWorkload {
    /// The standard ones.
    pub fn standard() -> Vec<NfsWorkload> {
        let of = |name: &str, kind, connections, depth| NfsWorkload {
            name: name.to_owned(),
            kind,
            connections,
            depth,
            beside_stream: false,
        };
        let beside = |w: NfsWorkload| NfsWorkload {
            beside_stream: true,
            ..w
        };
        vec![
            of("getattr-qd1", Kind::GetAttr, 1, 1),
            of("getattr-qd64", Kind::GetAttr, 1, 64),
            of("write-sync-4k-qd1", Kind::WriteSync, 1, 1),
            of("write-sync-4k-qd32", Kind::WriteSync, 1, 32),
            of("write-sync-4k-qd32-c4", Kind::WriteSync, 4, 32),
            beside(of("write-sync-4k-qd1-beside-1m", Kind::WriteSync, 1, 1)),
            beside(of("write-sync-4k-qd32-beside-1m", Kind::WriteSync, 1, 32)),
            of("write-4k-qd32", Kind::WriteUnstable, 1, 32),
            of("read-4k-qd1", Kind::Read, 1, 1),
            of("read-4k-qd32", Kind::Read, 1, 32),
            of("write-1m-seq", Kind::Stream, 1, 8),
            of("read-1m-seq", Kind::StreamRead, 1, 8),
            of("write-1m-seq-c4", Kind::Stream, 4, 8),
            of("read-1m-seq-c4", Kind::StreamRead, 4, 8),
            of("lock-qd32", Kind::Lock, 1, 32),
        ]
    }
}

/// Where and how much.
#[derive(Clone, Debug)]
pub struct NfsLoad {
    /// The server and its export.
    pub url: Url,
    /// Call from ports below 1024.
    pub reserved: bool,
    /// Bytes of each connection's file, at least 1 MiB.
    pub file_bytes: u64,
    /// Time per workload.
    pub time: Duration,
    /// Of places and content.
    pub seed: u64,
}

fn bad(e: impl std::fmt::Display) -> BenchError {
    BenchError::BadLoad(e.to_string())
}

impl NfsLoad {
    /// Runs one workload. Its files are made and written before the time starts, and removed
    /// after it; in between, when all is written, `ready` is called. A stream beside it is the
    /// second sample.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn run(
        &self,
        w: &NfsWorkload,
        ready: &mut dyn FnMut() -> Result<(), BenchError>,
    ) -> Result<(Sample, Option<Sample>), BenchError> {
        if w.connections == 0 || w.depth < w.connections || self.file_bytes < LARGE {
            return Err(BenchError::BadLoad(format!(
                "{}: needs a connection, a call in flight for each, and a file of 1 MiB",
                w.name
            )));
        }
        let mut main = NfsClient::mount(&self.url, self.reserved).map_err(bad)?;
        let kinds: Vec<Kind> = std::iter::repeat_n(w.kind, w.connections)
            .chain(w.beside_stream.then_some(Kind::Stream))
            .collect();
        let names: Vec<String> = (0..kinds.len())
            .map(|n| format!("trivet-bench-{}-{n}", std::process::id()))
            .collect();
        let mut files = Vec::new();
        for (name, kind) in names.iter().zip(&kinds) {
            let dir = main.root.clone();
            let fh = main.create(&dir, name.as_bytes(), Some(0)).map_err(bad)?;
            if *kind != Kind::Stream {
                self.fill(&mut main, &fh)?;
            }
            files.push(fh);
        }
        let address = match w.kind {
            Kind::Lock => lock_address(&self.url).map_err(bad)?,
            _ => main.rpc.socket().peer_addr().map_err(bad)?,
        };
        ready()?;
        let start = Barrier::new(kinds.len());
        let results: Vec<Result<Sample, BenchError>> = std::thread::scope(|s| {
            let threads: Vec<_> = files
                .iter()
                .zip(&kinds)
                .enumerate()
                .map(|(n, (fh, kind))| {
                    let depth = match n < w.connections {
                        true => w.depth / w.connections,
                        false => STREAM_DEPTH,
                    };
                    let start = &start;
                    s.spawn(move || self.connection(*kind, address, fh, depth, n, start))
                })
                .collect();
            let joined = threads.into_iter().map(|t| t.join());
            joined
                .map(|r| r.unwrap_or_else(|_| Err(bad("a load thread panicked"))))
                .collect()
        });
        for name in &names {
            let dir = main.root.clone();
            // The figures stand, also if a file stays behind.
            let _ = main.remove(&dir, name.as_bytes());
        }
        let mut all = Sample::default();
        let mut stream = None;
        for (n, r) in results.into_iter().enumerate() {
            let r = r?;
            if n == w.connections {
                stream = Some(r);
                continue;
            }
            all.operations += r.operations;
            all.bytes += r.bytes;
            all.elapsed = all.elapsed.max(r.elapsed);
            all.longest_gap = all.longest_gap.max(r.longest_gap);
            all.latency.merge(&r.latency);
        }
        Ok((all, stream))
    }

    fn fill(&self, c: &mut NfsClient, fh: &Fh) -> Result<(), BenchError> {
        let pool = content(self.seed);
        let mut unstable = false;
        for at in (0..self.file_bytes / LARGE).map(|n| n * LARGE) {
            unstable |= c.write(fh, at, &pool, 0).map_err(bad)?.1 == 0;
        }
        if unstable {
            c.commit(fh).map_err(bad)?;
        }
        Ok(())
    }

    fn connection(
        &self,
        kind: Kind,
        address: SocketAddr,
        fh: &Fh,
        depth: usize,
        number: usize,
        start: &Barrier,
    ) -> Result<Sample, BenchError> {
        let rpc = RpcClient::connect(address, TIMEOUT, self.reserved).map_err(bad);
        start.wait();
        let rpc = rpc?;
        let mut run = Run {
            kind,
            fh,
            file_bytes: self.file_bytes,
            socket: rpc.socket(),
            out: Vec::new(),
            open: HashMap::new(),
            locked: vec![false; depth],
            unstable: false,
            pool: content(self.seed),
            rng: Rng::new(self.seed ^ number as u64),
            next: 0,
        };
        run.drive(depth, self.time)
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    rng.bytes(LARGE as usize)
}

/// One connection under load.
struct Run<'a> {
    kind: Kind,
    fh: &'a Fh,
    file_bytes: u64,
    socket: &'a TcpStream,
    out: Vec<u8>,
    /// When each call was sent, and which of the calls in flight it is.
    open: HashMap<u32, (Instant, usize)>,
    /// Whether the byte of each call in flight is locked.
    locked: Vec<bool>,
    /// A write was answered as UNSTABLE: a client must COMMIT. (Some servers have no COMMIT, and
    /// answer each write as durable.)
    unstable: bool,
    pool: Vec<u8>,
    rng: Rng,
    next: u64,
}

impl Run<'_> {
    fn drive(&mut self, depth: usize, time: Duration) -> Result<Sample, BenchError> {
        let mut input = Assembler::new((1 << 20) + (64 << 10));
        let mut sample = Sample::default();
        let begin = Instant::now();
        let mut last = begin;
        let mut latency = Histogram::default();
        for slot in 0..depth {
            self.issue(slot)?;
        }
        while !self.open.is_empty() {
            let (socket, out) = (self.socket, &mut self.out);
            let next = input.next(|v| {
                if !out.is_empty() {
                    (&mut &*socket).write_all(out)?;
                    out.clear();
                }
                let room = rustix::buffer::spare_capacity(v);
                let flags = rustix::net::RecvFlags::empty();
                Ok(rustix::net::recv(socket, room, flags)?.0)
            });
            let reply = match next {
                Ok(Progress::Record(r)) => Dec::new(r),
                Ok(Progress::Starved) => return Err(BenchError::Stalled(TIMEOUT)),
                Err(e) => return Err(bad(e)),
            };
            let now = Instant::now();
            let (sent, slot) = self.check(reply)?;
            latency.add(now - sent);
            sample.longest_gap = sample.longest_gap.max(now - last);
            last = now;
            sample.operations += 1;
            // What is locked is given back.
            if now - begin < time || self.locked.get(slot).is_some_and(|l| *l) {
                self.issue(slot)?;
            }
        }
        if self.unstable {
            self.commit(&mut input)?;
        }
        sample.elapsed = begin.elapsed();
        sample.bytes = sample.operations * self.size();
        sample.latency = latency;
        Ok(sample)
    }

    fn size(&self) -> u64 {
        match self.kind {
            Kind::GetAttr | Kind::Lock => 0,
            Kind::WriteSync | Kind::WriteUnstable | Kind::Read => SMALL,
            Kind::Stream | Kind::StreamRead => LARGE,
        }
    }

    fn place(&mut self) -> u64 {
        let size = self.size().max(SMALL);
        let places = self.file_bytes / size;
        let n = match self.kind {
            Kind::Stream | Kind::StreamRead => {
                self.next += 1;
                (self.next - 1) % places
            }
            _ => self.rng.below(places),
        };
        n * size
    }

    fn call(&mut self, slot: usize, procedure: u32, args: impl FnOnce(&mut Enc), more: usize) {
        let xid = next_xid();
        let mut e = Enc::with_capacity(256);
        e.u32(0);
        let (program, version) = match self.kind {
            Kind::Lock => (NLM, 4),
            _ => (PROGRAM, 3),
        };
        let what = (program, version, procedure);
        encode_call(&mut e, xid, what, &root_credential());
        args(&mut e);
        e.patch_u32(0, mark(e.len() - 4 + more));
        self.out.extend_from_slice(e.bytes());
        self.open.insert(xid, (Instant::now(), slot));
    }

    /// LOCK if the byte is not locked, else UNLOCK; neither waits.
    fn lock(&mut self, slot: usize) {
        let fh = self.fh;
        let Some(locked) = self.locked.get_mut(slot) else {
            return;
        };
        *locked = !*locked;
        let lock = *locked;
        let args = move |e: &mut Enc| {
            let number = slot as u32;
            e.opaque(&number.to_be_bytes());
            if lock {
                e.bool(false).bool(true);
            }
            e.opaque(b"trivet-bench").opaque(fh);
            e.opaque(&number.to_be_bytes()).u32(number);
            // QEMU locks single bytes; side by side they would be one range.
            e.u64(100 + 2 * u64::from(number)).u64(1);
            if lock {
                e.bool(false).u32(1);
            }
        };
        let procedure = if lock { NLM_LOCK } else { NLM_UNLOCK };
        self.call(slot, procedure, args, 0);
    }

    fn issue(&mut self, slot: usize) -> Result<(), BenchError> {
        let (fh, at, size) = (self.fh, self.place(), self.size() as usize);
        match self.kind {
            Kind::Lock => self.lock(slot),
            Kind::GetAttr => self.call(
                slot,
                1,
                |e| {
                    e.opaque(fh);
                },
                0,
            ),
            Kind::Read | Kind::StreamRead => self.call(
                slot,
                6,
                |e| {
                    e.opaque(fh).u64(at).u32(size as u32);
                },
                0,
            ),
            Kind::WriteSync | Kind::WriteUnstable | Kind::Stream => {
                let stable = if self.kind == Kind::WriteSync { 2 } else { 0 };
                let head = |e: &mut Enc| {
                    e.opaque(fh).u64(at).u32(size as u32).u32(stable);
                    e.u32(size as u32);
                };
                self.call(slot, 7, head, size);
                let most = self.pool.len() - size;
                let from = self.rng.below(most as u64 + 1) as usize & !3;
                if size as u64 == SMALL {
                    self.out.extend_from_slice(&self.pool[from..from + size]);
                } else {
                    let mut socket = self.socket;
                    socket.write_all(&self.out).map_err(bad)?;
                    self.out.clear();
                    socket
                        .write_all(&self.pool[from..from + size])
                        .map_err(bad)?;
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, mut reply: Dec) -> Result<(Instant, usize), BenchError> {
        let (xid, accepted) = decode_reply(&mut reply).map_err(bad)?;
        accepted.map_err(|s| bad(format_args!("the server refused a call (accept_stat {s})")))?;
        if self.kind == Kind::Lock {
            reply.opaque(1024).map_err(bad)?;
        }
        let status = reply.u32().map_err(bad)?;
        if status != 0 {
            return Err(bad(format_args!(
                "the server answered with status {status}"
            )));
        }
        if matches!(self.kind, Kind::WriteUnstable | Kind::Stream) && !self.unstable {
            get_wcc(&mut reply).map_err(bad)?;
            reply.u32().map_err(bad)?;
            self.unstable = reply.u32().map_err(bad)? == 0;
        }
        self.open
            .remove(&xid)
            .ok_or_else(|| bad("a reply to a call that was not made"))
    }

    fn commit(&mut self, input: &mut Assembler) -> Result<(), BenchError> {
        let fh = self.fh;
        self.call(
            0,
            21,
            |e| {
                e.opaque(fh).u64(0).u32(0);
            },
            0,
        );
        let mut socket = self.socket;
        socket.write_all(&self.out).map_err(bad)?;
        self.out.clear();
        let next = input.next(|v| {
            let room = rustix::buffer::spare_capacity(v);
            Ok(rustix::net::recv(socket, room, rustix::net::RecvFlags::empty())?.0)
        });
        match next.map_err(bad)? {
            Progress::Record(r) => self.check(Dec::new(r)).map(|_| ()),
            Progress::Starved => Err(BenchError::Stalled(TIMEOUT)),
        }
    }
}
