//! Writing file content.
//!
//! Written blocks are overwritten in place, holes get blocks; either way the content goes into
//! the open transaction with whatever metadata it needs. A plain overwrite changes nothing but
//! times, and those go to the inode's item later (`ops::lazy`).
//!
//! Copies of payload: none here but for the two edge blocks of an unaligned write.

use bytes::Bytes;
use trivet_replica::volume::Admission;

use super::{BLOCK, MAX_IO, Piece, STREAM, pieces, zeros};
use crate::api::{Access, Change, Creds, Ctx, Done, Event, FileKind, Ino, InodeId};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::format::inode::{Inode, MAX_SIZE};
use crate::ops::Fs;

/// Writes of at least this many bytes are looked through for zeros.
const ZERO_SCAN: usize = 64 << 10;
/// Runs of zeros over stored blocks are discarded from this many blocks on.
const ZERO_RUN: u64 = 16;
/// Bytes that the pools beneath must have beyond what a write needs.
const POOL_MARGIN: u64 = 8 << 20;

/// Old content of the blocks at a write's unaligned ends, fetched before the lock is taken.
pub(crate) struct Edges {
    version: u64,
    blocks: Vec<(u64, Bytes)>,
}

impl Edges {
    /// Nothing fetched.
    pub const NONE: Edges = Edges {
        version: 0,
        blocks: Vec::new(),
    };

    fn get(&self, at: u64, version: u64) -> Option<Bytes> {
        let fresh = self.version == version;
        let found = self.blocks.iter().find(|b| b.0 == at)?;
        fresh.then(|| found.1.clone())
    }
}

/// Blocks of a file, with content or (`None`) all zeros.
struct Run {
    at: u64,
    count: u64,
    data: Option<Bytes>,
}

impl Fs {
    /// Old content of one block of a file, if it is stored.
    fn old_block(&self, core: &Core, ino: Ino, at: u64) -> FsResult<Option<Bytes>> {
        let list = pieces(core, ino, at, at + 1, 1)?;
        let Some(Piece { block: Some(b), .. }) = list.first().copied() else {
            return Ok(None);
        };
        match core.pending(b, 1) {
            Ok(data) => Ok(Some(data)),
            Err(_) => self.read_blocks(b, 1).map(Some),
        }
    }

    /// Fetches what an unaligned write or truncation will need, so that the lock is not held
    /// over a read. It may be stale by then: the version tells.
    pub(crate) fn edges(&self, id: InodeId, ends: &[u64]) -> FsResult<Edges> {
        if ends.iter().all(|e| e % BLOCK == 0) {
            return Ok(Edges::NONE);
        }
        let mut wanted = Vec::new();
        let mut edges = {
            let core = self.engine.core()?;
            let edges = Edges {
                version: self.contents.get(id.ino),
                blocks: Vec::new(),
            };
            for end in ends.iter().filter(|e| *e % BLOCK != 0) {
                let at = end / BLOCK;
                let list = pieces(&*core, id.ino, at, at + 1, 1)?;
                if let Some(Piece { block: Some(b), .. }) = list.first().copied()
                    && core.pending(b, 1).is_err()
                {
                    wanted.push((at, b));
                }
            }
            edges
        };
        for (at, b) in wanted {
            edges.blocks.push((at, self.read_blocks(b, 1)?));
        }
        Ok(edges)
    }

    /// One block of the file with `data` laid over it at `within`.
    fn merged(
        &self,
        core: &Core,
        ino: Ino,
        edges: &Edges,
        at: u64,
        within: usize,
        data: &[u8],
    ) -> FsResult<Bytes> {
        let version = self.contents.get(ino);
        let old = match edges.get(at, version) {
            // The volume's content does not count where the transaction has newer.
            Some(old) => Some(old),
            None => self.old_block(core, ino, at)?,
        };
        let mut block = match old {
            Some(old) => old.to_vec(),
            None => vec![0; BLOCK as usize],
        };
        block[within..within + data.len()].copy_from_slice(data);
        Ok(Bytes::from(block))
    }

