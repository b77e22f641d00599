//! NLM version 4: byte-range locks for NFSv3 clients.
//!
//! The lock table is the file system's, shared with the FUSE door, and durable: there is no grace
//! period and nothing to reclaim after a restart or a takeover (invariant 9).
//!
//! Invariants:
//! - LOCK and UNLOCK are answered when they are durable, sharing the flush of all others.
//! - An owner is (name and address of the client, its owner handle, its svid): a client can
//!   neither take nor give back another's locks.
//! - A call is checked against its export like every NFS call.
//! - A granted wait is told to its client until it accepts. One that never does within the tries
//!   keeps the lock only if it asked again meanwhile.
//!
//! Share reservations (SHARE, for Windows clients) are kept in memory and end with the daemon.

mod callback;
pub mod types;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use trivet_fs::lock::{LockCall, LockFamily, LockHeld, LockKind, LockOwner, LockRange};
use trivet_fs::{FsError, FsResult, InodeId, Mark, Vfs};
use trivet_replica::VolumeError;

use crate::commit::Committer;
use crate::export::{Exports, plain};
use crate::nfs3::Nfs3;
use crate::rpc::conn::lock;
use crate::rpc::gate::Gate;
use crate::rpc::message::AcceptStat;
use crate::rpc::{Call, Program};
use crate::xdr::{Dec, Enc, XdrResult};
use callback::{Callback, Callbacks};
use types::{Lock, Share, Stat, get_cookie, get_notify, put_holder, split_host};

/// Procedure GRANTED.
const GRANTED: u32 = 5;
/// Share reservations, at most.
const MAX_SHARES: usize = 65_536;
/// Waits of one client whose outcome is not known yet, at most.
const MAX_WAITS: usize = 4096;

/// What is counted.
#[derive(Debug, Default)]
pub struct NlmCounters {
    /// Locks asked for.
    pub locks: AtomicU64,
    /// Locks given back.
    pub unlocks: AtomicU64,
    /// Locks refused because another holds them.
    pub denied: AtomicU64,
    /// Waits that were granted.
    pub granted_later: AtomicU64,
    /// Locks dropped because their client restarted or was given up.
    pub released: AtomicU64,
}

type WaitKey = (InodeId, LockOwner, LockRange);

/// One share reservation.
struct Reservation {
    host: Vec<u8>,
    owner: Vec<u8>,
    deny: u32,
    access: u32,
}

/// The program.
pub struct Nlm {
    fs: Arc<dyn Vfs>,
    nfs: Arc<Nfs3>,
    exports: Arc<Exports>,
    committer: Arc<Committer>,
    callbacks: Callbacks,
    gate: Gate,
    waits: Mutex<HashMap<WaitKey, ()>>,
    shares: Mutex<HashMap<InodeId, Vec<Reservation>>>,
    /// What happened.
    pub counters: NlmCounters,
    this: Weak<Nlm>,
}

/// A lock call whose caller was admitted.
struct Request {
    lock: Lock,
    id: InodeId,
    owner: LockOwner,
    /// Of the client.
    address: IpAddr,
    cookie: Vec<u8>,
    read_only: bool,
}

impl Request {
    fn call(&self, kind: LockKind) -> LockCall {
        LockCall {
            family: LockFamily::Range,
            owner: self.owner.clone(),
            kind,
            range: self.lock.range(),
        }
    }

    fn key(&self) -> WaitKey {
        (self.id, self.owner.clone(), self.lock.range())
    }
}

/// The way an answer goes: in the reply, or (the `_MSG` forms) in a call of our own.
enum Answer {
    Reply(Box<Call>),
    CallBack { to: IpAddr, procedure: u32 },
}

fn kind_of(exclusive: bool) -> LockKind {
    match exclusive {
        true => LockKind::Exclusive,
        false => LockKind::Shared,
    }
}

