//! Looking at one item. Items of an inode come after the inode itself, but entries may name
//! inodes that come later: what they say is noted, and compared at the end.

use super::{Check, Finding, Seen};
use crate::api::{FileKind, Ino};
use crate::format::inode::Inode;
use crate::format::items::{
    COLLISION_BITS, EntryItem, Extent, XATTR_PIECE_BITS, XattrHead, entry_slot,
};
use crate::format::key::{Key, Kind};

impl Check<'_> {
    pub(super) fn item(&mut self, key: &Key, value: &[u8]) {
        let ino = key.ino();
        let Some(kind) = Kind::from_u8(key.kind()) else {
            let what = "an item of unknown kind";
            return self.problem(Finding::Item { ino, what });
        };
        match kind {
            Kind::Inode => self.inode_item(ino, value),
            Kind::Orphan => {
                let kind = value.first().copied().unwrap_or(u8::MAX);
                self.orphans.insert(Ino(key.off()), kind);
            }
            Kind::Lazy | Kind::Reply | Kind::Locked => {}
            _ => self.part(ino, kind, key.off(), value),
        }
    }

    fn inode_item(&mut self, ino: Ino, value: &[u8]) {
        match Inode::decode(value) {
            Ok(inode) => {
                let names = self.names_before(ino);
                self.inodes.insert(ino, Seen { inode, ..names });
            }
            Err(e) => {
                tracing::debug!(%ino, error = %e, "fsck");
                let what = "its item is not an inode's";
                self.problem(Finding::Item { ino, what });
            }
        }
    }

    /// What entries of earlier directories have said about an inode.
    fn names_before(&mut self, ino: Ino) -> Seen {
        self.inodes.remove(&ino).unwrap_or_else(Seen::nothing)
    }

    fn part(&mut self, ino: Ino, kind: Kind, off: u64, value: &[u8]) {
        if !self.inodes.get(&ino).is_some_and(|s| s.is_real()) {
            let what = "items of its own";
            return self.problem(Finding::NoInode { ino, what });
        }
        match kind {
            Kind::Entry => self.entry(ino, off, value),
            Kind::Extent => self.extent(ino, off, value),
            Kind::Symlink => {
                if let Some(seen) = self.inodes.get_mut(&ino) {
                    seen.target += value.len() as u64;
                }
            }
            Kind::Xattr if off & ((1 << XATTR_PIECE_BITS) - 1) == 0 => {
                if XattrHead::decode(value).is_err() {
                    let what = "an extended attribute that cannot be read";
                    self.problem(Finding::Item { ino, what });
                }
                if let Some(seen) = self.inodes.get_mut(&ino) {
                    seen.xattrs += 1;
                }
            }
            _ => {}
        }
    }

    fn entry(&mut self, dir: Ino, cookie: u64, value: &[u8]) {
        let Ok(item) = EntryItem::decode(value) else {
            let what = "an entry that cannot be read";
            return self.problem(Finding::Item { ino: dir, what });
        };
        let name = || String::from_utf8_lossy(item.name).into_owned();
        if cookie >> COLLISION_BITS << COLLISION_BITS != entry_slot(&self.sb.hash_key, item.name) {
            let why = "its cookie does not fit its name";
            self.problem(Finding::Entry {
                dir,
                name: name(),
                why,
            });
        }
        let is_dir = item.kind == FileKind::Dir;
        if let Some(seen) = self.inodes.get_mut(&dir) {
            seen.entries += 1;
            seen.subdirs += u32::from(is_dir);
        }
        let target = self.inodes.entry(item.id.ino).or_insert_with(Seen::nothing);
        target.names += 1;
        target.named_in = Some(dir);
        if target.is_real()
            && (target.inode.kind != item.kind || target.inode.generation != item.id.generation)
        {
            let why = "its kind or generation is not its inode's";
            self.problem(Finding::Entry {
                dir,
                name: name(),
                why,
            });
        }
    }

    fn extent(&mut self, ino: Ino, at: u64, value: &[u8]) {
        let Ok(e) = Extent::decode(at, value) else {
            let what = "an extent that cannot be read";
            return self.problem(Finding::Item { ino, what });
        };
        self.own(e.block, e.count.into(), ino);
        let Some(seen) = self.inodes.get_mut(&ino) else {
            return;
        };
        seen.blocks += u64::from(e.count);
        let overlaps = e.at < seen.extent_end;
        seen.extent_end = e.end();
        if overlaps {
            self.problem(Finding::Overlap { ino, at });
        }
    }
}

impl Seen {
    /// An inode of which only entries are known so far: not yet real.
    fn nothing() -> Seen {
        Seen {
            inode: Inode {
                kind: FileKind::File,
                mode: 0,
                uid: 0,
                gid: 0,
                nlink: 0,
                rdev: Default::default(),
                xattrs: 0,
                size: 0,
                blocks: 0,
                generation: 0,
                parent: Ino(0),
                entries: 0,
                atime: Default::default(),
                mtime: Default::default(),
                ctime: Default::default(),
                btime: Default::default(),
                verifier: None,
                birth: 0,
            },
            names: 0,
            named_in: None,
            entries: 0,
            subdirs: 0,
            blocks: 0,
            target: 0,
            xattrs: 0,
            extent_end: 0,
        }
    }

    /// Whether its item was seen: generations start at 1.
    fn is_real(&self) -> bool {
        self.inode.generation > 0
    }
}
