//! One file of the simulated disk, kept by pages: what reads see, what a power cut leaves, and
//! what was written in between.

use std::collections::BTreeMap;
use std::io::IoSlice;

use super::Rng;
use crate::disk::SECTOR;

pub(super) const PAGE: u64 = 4096;
const SECTOR_BYTES: usize = SECTOR as usize;
const PAGE_BYTES: usize = PAGE as usize;
type Sector = [u8; SECTOR_BYTES];
/// Contents of one sector that a crash can choose from; more would add nothing.
const VERSIONS: usize = 6;

/// One bit per sector in each mask.
#[derive(Clone)]
struct Page {
    /// What reads see.
    now: [u8; PAGE_BYTES],
    /// What the disk holds, where `on_disk` says that it holds something.
    disk: [u8; PAGE_BYTES],
    on_disk: u8,
    /// Written since the last sync.
    dirty: u8,
    /// In the page cache, marked clean by a failed or lying sync, but never on the disk.
    ghost: u8,
    /// Given back by punching.
    hole: bool,
    /// Contents of dirty sectors before the newest, oldest first.
    older: Vec<(u8, Sector)>,
}

impl Page {
    fn empty() -> Box<Page> {
        Box::new(Page {
            now: [0; PAGE_BYTES],
            disk: [0; PAGE_BYTES],
            on_disk: 0,
            dirty: 0,
            ghost: 0,
            hole: false,
            older: Vec::new(),
        })
    }

    fn allocated(&self) -> bool {
        (self.on_disk | self.dirty | self.ghost) != 0 && !self.hole
    }

    /// Writes within the page; whether it was clean before. `joined`: the first sector was begun by
    /// the same write.
    fn write(&mut self, off: usize, buf: &[u8], joined: bool) -> bool {
        let was_clean = self.dirty == 0;
        self.hole = false;
        let sectors = off / SECTOR_BYTES..(off + buf.len()).div_ceil(SECTOR_BYTES);
        for (i, s) in sectors.enumerate() {
            if self.dirty & (1 << s) != 0 && !(joined && i == 0) {
                self.keep_version(s);
            }
            self.dirty |= 1 << s;
        }
        self.now[off..off + buf.len()].copy_from_slice(buf);
        was_clean
    }

    fn keep_version(&mut self, s: usize) {
        let kept = |(_, v): &(usize, &(u8, Sector))| usize::from(v.0) == s;
        if self.older.iter().enumerate().filter(kept).count() + 1 >= VERSIONS {
            // The oldest stays: the farther apart, the more a crash can tell.
            if let Some((second, _)) = self.older.iter().enumerate().filter(kept).nth(1) {
                self.older.remove(second);
            }
        }
        self.older.push((s as u8, *sector(&self.now, s)));
    }

    fn persist(&mut self, s: usize) {
        *sector_mut(&mut self.disk, s) = *sector(&self.now, s);
        self.on_disk |= 1 << s;
        self.ghost &= !(1 << s);
    }

    /// What is on the disk becomes what is seen.
    fn reload(&mut self) {
        for s in 0..PAGE_BYTES / SECTOR_BYTES {
            *sector_mut(&mut self.now, s) = match self.on_disk & (1 << s) {
                0 => [0; SECTOR_BYTES],
                _ => *sector(&self.disk, s),
            };
        }
        (self.dirty, self.ghost) = (0, 0);
        self.older.clear();
    }
}

fn sector(page: &[u8; PAGE_BYTES], s: usize) -> &Sector {
    &page.as_chunks().0[s]
}

fn sector_mut(page: &mut [u8; PAGE_BYTES], s: usize) -> &mut Sector {
    &mut page.as_chunks_mut().0[s]
}

fn bits(mask: u8) -> impl Iterator<Item = usize> {
    (0..8).filter(move |s| mask & (1 << s) != 0)
}

/// See the module's head.
#[derive(Clone, Default)]
pub(super) struct Inode {
    pages: BTreeMap<u64, Box<Page>>,
    /// Pages with a dirty sector, in the order in which they became dirty.
    dirty: Vec<u64>,
    /// Pages that take space.
    allocated: u64,
    durable_size: u64,
    pub(super) size: u64,
}

impl Inode {
    pub(super) fn write_parts(&mut self, at: u64, parts: &[IoSlice<'_>]) {
        let (first, mut at) = (at, at);
        for part in parts {
            self.write(at, part, at > first && at % SECTOR != 0);
            at += part.len() as u64;
        }
    }

    fn write(&mut self, mut at: u64, mut buf: &[u8], mut joined: bool) {
        self.size = self.size.max(at + buf.len() as u64);
        while !buf.is_empty() {
            let (n, off) = (at / PAGE, (at % PAGE) as usize);
            let (now, rest) = buf.split_at(buf.len().min(PAGE_BYTES - off));
            let page = self.pages.entry(n).or_insert_with(Page::empty);
            let before = page.allocated();
            if page.write(off, now, std::mem::take(&mut joined)) {
                self.dirty.push(n);
            }
            self.allocated += u64::from(!before);
            at += now.len() as u64;
            buf = rest;
        }
    }

    pub(super) fn read(&self, mut at: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let (n, off) = (at / PAGE, (at % PAGE) as usize);
            let now = buf.len().min(PAGE_BYTES - off);
            let (head, rest) = std::mem::take(&mut buf).split_at_mut(now);
            match self.pages.get(&n) {
                Some(page) => head.copy_from_slice(&page.now[off..off + now]),
                None => head.fill(0),
            }
            at += now as u64;
            buf = rest;
        }
    }

