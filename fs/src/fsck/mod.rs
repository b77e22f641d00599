//! Proving that a file system is whole (invariant 8): reachable, counted, no block owned twice,
//! none lost, sums right.
//!
//! Reads only. Walks the tree once in key order, keeps a bit per block and a few words per inode,
//! then compares. Every finding names the object that it is about; damage in one place does not
//! stop the rest from being looked at.

mod items;
mod report;
mod walk;

use std::collections::HashMap;

use trivet_replica::volume::Volume;

pub use report::{Finding, Report};

use crate::api::{FileKind, Ino, InodeId};
use crate::core::read_super;
use crate::error::FsResult;
use crate::format::bitmap::{self, GROUP_BLOCKS, group_len, group_reserved, groups};
use crate::format::inode::Inode;
use crate::format::page::{PAGE_BYTES, Page, PageKind};
use crate::format::superblock::Superblock;

/// What was found out about an inode.
struct Seen {
    inode: Inode,
    /// Entries that name it.
    names: u32,
    /// For directories: the directory whose entry names it.
    named_in: Option<Ino>,
    /// For directories: entries in it, and those of them that are directories.
    entries: u64,
    subdirs: u32,
    /// Blocks of its extents.
    blocks: u64,
    /// Pieces of a symlink's target.
    target: u64,
    xattrs: u32,
    /// First file block that no extent has taken yet.
    extent_end: u64,
}

/// State of a check.
struct Check<'a> {
    volume: &'a dyn Volume,
    sb: Superblock,
    report: Report,
    /// A bit per block that something owns, by group.
    owned: HashMap<u64, Vec<u64>>,
    inodes: HashMap<Ino, Seen>,
    orphans: HashMap<Ino, u8>,
}

/// Checks the file system on a volume that nobody has mounted for writing.
///
/// # Errors
/// The superblock cannot be used; everything else is in the report.
pub fn fsck(volume: &dyn Volume) -> FsResult<Report> {
    let sb = read_super(volume)?;
    let mut check = Check {
        volume,
        sb,
        report: Report::default(),
        owned: HashMap::new(),
        inodes: HashMap::new(),
        orphans: HashMap::new(),
    };
    check.own_reserved();
    check.walk_tree();
    check.check_inodes();
    check.check_orphans();
    check.check_bitmaps();
    Ok(check.report)
}

