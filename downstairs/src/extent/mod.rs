//! Extent files: where blocks live for good, with their checksums in the same file.
//!
//! - A file that does not exist holds unwritten blocks only. Once created it stays.
//! - Metadata is read from the page cache each time; only the header's one number is kept. Reads
//!   and writes of the page cache are not atomic among each other: a sector that does not verify
//!   is read again under the lock that its one writer (the checkpoint) holds before it is called
//!   damaged.
//! - A crash leaves sectors old or new; whatever the log still holds lies over them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use lru::LruCache;
use trivet_protocol::{BLOCK_BYTES, Checksum, Position};

use crate::disk::{Disk, DiskFile, Source};
use crate::error::{Result, StoreError};
use crate::prompt::promptly;
use crate::region::Region;

pub mod layout;

use layout::{GROUP, Group, LOST, Layout, META};

/// Directory of the extent files.
pub const DIR: &str = "e";
/// Extent files kept open, at most.
const OPEN_FILES: usize = 512;

/// Number of an extent file: block number divided by blocks per extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentNo(pub u32);

impl ExtentNo {
    /// Name of the file.
    pub fn name(self) -> String {
        format!("{DIR}/{:08x}", self.0)
    }

    fn parse(name: &str) -> Option<ExtentNo> {
        let plain = name.len() == 8 && name.bytes().all(|b| b.is_ascii_hexdigit());
        plain
            .then(|| u32::from_str_radix(name, 16).ok().map(ExtentNo))
            .flatten()
    }
}

/// An open extent file. There is at most one of these per file at any time.
pub struct ExtentFile {
    /// Which one.
    pub no: ExtentNo,
    /// The file.
    pub file: Arc<dyn DiskFile>,
    /// Held for writing while metadata is written, for reading by who must not see it half done.
    meta: RwLock<()>,
    cleared: Mutex<Position>,
    /// Held during a sync: two at once could share one failure, of which only one would hear.
    syncing: Mutex<()>,
}

impl ExtentFile {
    /// Position up to which the whole extent was discarded at once.
    pub fn cleared(&self) -> Position {
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, action: &'static str) -> impl Fn(std::io::Error) -> StoreError {
        let name = self.no.name();
        move |e| StoreError::io(action, name.clone(), e)
    }
}

struct Files {
    existing: BTreeSet<u32>,
    open: LruCache<u32, Arc<ExtentFile>>,
    /// Dropped from `open` while somebody still used them.
    in_use: BTreeMap<u32, Weak<ExtentFile>>,
}

/// All extent files of a region.
pub struct Extents {
    disk: Arc<dyn Disk>,
    region: Region,
    seed: u32,
    layout: Layout,
    files: Mutex<Files>,
    /// Files created since opening, and how many of these names are durable.
    created: AtomicU64,
    named: AtomicU64,
    /// A sync failed: no later one proves anything.
    sync_failed: AtomicBool,
}

/// What a checkpoint knows about some blocks of one extent.
pub struct Change<'a> {
    /// First block within the extent.
    pub first: u32,
    /// Number of blocks.
    pub count: u32,
    /// Position of the operation.
    pub position: Position,
    /// Their checksums; `None`: discarded.
    pub sums: Option<&'a [Checksum]>,
}

