//! NFSv3 (RFC 1813): all 22 procedures.
//!
//! Invariants:
//! - Every call is checked against its export, by the address that it comes from
//!   ([`Nfs3::caller`]).
//! - Attributes before and after a change are those that the file system took under the lock of
//!   the change; where it gives none, none are sent.
//! - A stable change is answered through [`Committer`], a call that is not idempotent through
//!   [`Replays`], and nothing is answered while the volume is not held here.
//! - Calls that may wait go through a gate; together the gates admit fewer than there are threads.
//!
//! `look` answers questions, `dir` lists, `data` reads and writes, `change` does the rest.

mod change;
mod data;
mod dir;
mod look;
pub mod types;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use trivet_fs::{Attr, Creds, Door, FsError, InodeId, STREAM, Vfs};
use trivet_replica::VolumeInfo;

use crate::commit::Committer;
use crate::export::{Exports, Refusal};
use crate::handle::{Handle, HandleError, HandleKey};
use crate::replay::Replays;
use crate::rpc::conn::lock;
use crate::rpc::gate::Gate;
use crate::rpc::message::AcceptStat;
use crate::rpc::{Call, Program};
use crate::xdr::{Dec, Enc, XdrResult};
use types::{Status, put_post, status_of};

/// NFS's door to the file system: its watchers are not told of changes through it.
pub const DOOR: Door = Door(2);

/// Tells which volume is served, and which reign and losses make the write verifier.
pub type Identity = Arc<dyn Fn() -> VolumeInfo + Send + Sync>;

/// Names of the procedures, by number.
pub const PROCEDURES: [&str; 22] = [
    "null",
    "getattr",
    "setattr",
    "lookup",
    "access",
    "readlink",
    "read",
    "write",
    "create",
    "mkdir",
    "symlink",
    "mknod",
    "remove",
    "rmdir",
    "rename",
    "link",
    "readdir",
    "readdirplus",
    "fsstat",
    "fsinfo",
    "pathconf",
    "commit",
];

/// What is counted.
#[derive(Debug, Default)]
pub struct Nfs3Counters {
    /// Calls by procedure.
    pub calls: [AtomicU64; 22],
    /// Calls answered with an error.
    pub errors: AtomicU64,
    /// Handles that are malformed, foreign or forged.
    pub bad_handles: AtomicU64,
    /// Calls that were not answered because the volume is not held.
    pub silent: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
}

/// The program.
pub struct Nfs3 {
    fs: Arc<dyn Vfs>,
    exports: Arc<Exports>,
    key: HandleKey,
    /// File-system number in attributes: the same on every node.
    fsid: u64,
    identity: Identity,
    verifier: Mutex<((u64, u64), [u8; 8])>,
    committer: Arc<Committer>,
    replays: Arc<Replays>,
    gates: Gates,
    /// Directory of each export, which its root's `..` must not leave.
    roots: Mutex<std::collections::HashMap<u32, InodeId>>,
    /// What happened.
    pub counters: Nfs3Counters,
    this: std::sync::Weak<Nfs3>,
}

struct Gates {
    look: Gate,
    read: Gate,
    /// Small writes and COMMIT, which do not wait behind large writes.
    write: Gate,
    stream: Gate,
    change: Gate,
}

/// Who calls, on what, and what he may.
struct Caller {
    handle: Handle,
    creds: Creds,
    read_only: bool,
}

impl Caller {
    fn id(&self) -> InodeId {
        self.handle.id
    }
}

impl Nfs3 {
    /// Serves `fs` under `exports`; `threads` is the number of serving threads.
    pub fn new(
        fs: Arc<dyn Vfs>,
        exports: Arc<Exports>,
        identity: Identity,
        committer: Arc<Committer>,
        threads: usize,
    ) -> Arc<Nfs3> {
        let id = blake3::hash(&fs.fsid().to_be_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&id.as_bytes()[..8]);
        Arc::new_cyclic(|this| Nfs3 {
            key: HandleKey::new(fs.fsid()),
            fsid: u64::from_be_bytes(word),
            replays: Replays::new(Arc::clone(&fs)),
            fs,
            exports,
            identity,
            verifier: Mutex::new(((u64::MAX, u64::MAX), [0; 8])),
            committer,
            gates: Gates {
                look: Gate::new(threads / 6),
                read: Gate::new(threads / 6),
                write: Gate::new(threads / 6),
                stream: Gate::new(threads / 6),
                change: Gate::new(threads / 6),
            },
            roots: Mutex::default(),
            counters: Nfs3Counters::default(),
            this: this.clone(),
        })
    }

    /// The sealed handle of an object under an export.
    pub fn seal(&self, export: u32, id: InodeId) -> [u8; crate::handle::HANDLE_BYTES] {
        self.key.seal(Handle { export, id })
    }

    /// What a handle names.
    ///
    /// # Errors
    /// [`HandleError`].
    pub fn open(&self, bytes: &[u8]) -> Result<Handle, HandleError> {
        self.key.open(bytes)
    }

    /// Counters of repeated calls.
    pub fn replays(&self) -> &crate::replay::ReplayCounters {
        &self.replays.counters
    }

    /// The write verifier (invariant 9): a hash of the volume, the reign and the loss counter.
    pub fn verifier(&self) -> [u8; 8] {
        let info = (self.identity)();
        let now = (info.generation, info.losses);
        let mut cached = lock(&self.verifier);
        if cached.0 != now {
            let mut h = blake3::Hasher::new();
            h.update(&info.id.bytes());
            h.update(&info.generation.to_be_bytes());
            h.update(&info.losses.to_be_bytes());
            let mut v = [0; 8];
            v.copy_from_slice(&h.finalize().as_bytes()[..8]);
            *cached = (now, v);
        }
        cached.1
    }

