//! Changes of attributes and names: SETATTR, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR,
//! RENAME, LINK.
//!
//! None of them is idempotent, so each runs as [`Once`]: its answer is stored by the file system
//! in the batch of its effect, and given to the client when that batch is durable.

use bytes::Bytes;
use trivet_fs::{
    CreateHow, Ctx, Done, FsError, FsResult, InodeId, NewAttr, NodeKind, Rdev, RenameHow, Replay,
    SetAttr,
};

use super::look::{NO_NAME, READ_ONLY};
use super::types::{Status, get_set_attr, get_time, kind_number, put_post, put_wcc, put_wcc_after};
use super::{Caller, DOOR, Nfs3};
use crate::replay::Once;
use crate::rpc::Call;
use crate::rpc::message::AcceptStat;
use crate::xdr::{Dec, Enc, XdrError, XdrResult};

/// Bytes of a symlink's target, at most.
const MAX_TARGET: u32 = 1 << 16;

/// Where a name is, or will be.
struct Place {
    dir: Caller,
    name: Bytes,
}

/// A change that was decoded and whose caller was admitted.
enum Request {
    SetAttr(Caller, SetAttr),
    Create(Place, CreateHow, NewAttr),
    MkDir(Place, NewAttr),
    Symlink(Place, NewAttr, Bytes),
    MkNod(Place, NodeKind, NewAttr),
    Remove(Place),
    RmDir(Place),
    Rename(Place, Place),
    Link(Caller, Place),
}

/// What a refused call gets after its status: as many absent items as its failing arm has.
#[derive(Clone, Copy)]
enum Arm {
    /// One `wcc_data`.
    Wcc,
    /// Two `wcc_data` (RENAME).
    TwoWcc,
    /// `post_op_attr` and `wcc_data` (LINK).
    PostWcc,
}

impl Arm {
    fn of(procedure: u32) -> Arm {
        match procedure {
            14 => Arm::TwoWcc,
            15 => Arm::PostWcc,
            _ => Arm::Wcc,
        }
    }

    fn put_absent(self, e: &mut Enc) {
        let words = match self {
            Arm::Wcc => 2,
            Arm::PostWcc => 3,
            Arm::TwoWcc => 4,
        };
        for _ in 0..words {
            e.u32(0);
        }
    }
}

/// Outcome of decoding: a request, or the status that its caller gets.
type Decoded = XdrResult<Result<Request, Status>>;

impl Nfs3 {
    pub(super) fn change(&self, call: Call) {
        let arm = Arm::of(call.head.procedure);
        match self.decode_change(&call) {
            Err(_) => call.refuse(AcceptStat::GarbageArgs),
            Ok(Err(status)) => self.fail(call, status, |e| arm.put_absent(e)),
            Ok(Ok(request)) => {
                if let Some(mut once) = self.replays.begin(call)
                    && !once.is_deserted()
                {
                    self.run(once, request, arm);
                }
            }
        }
    }

    fn place(&self, call: &Call, d: &mut Dec) -> XdrResult<Result<Place, Status>> {
        let dir = self.writer(call, d)?;
        let name = d.payload(u32::MAX)?;
        Ok(match name.is_empty() {
            true => dir.and(Err(NO_NAME)),
            false => dir.map(|dir| Place { dir, name }),
        })
    }

    fn writer(&self, call: &Call, d: &mut Dec) -> XdrResult<Result<Caller, Status>> {
        Ok(match self.caller(call, d)? {
            Ok(who) if who.read_only => Err(READ_ONLY),
            other => other,
        })
    }

    fn decode_change(&self, call: &Call) -> Decoded {
        let d = &mut call.head.args.clone();
        Ok(match call.head.procedure {
            2 => {
                let who = self.writer(call, d)?;
                let mut set = get_set_attr(d)?;
                set.guard = d.bool()?.then(|| get_time(d)).transpose()?;
                who.map(|who| Request::SetAttr(who, set))
            }
            8 => {
                let place = self.place(call, d)?;
                let (how, attr) = get_create_how(d)?;
                place.map(|p| Request::Create(p, how, attr))
            }
            9 => {
                let place = self.place(call, d)?;
                let attr = get_new_attr(d, 0o777)?;
                place.map(|p| Request::MkDir(p, attr))
            }
            10 => {
                let place = self.place(call, d)?;
                let attr = get_new_attr(d, 0o777)?;
                let target = d.payload(MAX_TARGET)?;
                place.map(|p| Request::Symlink(p, attr, target))
            }
            11 => {
                let place = self.place(call, d)?;
                let node = get_node(d)?;
                place.and_then(|p| node.map(|(kind, attr)| Request::MkNod(p, kind, attr)))
            }
            12 => self.place(call, d)?.map(Request::Remove),
            13 => self.place(call, d)?.map(Request::RmDir),
            14 => {
                let from = self.place(call, d)?;
                let to = self.place(call, d)?;
                two(from, to, |p| &p.dir).map(|(from, to)| Request::Rename(from, to))
            }
            15 => {
                let what = self.writer(call, d)?;
                let place = self.place(call, d)?;
                let both = what.and_then(|w| Ok((w, place?)));
                both.and_then(
                    |(what, place)| match what.handle.export == place.dir.handle.export {
                        true => Ok(Request::Link(what, place)),
                        false => Err(Status::XDev),
                    },
                )
            }
            _ => return Err(XdrError::BadValue(call.head.procedure)),
        })
    }