    /// Lays zeros over a part of one stored block.
    pub(crate) fn zero_part(
        &self,
        core: &mut Core,
        ino: Ino,
        edges: &Edges,
        from: u64,
        to: u64,
    ) -> FsResult<()> {
        let at = from / BLOCK;
        let list = pieces(core, ino, at, at + 1, 1)?;
        if let Some(Piece { block: Some(b), .. }) = list.first().copied()
            && from < to
        {
            let gap = zeros((to - from) as usize);
            let block = self.merged(core, ino, edges, at, (from % BLOCK) as usize, &gap)?;
            core.put_data(b, block);
            self.contents.bump(ino);
        }
        Ok(())
    }

    /// Cuts a write into whole blocks.
    fn runs(
        &self,
        core: &Core,
        ino: Ino,
        edges: &Edges,
        offset: u64,
        data: &Bytes,
    ) -> FsResult<Vec<Run>> {
        let mut runs = Vec::new();
        let mut data = data.clone();
        let mut at = offset / BLOCK;
        let within = (offset % BLOCK) as usize;
        let one = |at, data| Run {
            at,
            count: 1,
            data: Some(data),
        };
        if within > 0 {
            let head = data.split_to(data.len().min(BLOCK as usize - within));
            runs.push(one(at, self.merged(core, ino, edges, at, within, &head)?));
            at += 1;
        }
        let scan = data.len() >= ZERO_SCAN;
        let body = data.split_to(data.len() / BLOCK as usize * BLOCK as usize);
        let blocks = body.len() as u64 / BLOCK;
        if scan {
            cut_at_zeros(at, &body, &mut runs);
        } else if blocks > 0 {
            runs.push(Run {
                at,
                count: blocks,
                data: Some(body),
            });
        }
        at += blocks;
        if !data.is_empty() {
            runs.push(one(at, self.merged(core, ino, edges, at, 0, &data)?));
        }
        Ok(runs)
    }

    /// Stores one run; true if the file's map changed.
    fn store(
        &self,
        core: &mut Core,
        ino: Ino,
        inode: &mut Inode,
        run: &Run,
        room: u64,
    ) -> FsResult<bool> {
        let mut mapped = false;
        for piece in pieces(core, ino, run.at, run.at + run.count, usize::MAX)? {
            let slice = |at: u64, n: u64| match &run.data {
                Some(d) => {
                    let from = ((at - run.at) * BLOCK) as usize;
                    d.slice(from..from + (n * BLOCK) as usize)
                }
                None => zeros((n * BLOCK) as usize),
            };
            match (piece.block, &run.data) {
                (Some(b), Some(_)) => core.put_data(b, slice(piece.at, piece.count)),
                (Some(b), None) if piece.count >= ZERO_RUN => core.zero_data(b, b + piece.count),
                (Some(b), None) => core.put_data(b, slice(piece.at, piece.count)),
                (None, None) => {}
                (None, Some(_)) => {
                    if room < piece.count * BLOCK + POOL_MARGIN {
                        return Err(FsError::NoSpace("the pool beneath the volume is full"));
                    }
                    mapped = true;
                    core.fill_hole(ino, inode, piece.at, piece.count, &mut |core, at, b, n| {
                        core.put_data(b, slice(at, n));
                    })?;
                }
            }
        }
        Ok(mapped)
    }

