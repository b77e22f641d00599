//! Reading file content.
//!
//! The map is looked up under the lock, the volume is read without it. A block that was freed
//! meanwhile may hold another file's bytes by then: so after the read the file's map version is
//! compared, and the read done again if blocks were taken from it.

use std::sync::Arc;

use bytes::Bytes;
use trivet_replica::volume::Block;

use super::{BLOCK, MAX_IO, Piece, pieces, zeros};
use crate::api::{Access, Attr, Creds, FileKind, InodeId, ReadCallback, ReadOut};
use crate::core::Core;
use crate::error::{FsError, FsResult};
use crate::ops::Fs;

/// A part of an answer, before the volume was asked.
pub(crate) enum Part {
    Here(Bytes),
    Volume { block: u64, count: u64 },
}

/// What a read will give, once the volume's parts are in.
struct Plan {
    parts: Vec<Part>,
    /// Bytes to drop at the front, and to keep after that.
    skip: usize,
    len: usize,
    eof: bool,
    attr: Attr,
    version: u64,
}

impl Core {
    /// Where the content of whole blocks of a file is.
    pub(crate) fn parts(&self, list: &[Piece]) -> Vec<Part> {
        let mut parts = Vec::new();
        for piece in list {
            let mut left = piece.count;
            let mut block = piece.block;
            while left > 0 {
                let (part, n) = match block {
                    None => {
                        let z = zeros((left.min(16) * BLOCK) as usize);
                        let n = z.len() as u64 / BLOCK;
                        (Part::Here(z), n)
                    }
                    Some(b) => match self.pending(b, left) {
                        Ok(data) => {
                            let n = data.len() as u64 / BLOCK;
                            (Part::Here(data), n)
                        }
                        Err(n) => (Part::Volume { block: b, count: n }, n),
                    },
                };
                parts.push(part);
                left -= n;
                block = block.map(|b| b + n);
            }
        }
        parts
    }
}

impl Fs {
    fn plan(&self, creds: &Creds, id: InodeId, offset: u64, len: u32) -> FsResult<Plan> {
        let core = self.engine.core()?;
        let inode = core.inode_of(id)?;
        match inode.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::WrongKind),
        }
        core.check_io(creds, id.ino, &inode, Access::READ)?;
        let len = u64::from(len).min(MAX_IO as u64);
        let end = offset.saturating_add(len).min(inode.size);
        let start = offset.min(end);
        let (from, to) = (start / BLOCK, end.div_ceil(BLOCK));
        let list = match start < end {
            true => pieces(&*core, id.ino, from, to, usize::MAX)?,
            false => Vec::new(),
        };
        Ok(Plan {
            parts: core.parts(&list),
            skip: (start - from * BLOCK) as usize,
            len: (end - start) as usize,
            eof: end >= inode.size,
            attr: inode.attr(id.ino),
            version: self.versions.get(id.ino),
        })
    }

    /// Whether what was planned still holds after the volume was read.
    fn still(&self, id: InodeId, version: u64) -> bool {
        self.versions.get(id.ino) == version
    }

    /// Reads, waiting for the volume where needed.
    pub(crate) fn do_read(
        &self,
        creds: &Creds,
        id: InodeId,
        offset: u64,
        len: u32,
    ) -> FsResult<ReadOut> {
        loop {
            let mut plan = self.plan(creds, id, offset, len)?;
            for part in &mut plan.parts {
                if let Part::Volume { block, count } = *part {
                    *part = Part::Here(self.read_blocks(block, count)?);
                }
            }
            if self.still(id, plan.version) {
                return Ok(finish(plan));
            }
        }
    }

    /// Reads whole blocks of the volume (at most 1 MiB).
    pub(crate) fn read_blocks(&self, block: u64, count: u64) -> FsResult<Bytes> {
        let mut buf = vec![0; (count * BLOCK) as usize];
        self.engine.volume.read(Block(block), &mut buf)?;
        Ok(Bytes::from(buf))
    }

    /// Reads by callback.
    pub(crate) fn do_read_then(
        self: &Arc<Self>,
        creds: &Creds,
        id: InodeId,
        offset: u64,
        len: u32,
        done: ReadCallback,
    ) {
        let plan = match self.plan(creds, id, offset, len) {
            Ok(plan) => plan,
            Err(e) => return done(Err(e)),
        };
        let todo = plan
            .parts
            .iter()
            .position(|p| matches!(p, Part::Volume { .. }));
        match todo {
            None => done(Ok(finish(plan))),
            Some(_) => {
                let again = Again {
                    fs: self.clone(),
                    creds: creds.clone(),
                    id,
                    offset,
                    len,
                };
                fetch(again, plan, done);
            }
        }
    }
}

/// What is needed to start a read over.
struct Again {
    fs: Arc<Fs>,
    creds: Creds,
    id: InodeId,
    offset: u64,
    len: u32,
}

/// Fetches the first missing part, then the rest; then finishes or starts over.
fn fetch(again: Again, mut plan: Plan, done: ReadCallback) {
    let next = plan.parts.iter().enumerate().find_map(|(i, p)| match p {
        Part::Volume { block, count } => Some((i, *block, *count)),
        Part::Here(_) => None,
    });
    let Some((i, block, count)) = next else {
        if again.fs.still(again.id, plan.version) {
            return done(Ok(finish(plan)));
        }
        let Again {
            fs,
            creds,
            id,
            offset,
            len,
        } = again;
        // The map changed: plan anew, off this thread, which is the volume's.
        return fs.clone().later(Box::new(move || {
            done(fs.do_read(&creds, id, offset, len));
        }));
    };
    let volume = again.fs.engine.volume.clone();
    volume.read_then(
        Block(block),
        count as u32,
        Box::new(move |r| match r {
            Ok(data) => {
                plan.parts[i] = Part::Here(data);
                fetch(again, plan, done);
            }
            Err(e) => done(Err(e.into())),
        }),
    );
}

fn finish(plan: Plan) -> ReadOut {
    let (mut skip, mut left) = (plan.skip, plan.len);
    let mut data = Vec::with_capacity(plan.parts.len());
    for part in plan.parts {
        let Part::Here(bytes) = part else { continue };
        let from = skip.min(bytes.len());
        let to = (from + left).min(bytes.len());
        skip -= from;
        left -= to - from;
        if to > from {
            data.push(bytes.slice(from..to));
        }
    }
    ReadOut {
        data,
        eof: plan.eof,
        attr: plan.attr,
    }
}
