//! Making, mounting, growing and closing a file system.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use trivet_replica::volume::{Batch, BatchOp, Block, Volume, VolumeId};

use super::background::{Background, Task};
use super::{Fs, Settings, Versions, lock};
use crate::api::{FileKind, Ino, InodeId, Mark, Time};
use crate::btree;
use crate::core::{Engine, read_super};
use crate::data::ORPHAN_CUT;
use crate::error::{FsError, FsResult};
use crate::format::bitmap;
use crate::format::inode::Inode;
use crate::format::key::{Key, Kind};
use crate::format::page::{PAGE_BYTES, Page, PageKind};
use crate::format::superblock::{MIN_BLOCKS, Superblock};

/// How long closing waits for the last flush.
pub(crate) const CLOSE: Duration = Duration::from_secs(5);

/// How a file system is made.
#[derive(Clone, Debug, Default)]
pub struct MkfsOptions {
    /// Make it even if the volume holds something.
    pub force: bool,
    /// Owner and group of the root directory.
    pub owner: (u32, u32),
    /// For golden images: identity, name-hash key and time instead of random ones and the clock.
    pub fixed: Option<([u8; 16], [u8; 32], u64)>,
}

fn clock() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// Makes an empty file system on a volume, in one batch; durable on return.
///
/// # Errors
/// The volume is too small, holds something (without `force`), or refuses.
pub fn mkfs(volume: &dyn Volume, options: &MkfsOptions) -> FsResult<()> {
    let blocks = volume.info().blocks;
    if blocks < MIN_BLOCKS {
        return Err(FsError::Mount(format!(
            "a file system needs {MIN_BLOCKS} blocks of 4 KiB, the volume has {blocks}"
        )));
    }
    let mut first = [0; PAGE_BYTES];
    volume.read(Block(0), &mut first)?;
    if !options.force && first.iter().any(|b| *b != 0) {
        return Err(FsError::Mount(
            "the volume is not empty; making a file system would destroy what it holds".into(),
        ));
    }
    let random = || VolumeId::random().bytes();
    let (uuid, hash_key, time) = options.fixed.unwrap_or_else(|| {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&random());
        key[16..].copy_from_slice(&random());
        (random(), key, clock())
    });
    let (root_block, birth) = (2, 1);
    let sb = Superblock {
        compat: 0,
        incompat: 0,
        ro_compat: 0,
        uuid,
        blocks,
        root: root_block,
        txn: birth,
        next_ino: 2,
        free: bitmap::total_free(blocks) - 1,
        inodes: 1,
        last_time: time,
        hash_key,
        next_lock: 1,
        next_reply: 1,
    };
    let mut map = bitmap::fresh(0, birth);
    bitmap::set(&mut map, root_block as u32, 1, true);
    map.seal();
    let mut root = Page::new(root_block, birth, PageKind::Leaf, 0);
    let key = Key::new(InodeId::ROOT.ino, Kind::Inode, 0);
    root.insert(0, &key, &root_inode(options.owner, time, birth).encode());
    root.seal();
    let write = |block: u64, bytes: &[u8]| BatchOp::Write {
        block: Block(block),
        data: Bytes::copy_from_slice(bytes),
    };
    let ticket = volume.submit(Batch {
        ops: vec![
            BatchOp::Discard {
                block: Block(0),
                count: blocks,
            },
            write(0, &sb.encode()),
            write(bitmap::bitmap_block(0), &map.0),
            write(root_block, &root.0),
        ],
    })?;
    volume.flush(ticket)?;
    Ok(())
}

fn root_inode((uid, gid): (u32, u32), time: u64, birth: u64) -> Inode {
    let now = Time {
        secs: (time / 1_000_000_000) as i64,
        nanos: (time % 1_000_000_000) as u32,
    };
    Inode {
        kind: FileKind::Dir,
        mode: 0o755,
        uid,
        gid,
        nlink: 2,
        rdev: Default::default(),
        xattrs: 0,
        size: 0,
        blocks: 0,
        generation: InodeId::ROOT.generation,
        parent: InodeId::ROOT.ino,
        entries: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        verifier: None,
        birth,
    }
}

impl Fs {
    /// Mounts the file system of a volume. What a crash left under way, files to be freed or cut,
    /// is finished in the background; whoever changes such a file waits for it.
    ///
    /// # Errors
    /// [`FsError::Mount`] says what the volume holds instead; [`FsError::Damaged`].
    pub fn mount(volume: Arc<dyn Volume>, settings: Settings) -> FsResult<Arc<Fs>> {
        let (fs, tasks) = Fs::assemble(volume, settings)?;
        fs.engine.start_committer(Arc::downgrade(&fs))?;
        fs.recover()?;
        fs.background.start(&fs, tasks)?;
        Ok(fs)
    }

    /// For looking only, on a volume that takes no writes: what a crash left under way stays as it
    /// is, which no reader can tell. A call that changes something fails.
    ///
    /// # Errors
    /// As [`Fs::mount`].
    pub fn look(volume: Arc<dyn Volume>, settings: Settings) -> FsResult<Arc<Fs>> {
        Fs::assemble(volume, settings).map(|(fs, _)| fs)
    }