    fn run(&self, once: Once, request: Request, arm: Arm) {
        match request {
            Request::SetAttr(who, set) => {
                self.finish(once, arm, &[who.id()], |this, once| {
                    let encode = |c: &_| ok(|e| put_wcc(e, this.fsid, c));
                    let ctx = ctx(&who, once, &encode);
                    encoded(this.fs.setattr(ctx, who.id(), set), &encode)
                });
            }
            Request::Create(p, how, attr) => self.make(once, arm, &p, |this, ctx| {
                this.fs.create(ctx, p.dir.id(), &p.name, how, attr)
            }),
            Request::MkDir(p, attr) => self.make(once, arm, &p, |this, ctx| {
                this.fs.mkdir(ctx, p.dir.id(), &p.name, attr)
            }),
            Request::Symlink(p, attr, target) => self.make(once, arm, &p, |this, ctx| {
                this.fs.symlink(ctx, p.dir.id(), &p.name, &target, attr)
            }),
            Request::MkNod(p, kind, attr) => self.make(once, arm, &p, |this, ctx| {
                this.fs.mknod(ctx, p.dir.id(), &p.name, kind, attr)
            }),
            Request::Remove(p) => self.remove(once, arm, &p, false),
            Request::RmDir(p) => self.remove(once, arm, &p, true),
            Request::Rename(from, to) => {
                self.finish(once, arm, &[from.dir.id(), to.dir.id()], |this, once| {
                    let encode = |r: &trivet_fs::Renamed| {
                        ok(|e| {
                            put_wcc(e, this.fsid, &r.from);
                            put_wcc(e, this.fsid, &r.to);
                        })
                    };
                    let ctx = ctx(&from.dir, once, &encode);
                    let (a, b) = ((from.dir.id(), &from.name[..]), (to.dir.id(), &to.name[..]));
                    encoded(this.fs.rename(ctx, a, b, RenameHow::Replace), &encode)
                });
            }
            Request::Link(what, p) => {
                self.finish(once, arm, &[what.id(), p.dir.id()], |this, once| {
                    let encode = |l: &trivet_fs::Linked| {
                        ok(|e| {
                            put_post(e, this.fsid, Some(&l.attr));
                            put_wcc(e, this.fsid, &l.dir);
                        })
                    };
                    let ctx = ctx(&what, once, &encode);
                    encoded(this.fs.link(ctx, what.id(), p.dir.id(), &p.name), &encode)
                });
            }
        }
    }