    /// Does something with each page that has dirty sectors, in the file's order; they are clean
    /// afterwards.
    fn clean(&mut self, mut f: impl FnMut(&mut Page)) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for n in dirty {
            let Some(page) = self.pages.get_mut(&n) else {
                continue;
            };
            let before = page.allocated();
            f(page);
            page.dirty = 0;
            page.older.clear();
            self.allocated -= u64::from(before && !page.allocated());
        }
    }

    pub(super) fn sync(&mut self) {
        self.clean(|page| bits(page.dirty).for_each(|s| page.persist(s)));
        self.durable_size = self.size;
    }

    /// A sync that says that it was done, and did nothing.
    pub(super) fn lie(&mut self) {
        self.clean(|page| page.ghost |= page.dirty);
    }

    /// The kernel tried and gave up: some sectors arrived, the rest is clean and lost.
    pub(super) fn sync_failed(&mut self, rng: &mut Rng) {
        self.clean(|page| {
            for s in bits(page.dirty) {
                if rng.one_in(2) {
                    page.persist(s);
                } else {
                    page.ghost |= 1 << s;
                }
            }
        });
    }

    /// The power fails; `all`: everything that was not synced is gone.
    pub(super) fn crash(&mut self, rng: &mut Rng, all: bool) {
        let mut lost = Vec::new();
        self.clean(|page| {
            for s in bits(page.dirty).filter(|_| !all) {
                let versions: Vec<Sector> = page
                    .older
                    .iter()
                    .filter(|v| usize::from(v.0) == s)
                    .map(|v| v.1)
                    .chain([*sector(&page.now, s)])
                    .collect();
                let pick = rng.below(versions.len() as u64 + 1) as usize;
                if let Some(version) = pick.checked_sub(1).and_then(|i| versions.get(i)) {
                    *sector_mut(&mut page.disk, s) = *version;
                    page.on_disk |= 1 << s;
                }
            }
        });
        for (n, page) in &mut self.pages {
            let before = page.allocated();
            page.reload();
            self.allocated -= u64::from(before && !page.allocated());
            if page.on_disk == 0 && !page.hole {
                lost.push(*n);
            }
        }
        for n in lost {
            self.pages.remove(&n);
        }
        self.size = if rng.one_in(2) {
            self.size
        } else {
            self.durable_size
        };
        self.durable_size = self.size;
    }

    /// Flips bits of a byte, in cache and on disk.
    pub(super) fn flip(&mut self, at: u64, mask: u8) {
        let page = self.pages.entry(at / PAGE).or_insert_with(Page::empty);
        let before = page.allocated();
        let (off, s) = ((at % PAGE) as usize, (at % PAGE / SECTOR) as usize);
        page.now[off] ^= mask;
        page.dirty &= !(1 << s);
        page.older.retain(|v| usize::from(v.0) != s);
        page.persist(s);
        self.allocated += u64::from(!before && page.allocated());
        if page.dirty == 0 {
            self.dirty.retain(|n| *n != at / PAGE);
        }
    }

    /// Makes a range read as zeros and gives its whole pages back.
    pub(super) fn punch(&mut self, at: u64, bytes: u64) {
        let (size, end) = (self.size, at + bytes);
        let touched: Vec<(u64, u8)> = self
            .pages
            .range(at / PAGE..end.div_ceil(PAGE))
            .map(|(n, p)| (*n, p.on_disk | p.dirty | p.ghost))
            .filter(|(_, present)| *present != 0)
            .collect();
        let zeros = [0; SECTOR_BYTES];
        for (n, present) in touched {
            for s in bits(present) {
                let first = n * PAGE + s as u64 * SECTOR;
                let (from, to) = (first.max(at), (first + SECTOR).min(end));
                if from < to {
                    self.write(from, &zeros[..(to - from) as usize], false);
                }
            }
            if n * PAGE >= at
                && (n + 1) * PAGE <= end
                && let Some(page) = self.pages.get_mut(&n)
            {
                self.allocated -= u64::from(page.allocated());
                page.hole = true;
            }
        }
        self.size = size;
    }

    pub(super) fn has_page(&self, page: u64) -> bool {
        self.pages.get(&page).is_some_and(|p| p.allocated())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated * PAGE
    }
}
