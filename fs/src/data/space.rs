//! `fallocate`, `lseek` for data and holes, `copy_file_range`.
//!
//! Long ranges are done in steps of one transaction each; a crash between them leaves the first
//! part done, which POSIX allows. Allocated blocks read as zeros because free ones do.

use super::truncate::STEP;
use super::write::Edges;
use super::{BLOCK, MAX_IO, pieces};
use crate::api::{Access, Change, Creds, Ctx, Done, Event, Fallocate, FileKind, InodeId, Seek};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::{Inode, MAX_SIZE};
use crate::ops::Fs;

/// Blocks that one step of an allocation covers (64 MiB).
const STEP_BLOCKS: u64 = 16 << 10;
/// Pieces of the map that one step looks at.
const STEP_PIECES: usize = 32;

/// A step of a long operation: where the next one starts.
type Next = Option<u64>;

fn writable(core: &Core, creds: &Creds, id: InodeId) -> FsResult<Inode> {
    let inode = core.inode_of(id)?;
    match inode.kind {
        FileKind::File => {}
        FileKind::Dir => return Err(FsError::IsDir),
        _ => return Err(FsError::WrongKind),
    }
    core.check_io(creds, id.ino, &inode, Access::WRITE)?;
    core.not_truncating(id.ino)?;
    Ok(inode)
}

impl Fs {
    /// Gives blocks to holes in a range of blocks, and zeros what is stored if `zero`.
    fn allocate_step(
        &self,
        core: &mut Core,
        id: InodeId,
        inode: &mut Inode,
        (from, to): (u64, u64),
        zero: bool,
    ) -> FsResult<Next> {
        let to_now = to.min(from + STEP_BLOCKS);
        let list = pieces(core, id.ino, from, to_now, STEP_PIECES)?;
        let mut at = from;
        for piece in list {
            match piece.block {
                Some(b) if zero => {
                    core.zero_data(b, b + piece.count);
                    self.contents.bump(id.ino);
                }
                Some(_) => {}
                None => {
                    core.fill_hole(id.ino, inode, piece.at, piece.count, &mut |_, _, _, _| {})?;
                }
            }
            at = piece.at + piece.count;
        }
        Ok((at < to).then_some(at))
    }

    fn punch_step(
        &self,
        core: &mut Core,
        id: InodeId,
        inode: &mut Inode,
        (from, to): (u64, u64),
    ) -> FsResult<Next> {
        core.set_freeing(true);
        self.versions.bump(id.ino);
        self.contents.bump(id.ino);
        let done = core.unmap(id.ino, inode, from, to, STEP)?;
        // Goes from the end backwards: the start stays.
        Ok((!done).then_some(from))
    }

