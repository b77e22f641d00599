//! A metadata block: the common head, and the slotted layout of tree pages.
//!
//! ```text
//!  0 magic u32 | 4 crc32c of bytes 8.. u32 | 8 own block u64 | 16 birth u64
//! 24 kind u8 | 25 level u8 | 26 cells u16 | 28 start of the cell area u16 | 30 dead bytes u16
//! 32 offsets of the cells, u16 each, in key order ... free ... cells up to 4096
//! cell: key 17 | length of the value u16 | value      (inner pages: value = child block u64)
//! ```
//! An inner page's first key counts as the least one. Nothing here trusts an offset that came
//! from disk: [`Page::check`] looks at each before a page is used.

use super::key::Key;
use super::{put, u16_at, u32_at, u64_at};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// "TvFp".
pub const MAGIC: u32 = u32::from_le_bytes(*b"TvFp");
const HEAD: usize = 32;
const CELL_HEAD: usize = Key::BYTES + 2;
/// Bytes of a value, at most: three cells fit a page, which splitting relies on.
pub const MAX_VALUE: usize = 1200;
/// Bytes of cells and offsets that a tree page holds.
pub const CAPACITY: usize = PAGE_BYTES - HEAD;
/// Levels of a tree, at most: with 80 children a page, far beyond any volume.
pub const MAX_LEVEL: u8 = 16;

const _: () = assert!(3 * (CELL_HEAD + MAX_VALUE + 2) <= CAPACITY);

/// What a metadata block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageKind {
    /// Items.
    Leaf = 1,
    /// Children.
    Inner = 2,
    /// Which blocks of a group are in use.
    Bitmap = 3,
}

