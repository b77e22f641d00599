//! MOUNT (RFC 1813, appendix I): the names of exports, and the first handle.
//!
//! Version 3 whole; of versions 1 and 2, which old tools ask, what does not hand out handles.
//! The list of mounts is what clients say and nothing more (as everywhere); it is kept in memory,
//! bounded by [`MAX_MOUNTS`], and lost with the daemon.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use trivet_fs::{FileKind, FsError};

use crate::export::{Export, Exports, MAX_PATH, Refusal, admit, plain};
use crate::nfs3::Nfs3;
use crate::nfs3::types::{Status, status_of};
use crate::rpc::conn::lock;
use crate::rpc::message::AcceptStat;
use crate::rpc::{Call, Program};
use crate::xdr::Enc;

/// Program number.
pub const PROGRAM: u32 = 100_005;
/// Mounts remembered for DUMP, at most.
const MAX_MOUNTS: usize = 4096;
/// Flavor AUTH_SYS.
const AUTH_SYS: u32 = 1;

/// The program.
pub struct Mount {
    nfs: Arc<Nfs3>,
    exports: Arc<Exports>,
    mounts: Mutex<BTreeSet<(String, String)>>,
}

impl Mount {
    /// Hands out handles of `nfs`.
    pub fn new(nfs: Arc<Nfs3>, exports: Arc<Exports>) -> Mount {
        Mount {
            nfs,
            exports,
            mounts: Mutex::default(),
        }
    }

    /// Who said that he mounted what: (address, path).
    pub fn mounts(&self) -> Vec<(String, String)> {
        lock(&self.mounts).iter().cloned().collect()
    }

    fn mnt(&self, call: Call) {
        let path = call.head.args.clone().opaque(MAX_PATH as u32);
        call.with_args(path, |call, path| {
            let path = String::from_utf8_lossy(&path).into_owned();
            match self.find(&call, &path) {
                Ok(handle) => {
                    self.remember(&call, path);
                    call.reply(|e| {
                        e.u32(0).opaque(&handle).u32(1).u32(AUTH_SYS);
                    });
                }
                Err(Some(status)) => {
                    let peer = call.replier.peer();
                    tracing::info!(%peer, path, ?status, "mount refused");
                    call.reply(|e| {
                        e.u32(status as u32);
                    });
                }
                Err(None) => {}
            }
        });
    }

    /// The handle for a path: an export's name, or a directory below one.
    fn find(&self, call: &Call, path: &str) -> Result<Vec<u8>, Option<Status>> {
        let path = path.trim_end_matches('/');
        let (export, rest) = self.export_of(path).ok_or(Some(Status::NoEnt))?;
        let peer = call.replier.peer();
        admit(&export, peer, &call.head.credential).map_err(|e| {
            Some(match e {
                Refusal::HighPort => Status::Perm,
                Refusal::NotListed | Refusal::NoExport => Status::Acces,
            })
        })?;
        let silent = |e: FsError| match e {
            FsError::Invalid(_) => Some(Status::NoEnt),
            other => status_of(&other),
        };
        let root = self.nfs.resolve(&export.directory).map_err(silent)?;
        self.nfs.set_root(export.id, root.id);
        let below = rest.split('/').filter(|c| !c.is_empty());
        let below: Vec<&str> = below.collect();
        if below.iter().any(|c| matches!(*c, "." | "..")) {
            return Err(Some(Status::Acces));
        }
        let whole: Vec<&str> = export.directory.iter().map(String::as_str).collect();
        let object = self.nfs.resolve(&[whole, below].concat()).map_err(silent)?;
        if object.kind != FileKind::Dir {
            return Err(Some(Status::NotDir));
        }
        Ok(self.nfs.seal(export.id, object.id).to_vec())
    }

    /// The export with the longest name that is the path or an ancestor of it, and what remains.
    fn export_of<'p>(&self, path: &'p str) -> Option<(Arc<Export>, &'p str)> {
        let exports = self.exports.list();
        let below = exports.into_iter().filter_map(|e| {
            let rest = path.strip_prefix(e.name.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((e, rest))
        });
        below.max_by_key(|(e, _)| e.name.len())
    }

    fn remember(&self, call: &Call, path: String) {
        let host = plain(call.replier.peer().ip()).to_string();
        let mut mounts = lock(&self.mounts);
        if mounts.len() < MAX_MOUNTS {
            mounts.insert((host, path));
        }
    }

    fn umnt(&self, call: Call) {
        let path = call.head.args.clone().opaque(MAX_PATH as u32);
        call.with_args(path, |call, path| {
            let host = plain(call.replier.peer().ip()).to_string();
            let path = String::from_utf8_lossy(&path).into_owned();
            lock(&self.mounts).remove(&(host, path));
            call.reply(|_| ());
        });
    }

    fn umnt_all(&self, call: Call) {
        let host = plain(call.replier.peer().ip()).to_string();
        lock(&self.mounts).retain(|(h, _)| *h != host);
        call.reply(|_| ());
    }

    fn put_exports(&self, e: &mut Enc) {
        for export in self.exports.list() {
            e.bool(true).opaque(export.name.as_bytes());
            for client in &export.clients {
                e.bool(true).opaque(client.net.to_string().as_bytes());
            }
            e.bool(false);
        }
        e.bool(false);
    }
}

impl Program for Mount {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn versions(&self) -> (u32, u32) {
        (1, 3)
    }

    fn held(&self, procedure: u32) -> bool {
        // A handle; the lists are the configuration's, and answered whatever the disks do.
        procedure == 1
    }

    fn call(&self, call: Call) {
        match call.head.procedure {
            0 => call.reply(|_| ()),
            1 if call.head.version == 3 => self.mnt(call),
            // NFSv2, whose handles these would be, is not served.
            1 => call.reply(|e| {
                e.u32(Status::Acces as u32);
            }),
            2 => {
                let mounts = self.mounts();
                call.reply(|e| {
                    for (host, path) in &mounts {
                        e.bool(true).opaque(host.as_bytes()).opaque(path.as_bytes());
                    }
                    e.bool(false);
                });
            }
            3 => self.umnt(call),
            4 => self.umnt_all(call),
            5 => call.reply(|e| self.put_exports(e)),
            _ => call.refuse(AcceptStat::ProcedureUnavailable),
        }
    }
}
