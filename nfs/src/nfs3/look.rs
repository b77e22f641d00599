//! What is asked and changes nothing: GETATTR, LOOKUP, ACCESS, READLINK, FSSTAT, FSINFO, PATHCONF.

use trivet_fs::{Access, Attr, Creds, FileKind, FsError};

use super::types::{MAX_FILE, MAX_IO, Status, put_attr, put_post, put_time};
use super::{Caller, Nfs3};
use crate::handle::HANDLE_BYTES;
use crate::rpc::Call;
use crate::xdr::{Enc, XdrResult};

/// Preferred size of a directory listing, in bytes.
const DIR_PREFERRED: u32 = 128 << 10;
/// Longest name, in bytes.
const NAME_MAX: u32 = 255;
/// Links that an object may have.
const LINK_MAX: u32 = 65_000;
/// `FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME`.
const PROPERTIES: u32 = 0x1 | 0x2 | 0x8 | 0x10;

impl Nfs3 {
    /// Decodes a lone handle; `answer` gets the caller who passed its export's check.
    fn on_object(
        &self,
        call: Call,
        refused: impl FnOnce(&mut Enc),
        answer: impl FnOnce(&Self, Call, Caller),
    ) {
        let mut d = call.head.args.clone();
        let who = self.caller(&call, &mut d);
        call.with_args(who, |call, who| match who {
            Ok(who) => answer(self, call, who),
            Err(status) => self.fail(call, status, refused),
        });
    }

    pub(super) fn getattr(&self, call: Call) {
        self.on_object(
            call,
            |_| (),
            |this, call, who| match this.fs.getattr(who.id()) {
                Ok(attr) => call.reply(|e| {
                    e.u32(0);
                    put_attr(e, this.fsid, &attr);
                }),
                Err(error) => {
                    if let Some(status) = this.error(&error) {
                        this.fail(call, status, |_| ());
                    }
                }
            },
        );
    }

    pub(super) fn lookup(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> {
            let who = self.caller(&call, &mut d)?;
            Ok((who, d.payload(u32::MAX)?))
        }();
        call.with_args(args, |call, (who, name)| {
            let who = match who {
                Ok(_) if name.is_empty() => Err(NO_NAME),
                other => other,
            };
            let who = match who {
                Ok(who) => who,
                Err(status) => return self.fail(call, status, |e| put_post(e, 0, None)),
            };
            // Nobody climbs out of his export.
            let stay = &name[..] == b".." && self.is_export_root(who.handle);
            let name: &[u8] = if stay { b"." } else { &name };
            match self.fs.lookup(&who.creds, who.id(), name) {
                Ok((object, dir)) => call.reply(|e| {
                    e.u32(0).opaque(&self.seal(who.handle.export, object.id));
                    put_post(e, self.fsid, Some(&object));
                    put_post(e, self.fsid, Some(&dir));
                }),
                Err(error) => self.fail_post(call, &error, who.id()),
            }
        });
    }

    pub(super) fn access(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> { Ok((self.caller(&call, &mut d)?, d.u32()?)) }();
        call.with_args(args, |call, (who, asked)| {
            let who = match who {
                Ok(who) => who,
                Err(status) => return self.fail(call, status, |e| put_post(e, 0, None)),
            };
            // What is asked here is what an open would be allowed: without the leniency that
            // READ and WRITE have for files that were opened earlier.
            let creds = Creds {
                stateless: false,
                ..who.creds.clone()
            };
            let all = Access::READ | Access::WRITE | Access::EXEC;
            match self.fs.access(&creds, who.id(), all) {
                Ok((has, attr)) => {
                    let granted = asked & granted(has, &attr, who.read_only);
                    call.reply(|e| {
                        e.u32(0);
                        put_post(e, self.fsid, Some(&attr));
                        e.u32(granted);
                    });
                }
                Err(error) => self.fail_post(call, &error, who.id()),
            }
        });
    }