/// What an error of the lock table is to a client; `None`: silence.
fn stat_of(e: &FsError) -> Option<Stat> {
    Some(match e {
        FsError::Locked => Stat::Denied,
        FsError::Limit(_) | FsError::NoSpace(_) => Stat::DeniedNoLocks,
        FsError::Deadlock => Stat::Deadlock,
        FsError::Stale(_) | FsError::NotFound => Stat::StaleFh,
        FsError::TooBig => Stat::FBig,
        FsError::ReadOnly => Stat::RoFs,
        FsError::Volume(VolumeError::NotActive(_)) | FsError::Stopped(_) => return None,
        _ => Stat::Failed,
    })
}

impl Nlm {
    /// Locks of the files that `nfs` serves.
    ///
    /// # Errors
    /// What the system says when a thread cannot be had.
    pub fn new(
        fs: Arc<dyn Vfs>,
        nfs: Arc<Nfs3>,
        exports: Arc<Exports>,
        committer: Arc<Committer>,
        threads: usize,
    ) -> std::io::Result<Arc<Nlm>> {
        let callbacks = Callbacks::start()?;
        Ok(Arc::new_cyclic(|this| Nlm {
            fs,
            nfs,
            exports,
            committer,
            callbacks,
            gate: Gate::new(threads / 8),
            waits: Mutex::default(),
            shares: Mutex::default(),
            counters: NlmCounters::default(),
            this: this.clone(),
        }))
    }

    /// The locks held, at most `max`, with the names of their clients.
    pub fn list(&self, max: usize) -> Vec<(InodeId, LockHeld)> {
        self.fs.lock_list(max)
    }