    pub(crate) fn do_fallocate(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        len: u64,
        how: Fallocate,
    ) -> FsResult<Done<Change>> {
        let end = offset
            .checked_add(len)
            .filter(|e| *e <= MAX_SIZE)
            .ok_or(FsError::TooBig)?;
        if len == 0 {
            return Err(FsError::Invalid("a range of no bytes"));
        }
        let (zero, punch) = match how {
            Fallocate::Allocate | Fallocate::AllocateKeepSize => (false, false),
            Fallocate::ZeroRange | Fallocate::ZeroRangeKeepSize => (true, false),
            Fallocate::PunchHole => (true, true),
        };
        let keep = !matches!(how, Fallocate::Allocate | Fallocate::ZeroRange);
        // Zeroing spares the partial blocks at the ends, allocating includes them.
        let (from, to) = match punch {
            true => (offset.div_ceil(BLOCK), end / BLOCK),
            false => (offset / BLOCK, end.div_ceil(BLOCK)),
        };
        let whole = (offset.div_ceil(BLOCK), end / BLOCK);
        let edges = match zero {
            true => self.edges(id, &[offset, end])?,
            false => Edges::NONE,
        };
        let room = self.engine.volume.space().free_bytes;
        let (mut at, mut first) = (from, None);
        loop {
            let need = if punch { STEP } else { STEP_PIECES + 2 };
            let mut next = None;
            let done = self.change(&ctx, Some(id), need, |core| {
                let mut inode = writable(core, ctx.creds, id)?;
                let before = inode.attr(id.ino);
                if zero && at == from {
                    self.zero_edges(core, id, &edges, offset, end)?;
                }
                next = match how {
                    _ if at >= to => None,
                    _ if punch => self.punch_step(core, id, &mut inode, (at, to))?,
                    _ => {
                        if room < (to - at).min(STEP_BLOCKS) * BLOCK {
                            return Err(FsError::NoSpace("the pool beneath the volume is full"));
                        }
                        // The edge blocks of a zeroed range keep the rest of their content.
                        let edge = at < whole.0 || at >= whole.1;
                        let stop = match (zero, at < whole.0, at < whole.1) {
                            (true, true, _) => whole.0.min(to).max(at + 1),
                            (true, _, true) => whole.1,
                            _ => to,
                        };
                        let range = (at, stop);
                        self.allocate_step(core, id, &mut inode, range, zero && !edge)?
                            .or((stop < to).then_some(stop))
                    }
                };
                if !keep {
                    inode.size = inode.size.max(end);
                }
                inode.clear_set_ids_by(ctx.creds);
                let now = core.now();
                (inode.mtime, inode.ctime) = (now, now);
                core.put_inode(id.ino, &inode)?;
                Ok(Change {
                    before: first.unwrap_or(before),
                    after: inode.attr(id.ino),
                })
            })?;
            first = Some(done.value.before);
            match next {
                Some(n) => at = n,
                None => {
                    let content = Some((offset, len));
                    self.tell(ctx.door, &[Event::Inode { id, content }]);
                    return Ok(done);
                }
            }
        }
    }

    /// Zeros the parts of blocks at both ends of a range.
    fn zero_edges(
        &self,
        core: &mut Core,
        id: InodeId,
        edges: &Edges,
        offset: u64,
        end: u64,
    ) -> FsResult<()> {
        let head_end = end.min(offset.div_ceil(BLOCK) * BLOCK);
        if !offset.is_multiple_of(BLOCK) {
            self.zero_part(core, id.ino, edges, offset, head_end)?;
        }
        let tail = end / BLOCK * BLOCK;
        if !end.is_multiple_of(BLOCK) && tail >= head_end {
            // The head's edge may have bumped the version: the tail is another block, and is
            // then read again under the lock, which is right if slower.
            self.zero_part(core, id.ino, edges, tail, end)?;
        }
        Ok(())
    }

    pub(crate) fn do_seek(&self, id: InodeId, offset: u64, what: Seek) -> FsResult<u64> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        if inode.kind != FileKind::File {
            return Err(FsError::WrongKind);
        }
        if offset >= inode.size {
            return Err(FsError::NoSuchOffset);
        }
        let (mut at, end) = (offset / BLOCK, inode.size.div_ceil(BLOCK));
        while at < end {
            for piece in pieces(&*core, id.ino, at, end, STEP_PIECES)? {
                let found = match what {
                    Seek::Data => piece.block.is_some(),
                    Seek::Hole => piece.block.is_none(),
                };
                if found {
                    return Ok((piece.at * BLOCK).max(offset));
                }
                at = piece.at + piece.count;
            }
        }
        match what {
            Seek::Data => Err(FsError::NoSuchOffset),
            Seek::Hole => Ok(inode.size),
        }
    }

    pub(crate) fn do_copy(
        &self,
        ctx: Ctx<'_, Change>,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
    ) -> FsResult<Done<u64>> {
        let len = len.min(MAX_IO as u64);
        if from.0 == to.0 && from.1 < to.1.saturating_add(len) && to.1 < from.1.saturating_add(len)
        {
            return Err(FsError::Invalid("the ranges overlap"));
        }
        let data = self
            .do_read(ctx.creds, from.0, from.1, len as u32)?
            .concat();
        let n = data.len() as u64;
        let done = self.do_write(ctx, to.0, to.1, data)?;
        Ok(Done {
            value: n,
            mark: done.mark,
        })
    }
}
