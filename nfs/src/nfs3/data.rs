//! READ, WRITE and COMMIT.
//!
//! Where payload bytes move: a WRITE's data is a slice of the receive buffer and goes to the file
//! system as such; a READ's data are slices of the cache and go to the socket as such. No copy
//! here (short payloads excepted, see [`crate::rpc::conn`]).

use std::sync::atomic::Ordering;

use bytes::Bytes;
use trivet_fs::{Access, Change, Ctx, FsError, FsResult, ReadOut};

use super::look::READ_ONLY;
use super::types::{MAX_FILE, MAX_IO, Status, put_post, put_wcc, put_wcc_after, status_of};
use super::{Caller, DOOR, Nfs3};
use crate::rpc::Call;
use crate::rpc::conn::Payload;
use crate::xdr::{Enc, XdrError, XdrResult};

/// `stable_how`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stable {
    Unstable = 0,
    DataSync = 1,
    FileSync = 2,
}

impl Nfs3 {
    pub(super) fn read(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> {
            let who = self.caller(&call, &mut d)?;
            Ok((who, d.u64()?, d.u32()?))
        }();
        call.with_args(args, |mut call, (who, offset, count)| {
            let who = match who {
                Ok(who) => who,
                Err(status) => return self.fail(call, status, |e| put_post(e, 0, None)),
            };
            let Some(this) = self.this.upgrade() else {
                return;
            };
            // More than the largest transfer is answered short, as RFC 1813 wants it.
            let count = count.min(MAX_IO);
            call.replier.charge(count as usize);
            let Caller { creds, handle, .. } = who;
            if offset > MAX_FILE {
                // Nothing can be there: the end of the file was passed.
                let out = self.fs.read(&creds, handle.id, MAX_FILE, 0);
                return self.send_read(call, handle.id, out);
            }
            let done = move |out| this.send_read(call, handle.id, out);
            self.fs
                .read_then(&creds, handle.id, offset, count, Box::new(done));
        });
    }

    fn send_read(&self, call: Call, id: trivet_fs::InodeId, out: FsResult<ReadOut>) {
        let out = match out {
            Ok(out) => out,
            // Only regular files can be read (RFC 1813, 3.3.6).
            Err(FsError::IsDir) => return self.fail_post(call, &FsError::WrongKind, id),
            Err(error) => {
                // This may be the volume's thread: no attributes that might have to be read.
                if let Some(status) = self.error(&error) {
                    self.fail(call, status, |e| put_post(e, 0, None));
                }
                return;
            }
        };
        let payload = Payload::new(out.data);
        let bytes = payload.bytes as u32;
        self.counters
            .read_bytes
            .fetch_add(u64::from(bytes), Ordering::Relaxed);
        let mut e = call.success();
        e.u32(0);
        put_post(&mut e, self.fsid, Some(&out.attr));
        e.u32(bytes).bool(out.eof).u32(bytes);
        call.replier.send(e.bytes(), Some(payload));
    }

    pub(super) fn write(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> {
            let who = self.caller(&call, &mut d)?;
            let (offset, count) = (d.u64()?, d.u32()?);
            let stable = match d.u32()? {
                0 => Stable::Unstable,
                1 => Stable::DataSync,
                2 => Stable::FileSync,
                bad => return Err(XdrError::BadValue(bad)),
            };
            Ok((who, offset, count, stable, d.payload(u32::MAX)?))
        }();
        call.with_args(args, |mut call, (who, offset, count, stable, data)| {
            let fail = |call, status| {
                self.fail(call, status, |e| put_wcc_after(e, 0, None));
            };
            let who = match who {
                Ok(who) if who.read_only => return fail(call, READ_ONLY),
                Ok(who) => who,
                Err(status) => return fail(call, status),
            };
            if data.len() != count as usize || count > MAX_IO {
                return fail(call, Status::Inval);
            }
            let end = offset.checked_add(u64::from(count));
            if end.is_none_or(|end| end > MAX_FILE) {
                return fail(call, Status::FBig);
            }
            // The arguments are decoded: what keeps the buffer alive from here on is the data.
            call.head.args = crate::xdr::Dec::new(Bytes::new());
            self.write_data(call, who, offset, data, stable);
        });
    }