    /// Drops all locks and waits of the clients for which `which(name, address)` says so; returns
    /// how many, when that is durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn release(&self, which: impl Fn(&[u8], IpAddr) -> bool) -> FsResult<usize> {
        let of_host = |host: &[u8]| split_host(host).is_some_and(|(n, a)| which(n, a));
        let owned = |o: &LockOwner| matches!(o, LockOwner::Nlm { host, .. } if of_host(host));
        for list in lock(&self.shares).values_mut() {
            list.retain(|r| !of_host(&r.host));
        }
        lock(&self.waits).retain(|(_, owner, _), ()| !owned(owner));
        let done = self.fs.lock_release(None, &owned)?;
        self.counters
            .released
            .fetch_add(done.value as u64, Ordering::Relaxed);
        self.fs.flush(done.mark)?;
        Ok(done.value)
    }

    /// Answers with `stat` and what follows it.
    fn answer(&self, to: Answer, cookie: &[u8], stat: Stat, more: impl FnOnce(&mut Enc)) {
        let put = |e: &mut Enc| {
            e.opaque(cookie).u32(stat as u32);
            more(e);
        };
        match to {
            Answer::Reply(call) => call.reply(put),
            Answer::CallBack { to, procedure } => {
                let mut e = Enc::new();
                put(&mut e);
                self.callbacks.call(Callback {
                    to,
                    procedure,
                    args: e.into_vec(),
                    outcome: None,
                });
            }
        }
    }

    /// Answers with `stat` once `mark` is durable.
    fn answer_durable(&self, to: Answer, cookie: Vec<u8>, stat: Stat, mark: Mark) {
        let this = self.this.clone();
        self.committer.wait(
            mark,
            Box::new(move |result, queued| {
                let stat = match result {
                    Ok(()) => Some(stat),
                    Err(e) => stat_of(e),
                };
                let (Some(stat), Some(this)) = (stat, this.upgrade()) else {
                    return;
                };
                match to {
                    Answer::Reply(call) => {
                        let mut e = call.success();
                        e.opaque(&cookie).u32(stat as u32);
                        call.replier.queue(e.bytes(), None);
                        queued.push(call.replier);
                    }
                    other => this.answer(other, &cookie, stat, |_| ()),
                }
            }),
        );
    }

    /// Checks the file and the caller of a lock call.
    fn admit(&self, call: &Call, cookie: Vec<u8>, lock: Lock) -> Result<Request, (Vec<u8>, Stat)> {
        let peer = call.replier.peer();
        let Ok(handle) = self.nfs.open(&lock.handle) else {
            return Err((cookie, Stat::StaleFh));
        };
        // A lock manager's calls may come from any port, as rpc.lockd's do.
        let mut as_low = peer;
        as_low.set_port(1);
        let credential = &call.head.credential;
        let Ok(who) = self.exports.admit(handle.export, as_low, credential) else {
            return Err((cookie, Stat::Failed));
        };
        let address = plain(peer.ip());
        match lock.owner_at(address) {
            Some(owner) => Ok(Request {
                id: handle.id,
                owner,
                address,
                cookie,
                read_only: who.read_only,
                lock,
            }),
            None => Err((cookie, Stat::DeniedNoLocks)),
        }
    }

    fn test(&self, to: Answer, exclusive: bool, r: Request) {
        match self.fs.lock_test(r.id, &r.call(kind_of(exclusive))) {
            Ok(None) => self.answer(to, &r.cookie, Stat::Granted, |_| ()),
            Ok(Some(held)) => {
                self.answer(to, &r.cookie, Stat::Denied, |e| put_holder(e, &held));
            }
            Err(e) => self.refuse(to, &r.cookie, &e),
        }
    }

    fn refuse(&self, to: Answer, cookie: &[u8], e: &FsError) {
        if let Some(stat) = stat_of(e) {
            if stat == Stat::Denied {
                self.counters.denied.fetch_add(1, Ordering::Relaxed);
            }
            // TEST's answer to DENIED has a holder; its errors are never DENIED.
            self.answer(to, cookie, stat, |_| ());
        }
    }

    fn lock(&self, to: Answer, exclusive: bool, block: bool, r: Request) {
        self.counters.locks.fetch_add(1, Ordering::Relaxed);
        if r.read_only && exclusive {
            return self.answer(to, &r.cookie, Stat::RoFs, |_| ());
        }
        let call = r.call(kind_of(exclusive));
        match self.fs.lock(r.id, &call, None) {
            Ok(done) => {
                // Also the answer to a repeated call that was granted meanwhile.
                lock(&self.waits).remove(&r.key());
                self.answer_durable(to, r.cookie, Stat::Granted, done.mark);
            }
            Err(FsError::Locked) if block => self.wait(to, exclusive, &call, r),
            Err(e) => self.refuse(to, &r.cookie, &e),
        }
    }

    /// Waits for a lock on the client's behalf; a repetition of a wait adds none.
    fn wait(&self, to: Answer, exclusive: bool, call: &LockCall, r: Request) {
        {
            let mut waits = lock(&self.waits);
            if waits.contains_key(&r.key()) {
                drop(waits);
                return self.answer(to, &r.cookie, Stat::Blocked, |_| ());
            }
            if waits.len() >= MAX_WAITS {
                drop(waits);
                return self.answer(to, &r.cookie, Stat::DeniedNoLocks, |_| ());
            }
            waits.insert(r.key(), ());
        }
        let granted = Waiting {
            nlm: self.this.clone(),
            key: r.key(),
            lock: r.lock.clone(),
            exclusive,
            address: r.address,
        };
        let told = Box::new(move |outcome: FsResult<Mark>| granted.outcome(outcome));
        match self.fs.lock(r.id, call, Some(told)) {
            Ok(done) if done.value => {
                lock(&self.waits).remove(&r.key());
                self.answer_durable(to, r.cookie, Stat::Granted, done.mark);
            }
            // The wait is answered for when it is stored.
            Ok(done) => self.answer_durable(to, r.cookie, Stat::Blocked, done.mark),
            Err(e) => {
                lock(&self.waits).remove(&r.key());
                self.refuse(to, &r.cookie, &e);
            }
        }
    }

    fn cancel(&self, to: Answer, r: Request) {
        lock(&self.waits).remove(&r.key());
        match self.fs.lock_cancel(r.id, &r.owner, r.lock.range()) {
            Ok(done) => {
                let stat = match done.value {
                    true => Stat::Granted,
                    false => Stat::Denied,
                };
                self.answer_durable(to, r.cookie, stat, done.mark);
            }
            Err(e) => self.refuse(to, &r.cookie, &e),
        }
    }

    fn unlock(&self, to: Answer, r: Request) {
        self.counters.unlocks.fetch_add(1, Ordering::Relaxed);
        match self.fs.lock(r.id, &r.call(LockKind::Unlock), None) {
            Ok(done) => self.answer_durable(to, r.cookie, Stat::Granted, done.mark),
            // The file is gone, and its locks with it.
            Err(FsError::Stale(_)) => self.answer(to, &r.cookie, Stat::Granted, |_| ()),
            Err(e) => self.refuse(to, &r.cookie, &e),
        }
    }

    fn share(&self, call: Call, cookie: &[u8], share: &Share, take: bool) {
        let peer = call.replier.peer();
        let stat = match self.nfs.open(&share.handle) {
            Err(_) => Stat::StaleFh,
            Ok(h) => match self.exports.admit(h.export, peer, &call.head.credential) {
                Err(_) => Stat::Failed,
                Ok(_) => self.reserve(h.id, plain(peer.ip()), share, take),
            },
        };
        call.reply(|e| {
            e.opaque(cookie).u32(stat as u32).u32(0);
        });
    }

    fn reserve(&self, id: InodeId, address: IpAddr, share: &Share, take: bool) -> Stat {
        let host = types::host_name(&share.caller, address);
        let mut shares = lock(&self.shares);
        let full = shares.values().map(Vec::len).sum::<usize>() >= MAX_SHARES;
        let list = shares.entry(id).or_default();
        let own = |r: &Reservation| r.host == host && r.owner == share.owner;
        if !take {
            list.retain(|r| !own(r));
            if list.is_empty() {
                shares.remove(&id);
            }
            return Stat::Granted;
        }
        let clash =
            |r: &Reservation| !own(r) && (r.deny & share.access | r.access & share.deny) != 0;
        if list.iter().any(clash) {
            return Stat::Denied;
        }
        if full {
            return Stat::DeniedNoLocks;
        }
        list.retain(|r| !own(r));
        list.push(Reservation {
            owner: share.owner.clone(),
            deny: share.deny,
            access: share.access,
            host,
        });
        Stat::Granted
    }

    fn free_all(&self, call: Call, name: &[u8]) {
        let address = plain(call.replier.peer().ip());
        // Its own locks only.
        if let Err(e) = self.release(|n, a| n == name && a == address) {
            tracing::warn!(client = %address, "FREE_ALL: {e}");
        }
        call.reply(|_| ());
    }

    fn dispatch(&self, call: Call) {
        let procedure = call.head.procedure;
        let address = plain(call.replier.peer().ip());
        let mut d = call.head.args.clone();
        match procedure {
            0 => call.reply(|_| ()),
            1..=4 => {
                let args = Args::get(procedure, &mut d);
                call.with_args(args, |call, args| self.run(procedure, call, args, None));
            }
            6..=9 => {
                let args = Args::get(procedure - 5, &mut d);
                call.with_args(args, |call, args| {
                    let back = Answer::CallBack {
                        to: address,
                        procedure: procedure + 5,
                    };
                    self.run(procedure - 5, call, args, Some(back));
                });
            }
            // Answers to what we never ask in that form.
            11..=15 => call.reply(|_| ()),
            20 | 21 => {
                let args = || -> XdrResult<_> { Ok((get_cookie(&mut d)?, Share::get(&mut d)?)) }();
                call.with_args(args, |call, (cookie, share)| {
                    self.share(call, &cookie, &share, procedure == 20);
                });
            }
            22 => {
                let args = Args::get(2, &mut d);
                call.with_args(args, |call, args| {
                    self.run(
                        2,
                        call,
                        Args {
                            block: false,
                            ..args
                        },
                        None,
                    );
                });
            }
            23 => {
                let args = get_notify(&mut d);
                call.with_args(args, |call, (name, _)| self.free_all(call, &name));
            }
            _ => call.refuse(AcceptStat::ProcedureUnavailable),
        }
    }

    fn run(&self, procedure: u32, call: Call, args: Args, back: Option<Answer>) {
        let admitted = self.admit(&call, args.cookie, args.lock);
        let to = match back {
            Some(back) => {
                // The reply says only that the message came.
                call.reply(|_| ());
                back
            }
            None => Answer::Reply(Box::new(call)),
        };
        match admitted {
            Err((cookie, stat)) => self.answer(to, &cookie, stat, |_| ()),
            Ok(r) => match procedure {
                1 => self.test(to, args.exclusive, r),
                2 => self.lock(to, args.exclusive, args.block, r),
                3 => self.cancel(to, r),
                _ => self.unlock(to, r),
            },
        }
    }
}

