//! What a check says.

use std::fmt;

use crate::api::{FileKind, Ino};

/// Findings listed one by one; further ones are only counted.
const MAX_LISTED: usize = 1000;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Finding {
    Page {
        block: u64,
        why: String,
    },
    Order {
        block: u64,
    },
    Item {
        ino: Ino,
        what: &'static str,
    },
    OutOfRange {
        block: u64,
        count: u64,
        owner: Ino,
    },
    OwnedTwice {
        block: u64,
        owner: Ino,
    },
    Overlap {
        ino: Ino,
        at: u64,
    },
    Count {
        ino: Ino,
        what: &'static str,
        have: u64,
        want: u64,
    },
    Total {
        what: &'static str,
        have: u64,
        want: u64,
    },
    NoInode {
        ino: Ino,
        what: &'static str,
    },
    Entry {
        dir: Ino,
        name: String,
        why: &'static str,
    },
    Nameless(Ino),
    Parent(Ino),
    Unreachable(Ino),
    Orphan(Ino),
    NextInode(Ino),
    NoRoot,
    Lost(u64),
    MarkedFree(u64),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            Page { block, why } => write!(f, "metadata block {block}: {why}"),
            Order { block } => write!(f, "page {block}: items out of order or bounds"),
            Item { ino, what } => write!(f, "inode {ino}: {what}"),
            OutOfRange {
                block,
                count,
                owner,
            } => write!(
                f,
                "inode {owner}: {count} blocks at {block} are not within the volume"
            ),
            OwnedTwice { block, owner } => {
                write!(f, "block {block} has two owners, one is inode {owner}")
            }
            Overlap { ino, at } => write!(f, "inode {ino}: extents overlap at file block {at}"),
            Count {
                ino,
                what,
                have,
                want,
            } => {
                write!(f, "inode {ino}: {what}: it says {have}, there are {want}")
            }
            Total { what, have, want } => {
                write!(f, "{what}: the superblock says {have}, there are {want}")
            }
            NoInode { ino, what } => write!(f, "inode {ino} is missing, but has {what}"),
            Entry { dir, name, why } => write!(f, "directory {dir}, name {name:?}: {why}"),
            Nameless(i) => write!(f, "inode {i} has no name and is not listed for freeing"),
            Parent(i) => write!(f, "directory {i}: its \"..\" and its entry disagree"),
            Unreachable(i) => write!(f, "directory {i} cannot be reached from the root"),
            Orphan(i) => write!(
                f,
                "inode {i} is listed for freeing, but does not look like it"
            ),
            NextInode(i) => write!(f, "inode {i} lies beyond the next number to be given out"),
            NoRoot => write!(f, "there is no root directory"),
            Lost(b) => write!(f, "block {b} is marked as in use, but nothing owns it"),
            MarkedFree(b) => write!(f, "block {b} is in use, but marked as free"),
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, the first thousand.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub problems: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Everything else.
    pub others: u64,
    /// Blocks of content.
    pub data_blocks: u64,
    /// Tree pages.
    pub pages: u64,
    /// Items in the tree.
    pub items: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems == 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.problems += 1;
        if self.findings.len() < MAX_LISTED {
            self.findings.push(finding);
        }
    }

    pub(super) fn count(&mut self, kind: FileKind, blocks: u64) {
        match kind {
            FileKind::File => self.files += 1,
            FileKind::Dir => self.dirs += 1,
            _ => self.others += 1,
        }
        self.data_blocks += blocks;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        if self.problems > self.findings.len() as u64 {
            writeln!(
                f,
                "  ... {} more",
                self.problems - self.findings.len() as u64
            )?;
        }
        write!(
            f,
            "{}: {} files, {} directories, {} others; {} blocks of content; {} pages with {} items",
            match self.problems {
                0 => "clean".to_string(),
                n => format!("{n} problems"),
            },
            self.files,
            self.dirs,
            self.others,
            self.data_blocks,
            self.pages,
            self.items
        )
    }
}
