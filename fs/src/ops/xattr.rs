//! Extended attributes, in pieces where they are long. POSIX ACLs are two of them.

use bytes::Bytes;

use super::Fs;
use super::acl::{ACCESS, Acl, DEFAULT};
use super::perm::{S_ISGID, check_owner};
use crate::api::{Access, Change, Creds, Ctx, Done, Event, FileKind, Ino, InodeId, XattrHow};
use crate::btree;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::items::{
    COLLISION_BITS, COLLISIONS, MAX_NAME, MAX_XATTR, XATTR_PIECE, XATTR_PIECE_BITS, XattrHead,
    xattr_slot,
};
use crate::format::key::{Key, Kind};

/// Bytes of the list of names, at most (what Linux accepts).
pub(crate) const MAX_LIST: usize = 65_536;

/// Where an attribute is, and what is known of it from its first piece.
struct Place {
    off: u64,
    len: usize,
    more: u64,
    first: Vec<u8>,
}

impl Core {
    /// Calls `f` with the first piece of every attribute in a range of offsets.
    fn heads(
        &self,
        ino: Ino,
        (from, to): (u64, u64),
        f: &mut dyn FnMut(u64, XattrHead<'_>) -> FsResult<bool>,
    ) -> FsResult<()> {
        let (a, b) = (
            Key::new(ino, Kind::Xattr, from),
            Key::new(ino, Kind::Xattr, to),
        );
        btree::scan(
            self,
            &a,
            &b,
            &mut |k, v| match k.off() & ((1 << XATTR_PIECE_BITS) - 1) {
                0 => f(k.off(), XattrHead::decode(v)?),
                _ => Ok(true),
            },
        )
    }

    /// The place of an attribute; else the first free one for it.
    fn place(&self, ino: Ino, name: &[u8]) -> FsResult<Result<Place, u64>> {
        let slot = xattr_slot(&self.sb.hash_key, name);
        let span = 1u64 << (COLLISION_BITS + XATTR_PIECE_BITS);
        let (mut free, mut found) = (slot, None);
        self.heads(ino, (slot, slot + (span - 1)), &mut |off, head| {
            if off == free {
                free += 1 << XATTR_PIECE_BITS;
            }
            if head.name == name {
                found = Some(Place {
                    off,
                    len: head.len,
                    more: head.more(),
                    first: head.first.to_vec(),
                });
            }
            Ok(found.is_none())
        })?;
        match found {
            Some(place) => Ok(Ok(place)),
            None if free - slot >= COLLISIONS << XATTR_PIECE_BITS => {
                Err(FsError::NoSpace("too many attributes of one hash"))
            }
            None => Ok(Err(free)),
        }
    }

    /// An attribute's value.
    pub(crate) fn xattr(&self, ino: Ino, name: &[u8]) -> FsResult<Option<Vec<u8>>> {
        let Ok(place) = self.place(ino, name)? else {
            return Ok(None);
        };
        let mut value = place.first;
        if place.more > 0 {
            let (a, b) = (
                Key::new(ino, Kind::Xattr, place.off + 1),
                Key::new(ino, Kind::Xattr, place.off + place.more),
            );
            btree::scan(self, &a, &b, &mut |_, v| {
                value.extend_from_slice(v);
                Ok(true)
            })?;
        }
        match value.len() == place.len {
            true => Ok(Some(value)),
            false => Err(FsError::Damaged {
                block: 0,
                why: "an extended attribute with a piece missing",
            }),
        }
    }

    fn remove_pieces(&mut self, ino: Ino, place: &Place) -> FsResult<()> {
        for i in 0..=place.more {
            btree::remove(self, &Key::new(ino, Kind::Xattr, place.off + i))?;
        }
        Ok(())
    }

    /// Sets an attribute. The caller stores the inode.
    pub(crate) fn put_xattr(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        value: &[u8],
    ) -> FsResult<()> {
        let off = match self.place(ino, name)? {
            Ok(place) => {
                self.remove_pieces(ino, &place)?;
                place.off
            }
            Err(free) => {
                inode.xattrs += 1;
                free
            }
        };
        let (first, rest) = value.split_at(value.len().min(XattrHead::room(name.len())));
        let head = XattrHead {
            name,
            len: value.len(),
            first,
        };
        btree::insert(self, &Key::new(ino, Kind::Xattr, off), &head.encode())?;
        for (i, piece) in rest.chunks(XATTR_PIECE).enumerate() {
            btree::insert(self, &Key::new(ino, Kind::Xattr, off + 1 + i as u64), piece)?;
        }
        Ok(())
    }

    /// Removes an attribute; false if it was not there. The caller stores the inode.
    pub(crate) fn drop_xattr(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
    ) -> FsResult<bool> {
        match self.place(ino, name)? {
            Ok(place) => {
                self.remove_pieces(ino, &place)?;
                inode.xattrs = inode.xattrs.saturating_sub(1);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn list_names(&self, ino: Ino) -> FsResult<Vec<Bytes>> {
        let mut names = Vec::new();
        self.heads(ino, (0, u64::MAX), &mut |_, head| {
            names.push(Bytes::copy_from_slice(head.name));
            Ok(true)
        })?;
        Ok(names)
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// The rules of the namespaces (xattr(7)).
fn check_xattr(
    core: &Core,
    creds: &Creds,
    ino: Ino,
    inode: &Inode,
    name: &[u8],
    want: Access,
) -> FsResult<()> {
    if name.len() > MAX_NAME {
        return Err(FsError::Range);
    }
    if is_acl(name) {
        return match want == Access::READ {
            true => Ok(()),
            false => check_owner(creds, inode),
        };
    }
    let root = creds.uid == 0 || creds.checked;
    match name.split(|b| *b == b'.').next() {
        Some(b"user") if name.len() > 5 => {
            if !matches!(inode.kind, FileKind::File | FileKind::Dir) {
                return Err(FsError::NotPermitted);
            }
            core.check(creds, ino, inode, want)
        }
        Some(b"security") if want == Access::READ => Ok(()),
        Some(b"trusted" | b"security") if root => Ok(()),
        Some(b"trusted" | b"security") => Err(FsError::NotPermitted),
        _ => Err(FsError::NotSupported(
            "an attribute outside user, trusted, security",
        )),
    }
}

impl Fs {
    pub(crate) fn do_get_xattr(&self, creds: &Creds, id: InodeId, name: &[u8]) -> FsResult<Bytes> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        check_xattr(&core, creds, id.ino, &inode, name, Access::READ)?;
        if inode.xattrs == 0 {
            return Err(FsError::NoAttr);
        }
        core.xattr(id.ino, name)?
            .map(Bytes::from)
            .ok_or(FsError::NoAttr)
    }

    pub(crate) fn do_list_xattr(&self, creds: &Creds, id: InodeId) -> FsResult<Vec<Bytes>> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        if inode.xattrs == 0 {
            return Ok(Vec::new());
        }
        let mut names = core.list_names(id.ino)?;
        if creds.uid != 0 {
            names.retain(|n| !n.starts_with(b"trusted."));
        }
        Ok(names)
    }

    fn change_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
        mut f: impl FnMut(&mut Core, &mut Inode) -> FsResult<()>,
    ) -> FsResult<Done<Change>> {
        let done = self.change(&ctx, None, 0, |core| {
            let mut inode = core.inode_of(id)?;
            let before = inode.attr(id.ino);
            check_xattr(core, ctx.creds, id.ino, &inode, name, Access::WRITE)?;
            f(core, &mut inode)?;
            inode.ctime = core.now();
            core.put_inode(id.ino, &inode)?;
            Ok(Change {
                before,
                after: inode.attr(id.ino),
            })
        })?;
        self.tell(ctx.door, &[Event::Inode { id, content: None }]);
        Ok(done)
    }

    pub(crate) fn do_set_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
    ) -> FsResult<Done<Change>> {
        if value.len() > MAX_XATTR {
            return Err(FsError::AttrTooBig);
        }
        let creds = ctx.creds;
        self.change_xattr(ctx, id, name, |core, inode| {
            let exists = core.place(id.ino, name)?.is_ok();
            match (how, exists) {
                (XattrHow::Create, true) => return Err(FsError::Exists),
                (XattrHow::Replace, false) => return Err(FsError::NoAttr),
                _ => {}
            }
            if is_acl(name) {
                return set_acl(core, creds, id.ino, inode, name, value);
            }
            let names = core.list_names(id.ino)?;
            let total: usize = names.iter().map(|n| n.len() + 1).sum();
            if !exists && total + name.len() + 1 > MAX_LIST {
                return Err(FsError::NoSpace("too many attributes on one object"));
            }
            core.put_xattr(id.ino, inode, name, value)
        })
    }

    pub(crate) fn do_remove_xattr(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        name: &[u8],
    ) -> FsResult<Done<Change>> {
        self.change_xattr(ctx, id, name, |core, inode| {
            match core.drop_xattr(id.ino, inode, name)? {
                true => Ok(()),
                // An ACL that says what the mode says is not stored.
                false if is_acl(name) => Ok(()),
                false => Err(FsError::NoAttr),
            }
        })
    }
}

/// Setting an ACL sets the mode with it; one that says no more than the mode is not kept.
fn set_acl(
    core: &mut Core,
    creds: &Creds,
    ino: Ino,
    inode: &mut Inode,
    name: &[u8],
    value: &[u8],
) -> FsResult<()> {
    if inode.kind == FileKind::Symlink {
        return Err(FsError::NotSupported("an ACL on a symbolic link"));
    }
    let acl = Acl::parse(value)?;
    if name == DEFAULT {
        if !inode.is_dir() {
            return Err(FsError::Access);
        }
        return core.put_xattr(ino, inode, name, value);
    }
    inode.mode = inode.mode & !0o777 | acl.mode();
    if creds.uid != 0 && !creds.in_group(inode.gid) {
        inode.mode &= !S_ISGID;
    }
    match acl.is_plain() {
        true => core.drop_xattr(ino, inode, name).map(|_| ()),
        false => core.put_xattr(ino, inode, name, value),
    }
}