/// One metadata block in memory.
#[derive(Clone)]
pub struct Page(pub [u8; PAGE_BYTES]);

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Page {
    /// An empty page.
    pub fn new(block: u64, birth: u64, kind: PageKind, level: u8) -> Page {
        let mut p = Page([0; PAGE_BYTES]);
        put(&mut p.0, 0, &MAGIC.to_le_bytes());
        put(&mut p.0, 8, &block.to_le_bytes());
        put(&mut p.0, 16, &birth.to_le_bytes());
        p.0[24] = kind as u8;
        p.0[25] = level;
        p.set_u16(28, PAGE_BYTES as u16);
        p
    }

    /// Computes the checksum; to be done last.
    pub fn seal(&mut self) {
        let crc = crc32c::crc32c(&self.0[8..]);
        put(&mut self.0, 4, &crc.to_le_bytes());
    }

    /// Checks a page that came from disk: head, checksum, and every offset in it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, block: u64) -> Result<PageKind, &'static str> {
        if u32_at(&self.0, 0) != MAGIC {
            return Err("wrong magic number");
        }
        if u32_at(&self.0, 4) != crc32c::crc32c(&self.0[8..]) {
            return Err("checksum does not match");
        }
        if u64_at(&self.0, 8) != block {
            return Err("belongs to another block");
        }
        match self.0[24] {
            1 if self.level() == 0 => self.check_cells().map(|()| PageKind::Leaf),
            2 if (1..=MAX_LEVEL).contains(&self.level()) => {
                self.check_cells()?;
                let bad = (0..self.count()).any(|i| self.value(i).len() != 8);
                match bad || self.count() == 0 {
                    true => Err("an inner page without proper children"),
                    false => Ok(PageKind::Inner),
                }
            }
            3 => Ok(PageKind::Bitmap),
            _ => Err("unknown kind or level"),
        }
    }

    fn check_cells(&self) -> Result<(), &'static str> {
        let n = self.count();
        let start = self.cell_start();
        if HEAD + 2 * n > start || start > PAGE_BYTES {
            return Err("cells overlap the offsets");
        }
        let mut last: Option<Key> = None;
        for i in 0..n {
            let at = self.slot(i);
            if at < start || at + CELL_HEAD > PAGE_BYTES {
                return Err("a cell lies outside the cell area");
            }
            let len = u16_at(&self.0, at + Key::BYTES) as usize;
            if len > MAX_VALUE || at + CELL_HEAD + len > PAGE_BYTES {
                return Err("a cell passes the end of the page");
            }
            let key = self.key(i);
            if last.is_some_and(|l| l >= key) {
                return Err("keys out of order");
            }
            last = Some(key);
        }
        Ok(())
    }

    /// Height above the leaves.
    pub fn level(&self) -> u8 {
        self.0[25]
    }

    /// Number of cells.
    pub fn count(&self) -> usize {
        u16_at(&self.0, 26) as usize
    }

    fn cell_start(&self) -> usize {
        u16_at(&self.0, 28) as usize
    }

    fn dead(&self) -> usize {
        u16_at(&self.0, 30) as usize
    }

    fn set_u16(&mut self, at: usize, v: u16) {
        put(&mut self.0, at, &v.to_le_bytes());
    }

    fn slot(&self, i: usize) -> usize {
        u16_at(&self.0, HEAD + 2 * i) as usize
    }

    fn cell(&self, i: usize) -> &[u8] {
        let at = self.slot(i);
        let len = u16_at(&self.0, at + Key::BYTES) as usize;
        &self.0[at..at + CELL_HEAD + len]
    }

    /// Key of a cell.
    pub fn key(&self, i: usize) -> Key {
        let at = self.slot(i);
        let mut k = [0; Key::BYTES];
        k.copy_from_slice(&self.0[at..at + Key::BYTES]);
        Key(k)
    }

    /// Value of a cell.
    pub fn value(&self, i: usize) -> &[u8] {
        &self.cell(i)[CELL_HEAD..]
    }

    /// Child of an inner page.
    pub fn child(&self, i: usize) -> u64 {
        u64_at(self.value(i), 0)
    }

    /// Where the key is, or where it would go.
    pub fn find(&self, key: &Key) -> Result<usize, usize> {
        let (mut lo, mut hi) = (0, self.count());
        while lo < hi {
            let mid = (lo + hi) / 2;
            let at = self.slot(mid);
            match self.0[at..at + Key::BYTES].cmp(&key.0) {
                std::cmp::Ordering::Less => lo = mid + 1,
                std::cmp::Ordering::Greater => hi = mid,
                std::cmp::Ordering::Equal => return Ok(mid),
            }
        }
        Err(lo)
    }

    /// In an inner page: which child may hold the key.
    pub fn child_for(&self, key: &Key) -> usize {
        match self.find(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }

    /// Bytes in use by cells and offsets.
    pub fn used(&self) -> usize {
        PAGE_BYTES - self.cell_start() - self.dead() + 2 * self.count()
    }

    /// Bytes that a value of this length would take.
    pub fn cost(value_len: usize) -> usize {
        CELL_HEAD + value_len + 2
    }

    /// Inserts a cell at its place; false if there is no room.
    pub fn insert(&mut self, at: usize, key: &Key, value: &[u8]) -> bool {
        if self.used() + Page::cost(value.len()) > CAPACITY {
            return false;
        }
        let need = CELL_HEAD + value.len();
        let n = self.count();
        if HEAD + 2 * (n + 1) + need > self.cell_start() {
            self.compact();
        }
        let start = self.cell_start() - need;
        put(&mut self.0, start, &key.0);
        self.set_u16(start + Key::BYTES, value.len() as u16);
        put(&mut self.0, start + CELL_HEAD, value);
        let (from, to) = (HEAD + 2 * at, HEAD + 2 * n);
        self.0.copy_within(from..to, from + 2);
        self.set_u16(from, start as u16);
        self.set_u16(26, (n + 1) as u16);
        self.set_u16(28, start as u16);
        true
    }

    /// Removes a cell.
    pub fn remove(&mut self, i: usize) {
        let n = self.count();
        let dead = self.dead() + self.cell(i).len();
        let from = HEAD + 2 * (i + 1);
        self.0.copy_within(from..HEAD + 2 * n, from - 2);
        self.set_u16(26, (n - 1) as u16);
        self.set_u16(30, dead as u16);
    }

    /// Overwrites a value with one of the same length; false if the lengths differ.
    pub fn overwrite(&mut self, i: usize, value: &[u8]) -> bool {
        if self.value(i).len() != value.len() {
            return false;
        }
        let at = self.slot(i) + CELL_HEAD;
        put(&mut self.0, at, value);
        true
    }

    /// Replaces the key of a cell.
    pub fn set_key(&mut self, i: usize, key: &Key) {
        let at = self.slot(i);
        put(&mut self.0, at, &key.0);
    }

    /// All cells, copied: for splits and merges, which are rare.
    pub fn cells(&self) -> Vec<(Key, Vec<u8>)> {
        (0..self.count())
            .map(|i| (self.key(i), self.value(i).to_vec()))
            .collect()
    }

    /// Replaces all cells. They must fit.
    pub fn set_cells<'a>(&mut self, cells: impl Iterator<Item = (&'a Key, &'a [u8])>) {
        self.set_u16(26, 0);
        self.set_u16(28, PAGE_BYTES as u16);
        self.set_u16(30, 0);
        self.0[HEAD..].fill(0);
        for (i, (k, v)) in cells.enumerate() {
            let fits = self.insert(i, k, v);
            debug_assert!(fits, "set_cells is given what fits");
        }
    }

    fn compact(&mut self) {
        let cells = self.cells();
        self.set_cells(cells.iter().map(|(k, v)| (k, v.as_slice())));
    }
}