/// Arguments of TEST, LOCK, CANCEL and UNLOCK.
struct Args {
    cookie: Vec<u8>,
    block: bool,
    exclusive: bool,
    lock: Lock,
}

impl Args {
    fn get(procedure: u32, d: &mut Dec) -> XdrResult<Args> {
        let cookie = get_cookie(d)?;
        let block = matches!(procedure, 2 | 3) && d.bool()?;
        let exclusive = procedure != 4 && d.bool()?;
        let lock = Lock::get(d)?;
        if procedure == 2 {
            // reclaim and state: nothing is ever lost, so a reclaim is a lock like any other.
            d.bool()?;
            d.u32()?;
        }
        Ok(Args {
            cookie,
            block,
            exclusive,
            lock,
        })
    }
}

/// A wait on a client's behalf.
struct Waiting {
    nlm: Weak<Nlm>,
    key: WaitKey,
    lock: Lock,
    exclusive: bool,
    address: IpAddr,
}

impl Waiting {
    /// The table granted it or dropped it. Runs on whatever thread unlocked: must not wait.
    fn outcome(self, outcome: FsResult<Mark>) {
        let Some(nlm) = self.nlm.upgrade() else {
            return;
        };
        match outcome {
            Ok(mark) => {
                let committer = Arc::clone(&nlm.committer);
                drop(nlm);
                committer.wait_quietly(mark, Box::new(move |r, _| self.tell(r)));
            }
            Err(_) => {
                lock(&nlm.waits).remove(&self.key);
            }
        }
    }