impl Extents {
    /// Finds the extent files of a region.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(disk: Arc<dyn Disk>, region: &Region) -> Result<Extents> {
        let names = disk.list(DIR).map_err(|e| StoreError::io("list", DIR, e))?;
        let existing = names.iter().filter_map(|n| ExtentNo::parse(n)).map(|n| n.0);
        let open = LruCache::new(NonZeroUsize::new(OPEN_FILES).unwrap_or(NonZeroUsize::MIN));
        let files = Files {
            existing: existing.collect(),
            open,
            in_use: BTreeMap::new(),
        };
        Ok(Extents {
            disk,
            region: region.clone(),
            seed: region.seed(),
            layout: Layout::new(region.extent_blocks),
            files: Mutex::new(files),
            created: AtomicU64::new(0),
            named: AtomicU64::new(0),
            sync_failed: AtomicBool::new(false),
        })
    }

    /// Sizes and places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Extent of a block, and the block's number in it.
    pub fn locate(&self, block: u64) -> (ExtentNo, u32) {
        let per = u64::from(self.layout.blocks);
        (ExtentNo((block / per) as u32), (block % per) as u32)
    }

    /// Calls `f(extent, first block in it, count, blocks before)` for each extent in a range.
    pub fn split(
        &self,
        block: u64,
        count: u64,
        mut f: impl FnMut(ExtentNo, u32, u32, u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < count {
            let (no, first) = self.locate(block + done);
            let now = (count - done).min(u64::from(self.layout.blocks - first));
            f(no, first, now as u32, done)?;
            done += now;
        }
        Ok(())
    }

    /// The existing extents from `from` to `to`, both included.
    pub fn existing(&self, from: ExtentNo, to: ExtentNo) -> Vec<ExtentNo> {
        let files = self.lock();
        if from > to {
            return Vec::new();
        }
        files
            .existing
            .range(from.0..=to.0)
            .map(|n| ExtentNo(*n))
            .collect()
    }

    /// The first existing extent from `from` to `to`, both included.
    pub fn first_existing(&self, from: ExtentNo, to: ExtentNo) -> Option<ExtentNo> {
        let files = self.lock();
        if from > to {
            return None;
        }
        files
            .existing
            .range(from.0..=to.0)
            .next()
            .map(|n| ExtentNo(*n))
    }

    /// Makes everything written to a file durable.
    ///
    /// # Errors
    /// The disk fails, or failed in any earlier sync of an extent file.
    pub fn sync(&self, file: &ExtentFile) -> Result<()> {
        let _one = file.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sync_failed.load(Ordering::Acquire) {
            let why = "an earlier sync of an extent file failed".to_owned();
            return Err(StoreError::Poisoned { why });
        }
        file.file.sync_data().map_err(|e| {
            self.sync_failed.store(true, Ordering::Release);
            StoreError::sync(file.no.name(), e)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        // Every change below is a single insert or remove: a panic leaves nothing half done.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The extent file, if it exists.
    ///
    /// # Errors
    /// It cannot be opened, or is not this region's.
    pub fn get(&self, no: ExtentNo) -> Result<Option<Arc<ExtentFile>>> {
        self.get_from(Source::Disk, no)
    }

    /// The same; from memory alone, only if it is open.
    ///
    /// # Errors
    /// As [`Extents::get`]; or it would have to be waited for.
    pub fn get_from(&self, from: Source, no: ExtentNo) -> Result<Option<Arc<ExtentFile>>> {
        let not_open = || StoreError::io("open", no.name(), ErrorKind::WouldBlock.into());
        let mut files = match from {
            Source::Disk => self.lock(),
            // Whoever opens one holds this lock over a disk that may hang.
            Source::Memory => promptly(&self.files).ok_or_else(not_open)?,
        };
        if let Some(file) = files.open.get(&no.0) {
            return Ok(Some(Arc::clone(file)));
        }
        if !files.existing.contains(&no.0) {
            return Ok(None);
        }
        if from == Source::Memory {
            return Err(not_open());
        }
        if let Some(file) = files.in_use.remove(&no.0).and_then(|w| w.upgrade()) {
            Self::keep(&mut files, &file);
            return Ok(Some(file));
        }
        let name = no.name();
        let io = |e| StoreError::io("open", name.clone(), e);
        let file = self.disk.open(&name).map_err(io)?;
        if file.size().map_err(io)? < self.layout.file_bytes() {
            // A crash right after its creation; nothing in it was ever relied on.
            file.set_size(self.layout.file_bytes()).map_err(io)?;
        }
        let cleared = self.read_header(no, &*file)?;
        let file = Arc::new(ExtentFile {
            no,
            file,
            meta: RwLock::new(()),
            cleared: Mutex::new(cleared),
            syncing: Mutex::new(()),
        });
        Self::keep(&mut files, &file);
        Ok(Some(file))
    }

    fn keep(files: &mut Files, file: &Arc<ExtentFile>) {
        if let Some((no, old)) = files.open.push(file.no.0, Arc::clone(file))
            && no != file.no.0
        {
            if Arc::strong_count(&old) > 1 {
                files.in_use.insert(no, Arc::downgrade(&old));
            }
            if files.in_use.len() > OPEN_FILES {
                files.in_use.retain(|_, w| w.strong_count() > 0);
            }
        }
    }

    fn read_header(&self, no: ExtentNo, file: &dyn DiskFile) -> Result<Position> {
        let mut best = None;
        for at in [0, self.layout.second_header_at()] {
            let mut sector = [0; META];
            file.read_at(&mut sector, at)
                .map_err(|e| StoreError::io("read", no.name(), e))?;
            let (volume, blocks) = (self.region.volume, self.layout.blocks);
            best = best.max(layout::decode_header(
                &sector, self.seed, volume, no.0, blocks,
            ));
        }
        best.ok_or_else(|| StoreError::corrupt(no.name(), "both of its headers are damaged"))
    }

    /// The extent file, created if need be. Its name is durable after [`Extents::sync_names`].
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn get_or_create(&self, no: ExtentNo) -> Result<Arc<ExtentFile>> {
        if let Some(file) = self.get(no)? {
            return Ok(file);
        }
        let name = no.name();
        let io = |e| StoreError::io("create", name.clone(), e);
        let mut files = self.lock();
        let file = match self.disk.create(&name) {
            Ok(file) => file,
            // Left by a creation that failed half way.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                self.disk.open(&name).map_err(io)?
            }
            Err(e) => return Err(io(e)),
        };
        file.set_size(self.layout.file_bytes()).map_err(io)?;
        let cleared = Position::default();
        self.write_header(no, &*file, cleared)?;
        self.created.fetch_add(1, Ordering::AcqRel);
        files.existing.insert(no.0);
        let file = Arc::new(ExtentFile {
            no,
            file,
            meta: RwLock::new(()),
            cleared: Mutex::new(cleared),
            syncing: Mutex::new(()),
        });
        Self::keep(&mut files, &file);
        Ok(file)
    }

    fn write_header(&self, no: ExtentNo, file: &dyn DiskFile, cleared: Position) -> Result<()> {
        let (volume, blocks) = (self.region.volume, self.layout.blocks);
        let sector = layout::encode_header(self.seed, volume, no.0, blocks, cleared);
        file.write_all_at(&sector, 0)
            .and_then(|()| file.write_all_at(&sector, self.layout.second_header_at()))
            .map_err(|e| StoreError::io("write", no.name(), e))
    }

    /// Makes the names of all files created so far durable.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync_names(&self) -> Result<()> {
        let created = self.created.load(Ordering::Acquire);
        if self.named.load(Ordering::Acquire) < created {
            self.disk
                .sync_dir(DIR)
                .map_err(|e| StoreError::io("sync", DIR, e))?;
            self.named.fetch_max(created, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Reads the groups `first..=last` of an extent; a damaged one is `None`.
    fn groups(
        &self,
        from: Source,
        file: &ExtentFile,
        first: u32,
        last: u32,
    ) -> Result<Vec<Option<Group>>> {
        let count = (last - first + 1) as usize;
        let mut raw = vec![0; count * META];
        let at = self.layout.group_at(first);
        let cleared = file.cleared();
        let mut parse = || -> Result<Vec<Option<Group>>> {
            let read = file.file.read_from(from, &mut raw, at);
            read.map_err(file.fail("read"))?;
            let sectors = raw.chunks_exact(META).zip(first..);
            Ok(sectors
                .map(|(s, g)| Group::decode(s, self.seed, file.no.0, g, cleared))
                .collect())
        };
        let groups = parse()?;
        if groups.iter().all(Option::is_some) {
            return Ok(groups);
        }
        // Perhaps the checkpoint was just writing them, and that may take as long as the disk does.
        if from == Source::Memory {
            return Err(file.fail("read")(ErrorKind::WouldBlock.into()));
        }
        let _unwritten = file.meta.read().unwrap_or_else(PoisonError::into_inner);
        parse()
    }

    /// Positions at which the groups of `first..=last` last changed; `None` where damaged.
    ///
    /// # Errors
    /// The disk fails.
    pub fn changed(
        &self,
        file: &ExtentFile,
        first: u32,
        last: u32,
    ) -> Result<Vec<Option<Position>>> {
        let groups = self.groups(Source::Disk, file, first, last)?;
        Ok(groups
            .iter()
            .map(|g| g.as_ref().map(|g| g.changed))
            .collect())
    }

    /// Reads the checksums of blocks of one extent.
    ///
    /// # Errors
    /// [`StoreError::CorruptBlocks`] if some are damaged; or the disk fails.
    pub fn sums(
        &self,
        from: Source,
        file: &ExtentFile,
        first: u32,
        out: &mut [Checksum],
    ) -> Result<()> {
        let Some(last) = (first + out.len() as u32).checked_sub(1) else {
            return Ok(());
        };
        let (g0, g1) = (first / GROUP, last / GROUP);
        let groups = self.groups(from, file, g0, g1)?;
        let base = u64::from(file.no.0) * u64::from(self.layout.blocks);
        let damaged = |first: u32, n: u32, why: &str| StoreError::CorruptBlocks {
            first: base + u64::from(first),
            last: base + u64::from(first + n - 1),
            why: why.to_owned(),
        };
        for (i, sum) in out.iter_mut().enumerate() {
            let block = first + i as u32;
            let Some(group) = &groups[(block / GROUP - g0) as usize] else {
                let start = block / GROUP * GROUP;
                return Err(damaged(
                    start,
                    GROUP,
                    "their metadata sector does not verify",
                ));
            };
            *sum = group.sums[(block % GROUP) as usize];
            if *sum == LOST {
                return Err(damaged(block, 1, "lost with a metadata sector"));
            }
        }
        Ok(())
    }

    /// Reads blocks of one extent with their checksums; zeros where nothing is written.
    ///
    /// # Errors
    /// As [`Extents::sums`].
    pub fn read(
        &self,
        from: Source,
        file: &ExtentFile,
        first: u32,
        data: &mut [u8],
        sums: &mut [Checksum],
    ) -> Result<()> {
        self.sums(from, file, first, sums)?;
        let mut at = 0;
        while at < sums.len() {
            let unwritten = sums[at].is_unwritten();
            let same = sums[at..]
                .iter()
                .take_while(|s| s.is_unwritten() == unwritten);
            let run = same.count();
            let part = &mut data[at * BLOCK_BYTES..(at + run) * BLOCK_BYTES];
            if unwritten {
                part.fill(0);
            } else {
                self.data_from(from, file, first + at as u32, part)?;
            }
            at += run;
        }
        Ok(())
    }

    /// Reads the data of blocks, whatever the metadata says.
    ///
    /// # Errors
    /// The disk fails.
    pub fn read_data(&self, file: &ExtentFile, first: u32, data: &mut [u8]) -> Result<()> {
        self.data_from(Source::Disk, file, first, data)
    }

    /// The same, from memory alone if so wanted.
    ///
    /// # Errors
    /// As [`DiskFile::read_from`].
    pub fn data_from(
        &self,
        from: Source,
        file: &ExtentFile,
        first: u32,
        data: &mut [u8],
    ) -> Result<()> {
        file.file
            .read_from(from, data, self.layout.block_at(first))
            .map_err(file.fail("read"))
    }

    /// Lets the system forget what it has in memory of blocks and of their metadata.
    pub fn forget_cached(&self, file: &ExtentFile, first: u32, count: u32) {
        let (g0, g1) = (first / GROUP, (first + count.max(1) - 1) / GROUP);
        let groups = u64::from(g1 - g0 + 1) * META as u64;
        file.file.forget_cached(self.layout.group_at(g0), groups);
        let bytes = u64::from(count) * BLOCK_BYTES as u64;
        file.file.forget_cached(self.layout.block_at(first), bytes);
    }

    /// Writes the data of blocks; metadata is another matter.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn write_data(
        &self,
        file: &ExtentFile,
        first: u32,
        parts: &mut [std::io::IoSlice<'_>],
    ) -> Result<()> {
        file.file
            .write_at(parts, self.layout.block_at(first))
            .map_err(file.fail("write"))
    }

    /// Gives the space of blocks back.
    ///
    /// # Errors
    /// The disk fails.
    pub fn punch(&self, file: &ExtentFile, first: u32, count: u32) -> Result<()> {
        let bytes = u64::from(count) * BLOCK_BYTES as u64;
        file.file
            .punch_hole(self.layout.block_at(first), bytes)
            .map_err(file.fail("discard blocks of"))
    }

    /// Whether all these blocks are unwritten as far as the extent files know.
    ///
    /// # Errors
    /// As [`Extents::sums`].
    pub fn all_unwritten(&self, block: u64, count: u64) -> Result<bool> {
        let mut all = true;
        self.split(block, count, |no, first, n, _| {
            if all && let Some(file) = self.get(no)? {
                let mut sums = vec![Checksum::UNWRITTEN; n as usize];
                self.sums(Source::Disk, &file, first, &mut sums)?;
                all = sums.iter().all(Checksum::is_unwritten);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Marks the extent as discarded as a whole at `position`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn clear(&self, file: &ExtentFile, position: Position) -> Result<()> {
        let _writing = file.meta.write().unwrap_or_else(PoisonError::into_inner);
        let mut cleared = file.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        if position > *cleared {
            self.write_header(file.no, &*file.file, position)?;
            *cleared = position;
        }
        Ok(())
    }

    /// Writes what a checkpoint knows into the metadata. `changes` are in order of blocks and do
    /// not overlap. Returns the number of blocks whose checksums turned out to be lost.
    ///
    /// # Errors
    /// The disk fails.
    pub fn update(&self, file: &ExtentFile, changes: &[Change<'_>]) -> Result<u64> {
        let mut lost = 0;
        let mut rest = changes;
        while let Some(first) = rest.first() {
            // Changes whose metadata lies in one page or touches go together.
            let mut last_group = (first.first + first.count - 1) / GROUP;
            let near = |c: &Change<'_>, last: u32| c.first / GROUP <= last + 2;
            let mut n = 1;
            while let Some(c) = rest.get(n).filter(|c| near(c, last_group)) {
                last_group = (c.first + c.count - 1) / GROUP;
                n += 1;
            }
            lost += self.update_run(file, first.first / GROUP, last_group, &rest[..n])?;
            rest = &rest[n..];
        }
        Ok(lost)
    }

    fn update_run(
        &self,
        file: &ExtentFile,
        g0: u32,
        g1: u32,
        changes: &[Change<'_>],
    ) -> Result<u64> {
        let mut lost = 0;
        let found = self.groups(Source::Disk, file, g0, g1)?;
        let newest = changes.iter().map(|c| c.position).max().unwrap_or_default();
        let mut groups: Vec<Group> = found
            .into_iter()
            .map(|g| {
                g.unwrap_or_else(|| {
                    // Damaged: what is not overwritten now is lost here, and says so when read.
                    lost += u64::from(GROUP);
                    let mut g = Group::blank(newest);
                    g.sums = [LOST; GROUP as usize];
                    g
                })
            })
            .collect();
        for c in changes {
            for i in 0..c.count {
                let block = c.first + i;
                let group = &mut groups[(block / GROUP - g0) as usize];
                group.changed = group.changed.max(c.position);
                group.sums[(block % GROUP) as usize] =
                    c.sums.map_or(Checksum::UNWRITTEN, |s| s[i as usize]);
            }
        }
        let mut raw = Vec::with_capacity(groups.len() * META);
        for (group, no) in groups.iter().zip(g0..) {
            raw.extend_from_slice(&group.encode(self.seed, file.no.0, no));
        }
        let _writing = file.meta.write().unwrap_or_else(PoisonError::into_inner);
        file.file
            .write_all_at(&raw, self.layout.group_at(g0))
            .map_err(file.fail("write"))?;
        Ok(lost)
    }
}