    /// A change that makes an object.
    fn make(
        &self,
        once: Once,
        arm: Arm,
        place: &Place,
        act: impl FnOnce(&Self, Ctx<'_, trivet_fs::Made>) -> FsResult<Done<trivet_fs::Made>>,
    ) {
        self.finish(once, arm, &[place.dir.id()], |this, once| {
            let encode = |m: &trivet_fs::Made| {
                ok(|e| {
                    this.put_handle(e, &this.seal(place.dir.handle.export, m.attr.id));
                    put_post(e, this.fsid, Some(&m.attr));
                    put_wcc(e, this.fsid, &m.dir);
                })
            };
            encoded(act(this, ctx(&place.dir, once, &encode)), &encode)
        });
    }

    fn remove(&self, once: Once, arm: Arm, place: &Place, dir: bool) {
        self.finish(once, arm, &[place.dir.id()], |this, once| {
            let encode = |r: &trivet_fs::Removed| ok(|e| put_wcc(e, this.fsid, &r.dir));
            let ctx = ctx(&place.dir, once, &encode);
            let done = match dir {
                true => this.fs.rmdir(ctx, place.dir.id(), &place.name),
                false => this.fs.unlink(ctx, place.dir.id(), &place.name),
            };
            encoded(done, &encode)
        });
    }

    /// Runs `act`, and answers: a failure at once, a success when it is durable. The failing arm
    /// carries the present attributes of `touched`.
    fn finish(
        &self,
        once: Once,
        arm: Arm,
        touched: &[InodeId],
        act: impl FnOnce(&Self, &Once) -> FsResult<(trivet_fs::Mark, Vec<u8>)>,
    ) {
        let (mark, results) = match act(self, &once) {
            Ok(done) => done,
            Err(error) => {
                if let Some(status) = self.error(&error) {
                    once.fail(&self.failure(status, &error, arm, touched));
                }
                return;
            }
        };
        let this = self.this.clone();
        self.committer.wait(
            mark,
            Box::new(move |durable, queued| {
                let error = match durable {
                    Ok(()) => return once.finish(&results, queued),
                    Err(error) => error,
                };
                // It may be durable or not: only what does not claim either may be said.
                if let Some(status) = this.upgrade().and_then(|t| t.error(error)) {
                    let mut e = Enc::new();
                    e.u32(status as u32);
                    arm.put_absent(&mut e);
                    once.finish(e.bytes(), queued);
                }
            }),
        );
    }

    fn failure(&self, status: Status, error: &FsError, arm: Arm, touched: &[InodeId]) -> Enc {
        let mut e = Enc::with_capacity(256);
        e.u32(status as u32);
        for (n, id) in touched.iter().enumerate() {
            let attr = self.attr_after(error, *id);
            match (arm, n) {
                (Arm::PostWcc, 0) => put_post(&mut e, self.fsid, attr.as_ref()),
                _ => put_wcc_after(&mut e, self.fsid, attr.as_ref()),
            }
        }
        e
    }
}

/// Results of a success.
fn ok(put: impl FnOnce(&mut Enc)) -> Vec<u8> {
    let mut e = Enc::with_capacity(320);
    e.u32(0);
    put(&mut e);
    e.into_vec()
}

fn ctx<'a, T>(who: &'a Caller, once: &'a Once, encode: &'a dyn Fn(&T) -> Vec<u8>) -> Ctx<'a, T> {
    Ctx {
        creds: &who.creds,
        door: DOOR,
        replay: Some(Replay {
            client: once.client,
            key: &once.key,
            encode,
        }),
    }
}

fn encoded<T>(
    done: FsResult<Done<T>>,
    encode: &dyn Fn(&T) -> Vec<u8>,
) -> FsResult<(trivet_fs::Mark, Vec<u8>)> {
    done.map(|d| (d.mark, encode(&d.value)))
}

/// Both places, which must be of one export.
fn two(
    a: Result<Place, Status>,
    b: Result<Place, Status>,
    caller: fn(&Place) -> &Caller,
) -> Result<(Place, Place), Status> {
    let (a, b) = (a?, b?);
    match caller(&a).handle.export == caller(&b).handle.export {
        true => Ok((a, b)),
        false => Err(Status::XDev),
    }
}

/// `sattr3` of a new object; `mode` if the client names none.
fn get_new_attr(d: &mut Dec, mode: u32) -> XdrResult<NewAttr> {
    let s = get_set_attr(d)?;
    Ok(NewAttr {
        mode: s.mode.unwrap_or(mode),
        umask: 0,
        uid: s.uid,
        gid: s.gid,
        size: s.size,
        atime: s.atime,
        mtime: s.mtime,
    })
}

/// `createhow3`.
fn get_create_how(d: &mut Dec) -> XdrResult<(CreateHow, NewAttr)> {
    // Without a mode a new file is its owner's alone.
    const PRIVATE: u32 = 0o600;
    Ok(match d.u32()? {
        0 => (CreateHow::Unchecked, get_new_attr(d, PRIVATE)?),
        1 => (CreateHow::Guarded, get_new_attr(d, PRIVATE)?),
        2 => {
            let attr = NewAttr {
                mode: PRIVATE,
                ..NewAttr::default()
            };
            (CreateHow::Exclusive(d.fixed::<8>()?), attr)
        }
        bad => return Err(XdrError::BadValue(bad)),
    })
}

/// `mknoddata3`.
fn get_node(d: &mut Dec) -> XdrResult<Result<(NodeKind, NewAttr), Status>> {
    use trivet_fs::FileKind::{Block, Char, Fifo, Socket};
    let kind = d.u32()?;
    let of = |k| kind == kind_number(k);
    if of(Block) || of(Char) {
        let attr = get_new_attr(d, 0o600)?;
        let rdev = Rdev {
            major: d.u32()?,
            minor: d.u32()?,
        };
        let node = match of(Block) {
            true => NodeKind::Block(rdev),
            false => NodeKind::Char(rdev),
        };
        return Ok(Ok((node, attr)));
    }
    if of(Fifo) || of(Socket) {
        let attr = get_new_attr(d, 0o600)?;
        let node = match of(Fifo) {
            true => NodeKind::Fifo,
            false => NodeKind::Socket,
        };
        return Ok(Ok((node, attr)));
    }
    match kind {
        // Regular files, directories and symlinks have procedures of their own.
        1 | 2 | 5 => Ok(Err(Status::BadType)),
        bad => Err(XdrError::BadValue(bad)),
    }
}