    /// It is durable: the client is told.
    fn tell(self, durable: &FsResult<()>) {
        let Some(nlm) = self.nlm.upgrade() else {
            return;
        };
        if durable.is_err() {
            return;
        }
        nlm.counters.granted_later.fetch_add(1, Ordering::Relaxed);
        let mut e = Enc::new();
        // The cookie comes back in the answer, which is told from others by its connection.
        e.opaque(&self.lock.svid.to_be_bytes()).bool(self.exclusive);
        self.lock.put(&mut e);
        let to = self.address;
        let outcome = Box::new(move |answer: Option<Dec>| self.told(answer));
        nlm.callbacks.call(Callback {
            to,
            procedure: GRANTED,
            args: e.into_vec(),
            outcome: Some(outcome),
        });
    }

    /// The client accepted the lock, or does not want it, or is not there.
    fn told(self, answer: Option<Dec>) {
        let Some(nlm) = self.nlm.upgrade() else {
            return;
        };
        let stat = answer.and_then(|mut d| {
            get_cookie(&mut d).ok()?;
            d.u32().ok()
        });
        // If the entry is gone the client asked again and was answered, or cancelled.
        let waiting = lock(&nlm.waits).remove(&self.key).is_some();
        if stat == Some(Stat::Granted as u32) || !waiting {
            return;
        }
        let (id, owner, range) = self.key;
        tracing::info!(client = %self.address, "a granted lock was not accepted; given back");
        let call = LockCall {
            family: LockFamily::Range,
            owner,
            kind: LockKind::Unlock,
            range,
        };
        if let Err(e) = nlm.fs.lock(id, &call, None) {
            tracing::warn!("a lock that nobody wants cannot be given back: {e}");
        }
    }
}

impl Program for Nlm {
    fn number(&self) -> u32 {
        types::PROGRAM
    }

    fn versions(&self) -> (u32, u32) {
        (types::VERSION, types::VERSION)
    }

    fn held(&self, procedure: u32) -> bool {
        procedure != 0
    }

    fn call(&self, call: Call) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        self.gate.pass(move || {
            if !call.replier.is_gone() {
                this.dispatch(call);
            }
        });
    }

    fn turn_ended(&self) {
        self.committer.kick();
    }
}
