//! The extent map of a file.

use crate::api::Ino;
use crate::btree::{self, PageRead};
use crate::core::{Core, For};
use crate::error::FsResult;
use crate::format::inode::Inode;
use crate::format::items::{Extent, MAX_EXTENT};
use crate::format::key::{Key, Kind};

/// A part of a file: stored at a block, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First block of the file.
    pub at: u64,
    /// Blocks.
    pub count: u64,
    /// Where it is on the volume; `None`: a hole.
    pub block: Option<u64>,
}

/// The pieces that make up `from..to` of a file, in order, at most `max` of them.
pub(crate) fn pieces<R: PageRead + ?Sized>(
    r: &R,
    ino: Ino,
    from: u64,
    to: u64,
    max: usize,
) -> FsResult<Vec<Piece>> {
    let mut out = Vec::new();
    let mut at = from;
    let mut take = |e: Extent, at: &mut u64| {
        if e.end() <= *at || out.len() >= max {
            return out.len() < max;
        }
        if e.at > *at {
            out.push(Piece {
                at: *at,
                count: e.at.min(to) - *at,
                block: None,
            });
            *at = e.at.min(to);
        }
        if *at < to && out.len() < max {
            let count = e.end().min(to) - *at;
            out.push(Piece {
                at: *at,
                count,
                block: Some(e.block + (*at - e.at)),
            });
            *at += count;
        }
        *at < to && out.len() < max
    };
    if from >= to {
        return Ok(out);
    }
    // The extent that begins before the range may reach into it.
    let start = match extent_at_or_before(r, ino, from)? {
        Some(e) => e.at,
        None => from,
    };
    btree::scan(
        r,
        &Key::new(ino, Kind::Extent, start),
        &Key::new(ino, Kind::Extent, to - 1),
        &mut |k, v| Ok(take(Extent::decode(k.off(), v)?, &mut at)),
    )?;
    if at < to && out.len() < max {
        out.push(Piece {
            at,
            count: to - at,
            block: None,
        });
    }
    Ok(out)
}

/// The last extent that begins at or before a block of the file.
pub(crate) fn extent_at_or_before<R: PageRead + ?Sized>(
    r: &R,
    ino: Ino,
    at: u64,
) -> FsResult<Option<Extent>> {
    let found = btree::last(
        r,
        &Key::new(ino, Kind::Extent, 0),
        &Key::new(ino, Kind::Extent, at),
    )?;
    found.map(|(k, v)| Extent::decode(k.off(), &v)).transpose()
}

impl Core {
    fn put_extent(&mut self, ino: Ino, e: &Extent) -> FsResult<()> {
        btree::insert(self, &Key::new(ino, Kind::Extent, e.at), &e.encode())
    }

    /// Gives blocks to a hole of `count` blocks at `at`; calls `each` with every run's first block
    /// of the file, first block of the volume and length.
    pub(crate) fn fill_hole(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        at: u64,
        count: u64,
        each: &mut dyn FnMut(&mut Core, u64, u64, u64),
    ) -> FsResult<()> {
        let (mut at, end) = (at, at + count);
        let mut before = extent_at_or_before(self, ino, at)?;
        while at < end {
            let near = before.filter(|e| at - e.at <= u64::from(MAX_EXTENT) * 2);
            let goal = match near {
                Some(e) => e.block + (at - e.at).min(u64::from(e.count)),
                None => self.data_goal(),
            };
            let (block, n) = self.allocate(goal, (end - at).min(1 << 20) as u32, For::Data)?;
            if near.is_none() {
                self.set_data_goal(block + u64::from(n));
            }
            let run = Extent {
                at,
                block,
                count: n,
                birth: self.txn_id(),
            };
            // Lengthen the extent before it where the new run adjoins on both sides. (Merging
            // over births is right as long as no snapshot lies between them; none do yet.)
            let run = match before {
                Some(e)
                    if e.end() == at
                        && e.block + u64::from(e.count) == block
                        && e.count + n <= MAX_EXTENT =>
                {
                    Extent {
                        count: e.count + n,
                        birth: run.birth,
                        ..e
                    }
                }
                _ => run,
            };
            self.put_extent(ino, &run)?;
            before = Some(run);
            inode.blocks += u64::from(n);
            each(self, at, block, u64::from(n));
            at += u64::from(n);
        }
        Ok(())
    }

    /// Makes up to `max` extents' worth of `from..to` a hole, from the end backwards, so that a
    /// crash between steps leaves a shorter file. Returns true when nothing is left to do.
    pub(crate) fn unmap(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        from: u64,
        to: u64,
        max: usize,
    ) -> FsResult<bool> {
        for _ in 0..max {
            if to <= from {
                return Ok(true);
            }
            let Some(e) = extent_at_or_before(self, ino, to - 1)?.filter(|e| e.end() > from) else {
                return Ok(true);
            };
            let (a, b) = (e.at.max(from), e.end().min(to));
            let cut = |at: u64, end: u64| Extent {
                at,
                block: e.block + (at - e.at),
                count: (end - at) as u32,
                birth: e.birth,
            };
            match e.at < a {
                true => self.put_extent(ino, &cut(e.at, a))?,
                false => {
                    btree::remove(self, &Key::new(ino, Kind::Extent, e.at))?;
                }
            }
            if b < e.end() {
                self.put_extent(ino, &cut(b, e.end()))?;
            }
            self.release(e.block + (a - e.at), b - a)?;
            inode.blocks = inode.blocks.saturating_sub(b - a);
        }
        Ok(extent_at_or_before(self, ino, to - 1)?.is_none_or(|e| e.end() <= from))
    }
}