impl Check<'_> {
    fn problem(&mut self, what: Finding) {
        self.report.add(what);
    }

    /// Notes that a run of blocks has an owner.
    fn own(&mut self, block: u64, count: u64, owner: Ino) {
        if block.checked_add(count).is_none_or(|e| e > self.sb.blocks) {
            return self.problem(Finding::OutOfRange {
                block,
                count,
                owner,
            });
        }
        for b in block..block + count {
            let (group, bit) = (b / GROUP_BLOCKS, b % GROUP_BLOCKS);
            let words = self
                .owned
                .entry(group)
                .or_insert_with(|| vec![0; GROUP_BLOCKS.div_ceil(64) as usize]);
            let (word, mask) = ((bit / 64) as usize, 1u64 << (bit % 64));
            if words[word] & mask != 0 {
                return self.problem(Finding::OwnedTwice { block: b, owner });
            }
            words[word] |= mask;
        }
    }

    fn own_reserved(&mut self) {
        for group in 0..groups(self.sb.blocks) {
            let n = u64::from(group_reserved(group));
            self.own(group * GROUP_BLOCKS, n, Ino(0));
        }
    }

    fn check_inodes(&mut self) {
        let inodes = std::mem::take(&mut self.inodes);
        for (&ino, seen) in &inodes {
            let i = &seen.inode;
            if i.generation == 0 {
                let what = "an entry that names it";
                self.problem(Finding::NoInode { ino, what });
                continue;
            }
            let orphan = self.orphans.get(&ino).copied();
            let mut wrong = |what, have: u64, want: u64| {
                if have != want {
                    self.report.add(Finding::Count {
                        ino,
                        what,
                        have,
                        want,
                    });
                }
            };
            if i.is_dir() {
                let links = match i.nlink {
                    0 => 0,
                    _ => 2 + seen.subdirs,
                };
                wrong("links", i.nlink.into(), links.into());
                wrong("entries", i.entries, seen.entries);
            } else {
                wrong("links", i.nlink.into(), seen.names.into());
            }
            wrong("stored blocks", i.blocks, seen.blocks);
            wrong("extended attributes", i.xattrs.into(), seen.xattrs.into());
            if i.kind == FileKind::Symlink {
                wrong("bytes of target", i.size, seen.target);
            }
            if i.nlink == 0 && orphan != Some(crate::data::ORPHAN_GONE) {
                self.problem(Finding::Nameless(ino));
            }
            if i.is_dir() && i.nlink > 0 && ino != InodeId::ROOT.ino {
                if seen.named_in != Some(i.parent) || seen.names != 1 {
                    self.problem(Finding::Parent(ino));
                }
                if !reaches_root(&inodes, ino) {
                    self.problem(Finding::Unreachable(ino));
                }
            }
            if ino.0 >= self.sb.next_ino {
                self.problem(Finding::NextInode(ino));
            }
            self.report.count(i.kind, i.blocks);
        }
        if !inodes.contains_key(&InodeId::ROOT.ino) {
            self.problem(Finding::NoRoot);
        }
        if inodes.len() as u64 != self.sb.inodes {
            self.problem(Finding::Total {
                what: "inodes",
                have: self.sb.inodes,
                want: inodes.len() as u64,
            });
        }
        self.inodes = inodes;
    }

    fn check_orphans(&mut self) {
        for (ino, kind) in std::mem::take(&mut self.orphans) {
            let names = self.inodes.get(&ino).map(|s| s.inode.nlink);
            let fits = match kind {
                crate::data::ORPHAN_GONE => names == Some(0),
                _ => names.is_some_and(|n| n > 0),
            };
            if !fits {
                self.problem(Finding::Orphan(ino));
            }
        }
    }

    fn check_bitmaps(&mut self) {
        let mut free = 0;
        for group in 0..groups(self.sb.blocks) {
            let len = group_len(group, self.sb.blocks);
            let page = match self.bitmap(group) {
                Ok(page) => page,
                Err(why) => {
                    let block = bitmap::bitmap_block(group);
                    self.problem(Finding::Page { block, why });
                    continue;
                }
            };
            free += u64::from(len - bitmap::count_used(&page, len).min(len));
            let words = self.owned.remove(&group).unwrap_or_default();
            for bit in 0..len {
                let owned = words
                    .get(bit as usize / 64)
                    .is_some_and(|w| w >> (bit % 64) & 1 == 1);
                let block = group * GROUP_BLOCKS + u64::from(bit);
                match (bitmap::is_set(&page, bit), owned) {
                    (true, false) => self.problem(Finding::Lost(block)),
                    (false, true) => self.problem(Finding::MarkedFree(block)),
                    _ => {}
                }
            }
        }
        if free != self.sb.free {
            self.problem(Finding::Total {
                what: "free blocks",
                have: self.sb.free,
                want: free,
            });
        }
    }

    fn bitmap(&self, group: u64) -> Result<Page, String> {
        let block = bitmap::bitmap_block(group);
        let page = self.read_raw(block)?;
        if page.0.iter().all(|b| *b == 0) {
            return Ok(bitmap::fresh(group, 0));
        }
        match page.check(block) {
            Ok(PageKind::Bitmap) => Ok(page),
            Ok(_) => Err("a tree page where a bitmap belongs".into()),
            Err(why) => Err(why.into()),
        }
    }

    fn read_raw(&self, block: u64) -> Result<Page, String> {
        let mut page = Page([0; PAGE_BYTES]);
        let at = trivet_replica::volume::Block(block);
        match self.volume.read(at, &mut page.0) {
            Ok(()) => Ok(page),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// Whether the directories above lead to the root.
fn reaches_root(inodes: &HashMap<Ino, Seen>, ino: Ino) -> bool {
    let mut at = ino;
    for _ in 0..=inodes.len() {
        if at == InodeId::ROOT.ino {
            return true;
        }
        match inodes.get(&at) {
            Some(seen) => at = seen.inode.parent,
            None => return false,
        }
    }
    false
}