    fn write_data(&self, call: Call, who: Caller, offset: u64, data: Bytes, stable: Stable) {
        let count = data.len() as u32;
        if count == 0 {
            return self.write_nothing(call, &who);
        }
        let ctx = Ctx::by(&who.creds, DOOR);
        let done = match self.fs.write(ctx, who.id(), offset, data) {
            Ok(done) => done,
            Err(error) => return self.fail_write(call, &error, &who),
        };
        self.counters
            .written_bytes
            .fetch_add(u64::from(count), Ordering::Relaxed);
        let mut e = call.success();
        let at = e.len();
        self.put_written(&mut e, &done.value, count, stable);
        if stable == Stable::Unstable {
            return call.replier.send(e.bytes(), None);
        }
        self.when_durable(done.mark, call, e, at, |e| put_wcc_after(e, 0, None));
    }

    fn put_written(&self, e: &mut Enc, change: &Change, count: u32, stable: Stable) {
        e.u32(0);
        put_wcc(e, self.fsid, change);
        // DATA_SYNC gets FILE_SYNC: the size and the times are in the same history.
        let committed = match stable {
            Stable::Unstable => Stable::Unstable,
            Stable::DataSync | Stable::FileSync => Stable::FileSync,
        };
        e.u32(count).u32(committed as u32).fixed(&self.verifier());
    }

    /// A write of no bytes changes nothing, but asks for permission all the same.
    fn write_nothing(&self, call: Call, who: &Caller) {
        match self.fs.access(&who.creds, who.id(), Access::WRITE) {
            Ok((has, attr)) if attr.kind != trivet_fs::FileKind::File => {
                let _ = has;
                self.fail(call, Status::Inval, |e| {
                    put_wcc_after(e, self.fsid, Some(&attr));
                });
            }
            Ok((has, attr)) if has.has(Access::WRITE) => call.reply(|e| {
                e.u32(0);
                put_wcc_after(e, self.fsid, Some(&attr));
                e.u32(0)
                    .u32(Stable::FileSync as u32)
                    .fixed(&self.verifier());
            }),
            Ok((_, attr)) => self.fail(call, Status::Acces, |e| {
                put_wcc_after(e, self.fsid, Some(&attr));
            }),
            Err(error) => self.fail_write(call, &error, who),
        }
    }

    fn fail_write(&self, call: Call, error: &FsError, who: &Caller) {
        // WRITE to anything but a regular file is INVAL (RFC 1813, 3.3.7).
        let error = match error {
            FsError::IsDir => &FsError::WrongKind,
            other => other,
        };
        if let Some(status) = self.error(error) {
            let attr = self.attr_after(error, who.id());
            self.fail(call, status, |e| put_wcc_after(e, self.fsid, attr.as_ref()));
        }
    }

    pub(super) fn commit(&self, call: Call) {
        let mut d = call.head.args.clone();
        let args = || -> XdrResult<_> {
            let who = self.caller(&call, &mut d)?;
            Ok((who, d.u64()?, d.u32()?))
        }();
        call.with_args(args, |call, (who, _offset, _count)| {
            let who = match who {
                Ok(who) => who,
                Err(status) => return self.fail(call, status, |e| put_wcc_after(e, 0, None)),
            };
            let attr = match self.fs.getattr(who.id()) {
                Ok(attr) => attr,
                Err(error) => return self.fail_write(call, &error, &who),
            };
            if attr.kind != trivet_fs::FileKind::File {
                return self.fail(call, Status::Inval, |e| {
                    put_wcc_after(e, self.fsid, Some(&attr));
                });
            }
            let mut e = call.success();
            let at = e.len();
            e.u32(0);
            put_wcc_after(&mut e, self.fsid, Some(&attr));
            e.fixed(&self.verifier());
            let mark = self.fs.last_mark();
            self.when_durable(mark, call, e, at, |e| put_wcc_after(e, 0, None));
        });
    }

    /// Sends `reply` once `mark` is durable; if that fails, the error and its `failing` arm in
    /// place of what was written from byte `at` on.
    pub(super) fn when_durable(
        &self,
        mark: trivet_fs::Mark,
        call: Call,
        mut reply: Enc,
        at: usize,
        failing: fn(&mut Enc),
    ) {
        let this = self.this.clone();
        let replier = call.replier;
        self.committer.wait(
            mark,
            Box::new(move |result, queued| {
                if let Err(error) = result {
                    // Counted while the server is there; the answer does not depend on it.
                    let status = match this.upgrade() {
                        Some(this) => this.error(error),
                        None => status_of(error),
                    };
                    let Some(status) = status else {
                        return;
                    };
                    reply.truncate(at);
                    reply.u32(status as u32);
                    failing(&mut reply);
                }
                replier.queue(reply.bytes(), None);
                queued.push(replier);
            }),
        );
    }
}
