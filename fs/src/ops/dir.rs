//! Directories: finding, adding and removing names; lookup and listing.
//!
//! An entry's key is the hash of its name with a few bits to tell apart names of equal hash. The
//! key is also its cookie: it never changes while the entry lives, and a listing that goes on
//! after any cookie finds the next greater one, whatever was removed meanwhile.

use bytes::Bytes;

use super::Fs;
use crate::api::{Access, Attr, Creds, DirEntry, DirPage, FileKind, Ino, InodeId};
use crate::btree;
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::Inode;
use crate::format::items::{
    COLLISIONS, COOKIE_DOT, COOKIE_DOTDOT, EntryItem, MAX_NAME, entry_slot,
};
use crate::format::key::{Key, Kind};

/// Entries in one page of a listing, at most.
pub const MAX_PAGE: usize = 4096;
/// Greatest cookie that an entry can have.
const LAST_COOKIE: u64 = i64::MAX as u64;

/// A name's entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub cookie: u64,
    pub id: InodeId,
    pub kind: FileKind,
}

/// Fails unless these bytes can be a name.
pub(crate) fn check_name(name: &[u8]) -> FsResult<()> {
    if name.is_empty() {
        return Err(FsError::NotFound);
    }
    if name.len() > MAX_NAME {
        return Err(FsError::NameTooLong);
    }
    match name.iter().any(|b| *b == b'/' || *b == 0) {
        true => Err(FsError::Invalid("a name with a slash or a zero byte")),
        false => Ok(()),
    }
}

impl Core {
    /// The entry of a name.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> FsResult<Option<Found>> {
        let slot = entry_slot(&self.sb.hash_key, name);
        let mut found = None;
        btree::scan(
            self,
            &Key::new(dir, Kind::Entry, slot),
            &Key::new(dir, Kind::Entry, slot + COLLISIONS - 1),
            &mut |k, v| {
                let item = EntryItem::decode(v)?;
                if item.name == name {
                    found = Some(Found {
                        cookie: k.off(),
                        id: item.id,
                        kind: item.kind,
                    });
                }
                Ok(found.is_none())
            },
        )?;
        Ok(found)
    }

    /// Adds a name that is not there. The caller stores the directory's inode.
    pub(crate) fn add_entry(
        &mut self,
        dir: Ino,
        inode: &mut Inode,
        name: &[u8],
        id: InodeId,
        kind: FileKind,
    ) -> FsResult<()> {
        let slot = entry_slot(&self.sb.hash_key, name);
        let mut free = slot;
        btree::scan(
            self,
            &Key::new(dir, Kind::Entry, slot),
            &Key::new(dir, Kind::Entry, slot + COLLISIONS - 1),
            &mut |k, _| {
                let gap = k.off() != free;
                if !gap {
                    free += 1;
                }
                Ok(!gap)
            },
        )?;
        if free == slot + COLLISIONS {
            return Err(FsError::NoSpace("too many names of one hash"));
        }
        let item = EntryItem { id, kind, name }.encode();
        btree::insert(self, &Key::new(dir, Kind::Entry, free), &item)?;
        inode.entries += 1;
        Ok(())
    }

    /// Gives an entry another meaning, in place.
    pub(crate) fn set_entry(
        &mut self,
        dir: Ino,
        cookie: u64,
        name: &[u8],
        id: InodeId,
        kind: FileKind,
    ) -> FsResult<()> {
        let item = EntryItem { id, kind, name }.encode();
        btree::insert(self, &Key::new(dir, Kind::Entry, cookie), &item)
    }

    /// Removes an entry. The caller stores the directory's inode.
    pub(crate) fn drop_entry(&mut self, dir: Ino, inode: &mut Inode, cookie: u64) -> FsResult<()> {
        btree::remove(self, &Key::new(dir, Kind::Entry, cookie))?;
        inode.entries = inode.entries.saturating_sub(1);
        Ok(())
    }

    fn id_of(&self, ino: Ino) -> FsResult<InodeId> {
        let generation = self.inode(ino)?.generation;
        Ok(InodeId { ino, generation })
    }
}

impl Fs {
    pub(crate) fn do_lookup(
        &self,
        creds: &Creds,
        dir: InodeId,
        name: &[u8],
    ) -> FsResult<(Attr, Attr)> {
        check_name(name)?;
        let core = self.engine.core()?;
        let inode = core.dir_of(dir)?;
        core.check(creds, dir.ino, &inode, Access::EXEC)?;
        let attr = inode.attr(dir.ino);
        let ino = match name {
            b"." => return Ok((attr, attr)),
            b".." => inode.parent,
            _ => core.find(dir.ino, name)?.ok_or(FsError::NotFound)?.id.ino,
        };
        Ok((core.inode(ino)?.attr(ino), attr))
    }

    pub(crate) fn do_readdir(
        &self,
        creds: &Creds,
        dir: InodeId,
        cookie: u64,
        max: usize,
        attrs: bool,
    ) -> FsResult<DirPage> {
        let max = max.clamp(1, MAX_PAGE);
        let core = self.engine.core()?;
        let inode = core.dir_of(dir)?;
        core.check(creds, dir.ino, &inode, Access::READ)?;
        let mut entries = Vec::with_capacity(max.min(256));
        let dots = [
            (COOKIE_DOT, &b"."[..], dir.ino),
            (COOKIE_DOTDOT, &b".."[..], inode.parent),
        ];
        for (c, name, ino) in dots.into_iter().filter(|d| d.0 > cookie).take(max) {
            entries.push(DirEntry {
                name: Bytes::from_static(name),
                id: core.id_of(ino)?,
                kind: FileKind::Dir,
                cookie: c,
                attr: None,
            });
        }
        let mut eof = true;
        if cookie < LAST_COOKIE {
            let from = Key::new(dir.ino, Kind::Entry, cookie + 1);
            let to = Key::new(dir.ino, Kind::Entry, LAST_COOKIE);
            btree::scan(&*core, &from, &to, &mut |k, v| {
                if entries.len() == max {
                    eof = false;
                    return Ok(false);
                }
                let item = EntryItem::decode(v)?;
                entries.push(DirEntry {
                    name: Bytes::copy_from_slice(item.name),
                    id: item.id,
                    kind: item.kind,
                    cookie: k.off(),
                    attr: None,
                });
                Ok(true)
            })?;
        }
        if attrs {
            for e in &mut entries {
                // An inode that cannot be read must not hide its neighbours.
                e.attr = core.inode(e.id.ino).ok().map(|i| i.attr(e.id.ino));
            }
        }
        Ok(DirPage {
            entries,
            eof,
            dir: inode.attr(dir.ino),
        })
    }
}