    /// Remembers the directory of an export.
    pub fn set_root(&self, export: u32, id: InodeId) {
        lock(&self.roots).insert(export, id);
    }

    /// Whether `id` is the directory of its export (or the root of all).
    fn is_export_root(&self, h: Handle) -> bool {
        if h.id == self.fs.root() {
            return true;
        }
        if let Some(root) = lock(&self.roots).get(&h.export) {
            return *root == h.id;
        }
        // After a restart nobody need mount again: find it by the path.
        match self
            .exports
            .by_id(h.export)
            .map(|e| self.resolve(&e.directory))
        {
            Some(Ok(attr)) => {
                self.set_root(h.export, attr.id);
                attr.id == h.id
            }
            _ => false,
        }
    }

    /// The object at a path from the root, as root.
    ///
    /// # Errors
    /// As lookups.
    pub fn resolve<S: AsRef<str>>(&self, path: &[S]) -> Result<Attr, FsError> {
        let creds = Creds::root();
        let mut at = self.fs.getattr(self.fs.root())?;
        for name in path {
            at = self.fs.lookup(&creds, at.id, name.as_ref().as_bytes())?.0;
        }
        Ok(at)
    }

    /// Reads a handle from the arguments and checks the call against its export.
    fn caller(&self, call: &Call, d: &mut Dec) -> XdrResult<Result<Caller, Status>> {
        let bytes = d.payload(64)?;
        let handle = match self.key.open(&bytes) {
            Ok(h) => h,
            Err(e) => {
                self.counters.bad_handles.fetch_add(1, Ordering::Relaxed);
                return Ok(Err(match e {
                    HandleError::Malformed => Status::BadHandle,
                    HandleError::Foreign => Status::Stale,
                }));
            }
        };
        let peer = call.replier.peer();
        let admitted = self
            .exports
            .admit(handle.export, peer, &call.head.credential);
        Ok(match admitted {
            Ok(a) => Ok(Caller {
                handle,
                creds: a.creds,
                read_only: a.read_only,
            }),
            // An export that is gone may come back with a corrected configuration; STALE would
            // be for ever.
            Err(Refusal::NoExport | Refusal::NotListed) => Err(Status::Acces),
            Err(Refusal::HighPort) => Err(Status::Perm),
        })
    }

    /// What an error is to the client, counted; `None`: silence.
    fn error(&self, e: &FsError) -> Option<Status> {
        let status = status_of(e);
        let counter = match status {
            Some(_) => &self.counters.errors,
            None => &self.counters.silent,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let FsError::Damaged { .. } | FsError::Volume(_) | FsError::Stopped(_) = e {
            tracing::error!("an NFS call failed: {e}");
        }
        status
    }

    /// Answers with an error, followed by `after`, its failing arm.
    fn fail(&self, call: Call, status: Status, after: impl FnOnce(&mut Enc)) {
        call.reply(|e| {
            e.u32(status as u32);
            after(e);
        });
    }

    /// Answers with what an error is, if anything; the failing arm is a `post_op_attr` of `id`.
    fn fail_post(&self, call: Call, error: &FsError, id: InodeId) {
        if let Some(status) = self.error(error) {
            let attr = self.attr_after(error, id);
            self.fail(call, status, |e| put_post(e, self.fsid, attr.as_ref()));
        }
    }

    /// Attributes for a failing arm, if they can be had.
    fn attr_after(&self, error: &FsError, id: InodeId) -> Option<Attr> {
        match error {
            FsError::Stale(_) | FsError::Volume(_) | FsError::Damaged { .. } => None,
            _ => self.fs.getattr(id).ok(),
        }
    }

    fn dispatch(&self, call: Call) {
        match call.head.procedure {
            0 => call.reply(|_| ()),
            1 => self.getattr(call),
            3 => self.lookup(call),
            4 => self.access(call),
            5 => self.readlink(call),
            6 => self.read(call),
            7 => self.write(call),
            16 => self.readdir(call, false),
            17 => self.readdir(call, true),
            18 => self.fsstat(call),
            19 => self.fsinfo(call),
            20 => self.pathconf(call),
            21 => self.commit(call),
            _ => self.change(call),
        }
    }
}

impl Program for Nfs3 {
    fn number(&self) -> u32 {
        types::PROGRAM
    }

    fn versions(&self) -> (u32, u32) {
        (3, 3)
    }

    fn held(&self, procedure: u32) -> bool {
        procedure != 0
    }

    fn stage(&self, procedure: u32) -> &'static str {
        match procedure {
            6 => "nfs.read",
            7 => "nfs.write",
            21 => "nfs.commit",
            0 | 1 | 3 | 4 | 5 | 16..=20 => "nfs.look",
            _ => "nfs.change",
        }
    }

    fn call(&self, call: Call) {
        let Some(count) = self.counters.calls.get(call.head.procedure as usize) else {
            return call.refuse(AcceptStat::ProcedureUnavailable);
        };
        count.fetch_add(1, Ordering::Relaxed);
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let gate = match call.head.procedure {
            // Answered from memory, whatever the disks do.
            0 | 18 | 19 | 20 => return self.dispatch(call),
            1 | 3 | 4 | 5 | 16 | 17 => &self.gates.look,
            6 => &self.gates.read,
            7 if call.head.args.rest().len() >= STREAM => &self.gates.stream,
            7 | 21 => &self.gates.write,
            _ => &self.gates.change,
        };
        gate.pass(move || {
            // A call of a connection that has ended is dropped, never run after a later one of
            // its client (design section 8).
            if !call.replier.is_gone() {
                this.dispatch(call);
            }
        });
    }

    fn turn_ended(&self) {
        self.committer.kick();
    }
}