    /// The whole of a write, under the lock.
    fn write_op(
        &self,
        core: &mut Core,
        creds: &Creds,
        id: InodeId,
        edges: &Edges,
        (offset, data): (u64, &Bytes),
        room: u64,
    ) -> FsResult<Change> {
        let mut inode = core.inode_of(id)?;
        match inode.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::WrongKind),
        }
        core.check_io(creds, id.ino, &inode, Access::WRITE)?;
        let before = inode.attr(id.ino);
        if data.is_empty() {
            return Ok(Change {
                before,
                after: before,
            });
        }
        core.not_truncating(id.ino)?;
        let was = inode;
        for run in self.runs(core, id.ino, edges, offset, data)? {
            self.store(core, id.ino, &mut inode, &run, room)?;
        }
        self.contents.bump(id.ino);
        inode.size = inode.size.max(offset + data.len() as u64);
        inode.clear_set_ids(creds);
        let plain = inode == was;
        let now = core.now();
        (inode.mtime, inode.ctime) = (now, now);
        match plain {
            true => core.put_times_later(id.ino, &inode)?,
            false => core.put_inode(id.ino, &inode)?,
        }
        Ok(Change {
            before,
            after: inode.attr(id.ino),
        })
    }

    /// Writes; where free space is so fragmented that the write does not fit one transaction,
    /// in two halves.
    pub(crate) fn do_write(
        &self,
        ctx: Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        data: Bytes,
    ) -> FsResult<Done<Change>> {
        let half = data.len() / 2 / BLOCK as usize * BLOCK as usize;
        match self.write_once(&ctx, id, offset, data.clone()) {
            Err(FsError::TooWide) if half > 0 => {
                let before = {
                    let first = Ctx::by(ctx.creds, ctx.door);
                    self.do_write(first, id, offset, data.slice(..half))?
                        .value
                        .before
                };
                let mut done = self.do_write(ctx, id, offset + half as u64, data.slice(half..))?;
                done.value.before = before;
                Ok(done)
            }
            Err(FsError::TooWide) => Err(FsError::NoSpace("free space is too fragmented")),
            other => other,
        }
    }

    fn write_once(
        &self,
        ctx: &Ctx<'_, Change>,
        id: InodeId,
        offset: u64,
        data: Bytes,
    ) -> FsResult<Done<Change>> {
        if data.len() > MAX_IO {
            return Err(FsError::Invalid("a write of more than 1 MiB"));
        }
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > MAX_SIZE) {
            return Err(FsError::TooBig);
        }
        let _admitted = match data.len() >= STREAM {
            true => {
                // Who is admitted keeps others waiting: first of all what takes long.
                if self.engine.core()?.truncating.contains(&id.ino) {
                    self.settle(id.ino)?;
                }
                self.engine.volume.admit(len)
            }
            false => Admission::default(),
        };
        let room = self.engine.volume.space().free_bytes;
        let edges = self.edges(id, &[offset, offset + len])?;
        let blocks = (len / BLOCK) as usize + 2;
        let done = self.change(ctx, Some(id), blocks, |core| {
            self.write_op(core, ctx.creds, id, &edges, (offset, &data), room)
        })?;
        self.tell(
            ctx.door,
            &[Event::Inode {
                id,
                content: Some((offset, len)),
            }],
        );
        Ok(done)
    }
}

/// Cuts content into runs of blocks that are all zero and runs that are not.
fn cut_at_zeros(at: u64, body: &Bytes, runs: &mut Vec<Run>) {
    let is_zero = |i: u64| {
        let from = (i * BLOCK) as usize;
        let block = &body[from..from + BLOCK as usize];
        // Most blocks that are not zero show it at once.
        block[0] == 0 && block[block.len() - 1] == 0 && block.iter().all(|b| *b == 0)
    };
    let blocks = body.len() as u64 / BLOCK;
    let mut start = 0;
    while start < blocks {
        let zero = is_zero(start);
        let mut end = start + 1;
        while end < blocks && is_zero(end) == zero {
            end += 1;
        }
        let bytes = (start * BLOCK) as usize..(end * BLOCK) as usize;
        // A few zero blocks over stored ones are written out: `store` decides by length.
        runs.push(Run {
            at: at + start,
            count: end - start,
            data: (!zero).then(|| body.slice(bytes)),
        });
        start = end;
    }
}