    fn assemble(
        volume: Arc<dyn Volume>,
        settings: Settings,
    ) -> FsResult<(Arc<Fs>, Receiver<Task>)> {
        let sb = read_super(&*volume)?;
        let (background, tasks) = Background::new();
        let fs = Arc::new_cyclic(|me| Fs {
            engine: Engine::new(volume, settings.cache_bytes, sb),
            settings,
            versions: Versions::new(),
            contents: Versions::new(),
            opens: Mutex::new(HashMap::new()),
            locks: Mutex::default(),
            watchers: RwLock::new(Vec::new()),
            background,
            me: me.clone(),
        });
        Ok((fs, tasks))
    }

    /// Reads the lists under inode 0 and does what they say.
    fn recover(&self) -> FsResult<()> {
        let (mut cut, mut gone, mut lazy) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut core = self.engine.core_mut()?;
            let (from, to) = (
                Key::raw(0, Kind::Orphan as u8, 0),
                Key::raw(0, Kind::Lazy as u8, u64::MAX),
            );
            btree::scan(&*core, &from, &to, &mut |k, v| {
                let ino = Ino(k.off());
                match (k.kind() == Kind::Lazy as u8, v.first()) {
                    (true, _) => lazy.push(ino),
                    (_, Some(&ORPHAN_CUT)) => cut.push(ino),
                    _ => gone.push(ino),
                }
                Ok(true)
            })?;
            // One that lost its last name half cut says only that it is to be freed.
            core.truncating.extend(cut.iter().chain(&gone).copied());
            core.load_answers()?;
        }
        self.load_locks()?;
        cut.into_iter().for_each(|ino| self.background.settle(ino));
        gone.into_iter().for_each(|ino| self.background.reap(ino));
        lazy.chunks(32)
            .try_for_each(|inos| self.recover_times(inos))
    }

    /// Enlarges volume and file system to at least `bytes`, while both are in use; durable on
    /// return. Returns the size, in bytes. Nothing shrinks: a size below the present one only
    /// finishes an enlargement that a crash cut short, which leaves a file system smaller than its
    /// volume.
    ///
    /// # Errors
    /// The volume refuses (too large; members do not store its new size), or as for any change.
    pub fn grow(&self, bytes: u64) -> FsResult<u64> {
        let volume = &self.engine.volume;
        let wanted = bytes.div_ceil(PAGE_BYTES as u64);
        if wanted > volume.info().blocks {
            volume.grow(wanted)?;
        }
        let blocks = volume.info().blocks;
        let ((), mark) = self.engine.change(0, |core| {
            if blocks > core.sb.blocks {
                core.grow_to(blocks);
            }
            Ok(())
        })?;
        self.engine.commit()?;
        self.flush_wait(mark)?;
        Ok(blocks * PAGE_BYTES as u64)
    }

    /// Makes everything durable and stops the background work. The object still answers, but
    /// nothing is flushed unasked any more. A volume that does not flush (too few copies, say) is
    /// waited for no longer than [`CLOSE`]: whoever was promised durability waits for its own
    /// flush.
    ///
    /// # Errors
    /// The volume's, or it was too slow; then not everything is durable.
    pub fn close(&self) -> FsResult<()> {
        self.close_within(CLOSE)
    }

    /// It will be closed soon: callers that cut or free large files leave the rest to the next
    /// mount, with [`FsError::Stopped`], so that nobody has to wait for them.
    pub fn hurry(&self) {
        self.background.hurry();
    }

    /// As [`Fs::close`], with a bound of its own.
    ///
    /// # Errors
    /// As [`Fs::close`].
    pub fn close_within(&self, patience: Duration) -> FsResult<()> {
        self.background.stop();
        self.write_times(true)?;
        self.engine.commit()?;
        let flushed = self.flush_soon(Mark(u64::MAX));
        flushed.recv_timeout(patience).unwrap_or_else(|_| {
            let why = format!("what was not flushed yet could not be within {patience:?}");
            Err(FsError::Stopped(why))
        })
    }

    /// Waits for a flush.
    pub(crate) fn flush_wait(&self, upto: Mark) -> FsResult<()> {
        self.flush_soon(upto)
            .recv()
            .unwrap_or_else(|_| Err(FsError::Stopped("the volume went away in a flush".into())))
    }

    fn flush_soon(&self, upto: Mark) -> Receiver<FsResult<()>> {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        // Nobody may be waiting any more.
        let done = Box::new(move |r| drop(tx.send(r)));
        self.engine.flush_then(upto, done);
        rx
    }

    /// Frees every nameless inode that nobody holds, and what is left of files that were cut; true
    /// if there was one.
    pub(crate) fn reap_all(&self) -> FsResult<bool> {
        let (mut list, mut cut) = (Vec::new(), Vec::new());
        {
            let core = self.engine.core()?;
            let (from, to) = (
                Key::raw(0, Kind::Orphan as u8, 0),
                Key::raw(0, Kind::Orphan as u8, u64::MAX),
            );
            btree::scan(&*core, &from, &to, &mut |k, v| {
                let ino = Ino(k.off());
                match v.first() {
                    Some(&ORPHAN_CUT) => cut.push(ino),
                    _ if self.is_open(ino) => {}
                    _ => list.push(ino),
                }
                Ok(list.len() + cut.len() < 4096)
            })?;
        }
        let any = !list.is_empty() || !cut.is_empty();
        list.into_iter().try_for_each(|ino| self.reap(ino))?;
        cut.into_iter().try_for_each(|ino| self.settle(ino))?;
        if any {
            self.engine.commit()?;
        }
        Ok(any)
    }

    /// How many references are held (for tests and status).
    pub fn open_count(&self) -> usize {
        lock(&self.opens).len()
    }
}