    pub(super) fn readlink(&self, call: Call) {
        self.on_object(
            call,
            |e| put_post(e, 0, None),
            |this, call, who| match this.fs.readlink(&who.creds, who.id()) {
                Ok((target, attr)) => call.reply(|e| {
                    e.u32(0);
                    put_post(e, this.fsid, Some(&attr));
                    e.opaque(&target);
                }),
                Err(error) => this.fail_post(call, &error, who.id()),
            },
        );
    }

    pub(super) fn fsstat(&self, call: Call) {
        self.on_object(
            call,
            |e| put_post(e, 0, None),
            |this, call, who| {
                let both = || -> Result<_, FsError> {
                    Ok((this.fs.getattr(who.id())?, this.fs.statfs()?))
                };
                match both() {
                    Ok((attr, s)) => call.reply(|e| {
                        e.u32(0);
                        put_post(e, this.fsid, Some(&attr));
                        e.u64(s.total_bytes).u64(s.free_bytes).u64(s.free_bytes);
                        let inodes = s.inodes.saturating_add(s.free_inodes);
                        e.u64(inodes).u64(s.free_inodes).u64(s.free_inodes);
                        e.u32(0);
                    }),
                    Err(error) => this.fail_post(call, &error, who.id()),
                }
            },
        );
    }

    pub(super) fn fsinfo(&self, call: Call) {
        self.on_object(
            call,
            |e| put_post(e, 0, None),
            |this, call, who| match this.fs.getattr(who.id()) {
                Ok(attr) => call.reply(|e| {
                    e.u32(0);
                    put_post(e, this.fsid, Some(&attr));
                    e.u32(MAX_IO).u32(MAX_IO).u32(4096);
                    e.u32(MAX_IO).u32(MAX_IO).u32(4096);
                    e.u32(DIR_PREFERRED).u64(MAX_FILE);
                    let delta = trivet_fs::Time { secs: 0, nanos: 1 };
                    put_time(e, delta);
                    e.u32(PROPERTIES);
                }),
                Err(error) => this.fail_post(call, &error, who.id()),
            },
        );
    }

    pub(super) fn pathconf(&self, call: Call) {
        self.on_object(
            call,
            |e| put_post(e, 0, None),
            |this, call, who| match this.fs.getattr(who.id()) {
                Ok(attr) => call.reply(|e| {
                    e.u32(0);
                    put_post(e, this.fsid, Some(&attr));
                    e.u32(LINK_MAX).u32(NAME_MAX);
                    // no_trunc, chown_restricted, not case_insensitive, case_preserving.
                    e.bool(true).bool(true).bool(false).bool(true);
                }),
                Err(error) => this.fail_post(call, &error, who.id()),
            },
        );
    }

    /// `post_op_fh3` of a new or listed object.
    pub(super) fn put_handle(&self, e: &mut Enc, sealed: &[u8; HANDLE_BYTES]) {
        e.bool(true).opaque(sealed);
    }
}

/// ACCESS bits of RFC 1813 for the access that a caller has.
fn granted(has: Access, attr: &Attr, read_only: bool) -> u32 {
    const READ: u32 = 1;
    const LOOKUP: u32 = 2;
    const MODIFY: u32 = 4;
    const EXTEND: u32 = 8;
    const DELETE: u32 = 16;
    const EXECUTE: u32 = 32;
    let dir = attr.kind == FileKind::Dir;
    let mut bits = 0;
    if has.has(Access::READ) {
        bits |= READ;
    }
    if has.has(Access::WRITE) && !read_only {
        bits |= MODIFY | EXTEND;
        // Deleting is a question to the directory.
        bits |= if dir { DELETE } else { 0 };
    }
    if has.has(Access::EXEC) {
        bits |= if dir { LOOKUP } else { EXECUTE };
    }
    bits
}

/// What a read-only export answers to every change.
pub(super) const READ_ONLY: Status = Status::RoFs;

/// What the empty name is, at every procedure that takes one (RFC 1813, 3.2, 1).
pub(super) const NO_NAME: Status = Status::Acces;
