//! Random workloads: compared with a model as they run, and after a crash at every batch of
//! their history (invariant 8).
//!
//! `TRIVET_SEED=n` replays one seed; `TRIVET_SEEDS=n` tries more of them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::model::{CLIENT, Model, Node};
use common::{MemVolume, Rng, seeds};
use trivet_fs::lock::{LockCall, LockFamily, LockKind, LockOwner, LockRange};
use trivet_fs::*;
use trivet_replica::volume::{BatchOp, Volume};

const BLOCKS: u64 = 40_000;

fn settings() -> Settings {
    Settings {
        cache_bytes: 1 << 20,
        // Nothing is committed unasked, so that a seed replays exactly.
        commit_interval: Duration::from_secs(3600),
        flush_interval: Duration::from_secs(3600),
    }
}

/// A file system, its model, and how they correspond.
struct World {
    fs: Arc<Fs>,
    volume: Arc<MemVolume>,
    model: Model,
    ids: HashMap<usize, InodeId>,
    rng: Rng,
    /// After each operation: its mark, and the model.
    states: Vec<(Mark, Model)>,
    /// How many of which operation succeeded.
    made: BTreeMap<String, u64>,
    /// Held open, with or without a name.
    open: Vec<InodeId>,
}

impl World {
    fn new(seed: u64) -> World {
        let volume = Arc::new(MemVolume::new(BLOCKS));
        mkfs(&*volume, &MkfsOptions::default()).unwrap();
        let fs = Fs::mount(volume.clone(), settings()).unwrap();
        let model = Model::default();
        World {
            fs,
            volume,
            states: vec![(Mark(0), model.clone())],
            model,
            ids: HashMap::from([(0, InodeId::ROOT)]),
            rng: Rng::new(seed),
            made: BTreeMap::new(),
            open: Vec::new(),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let n = self.rng.below(12);
        match n {
            11 => vec![0xff; 255],
            n => format!("name{n}").into_bytes(),
        }
    }

    fn agree<T: std::fmt::Debug>(
        &self,
        what: &str,
        got: &FsResult<Done<T>>,
        want: Result<(), FsError>,
    ) {
        let got = got.as_ref().map(|_| ()).map_err(Clone::clone);
        assert_eq!(got, want, "{what}");
    }

    fn done<T>(&mut self, what: String, r: FsResult<Done<T>>) {
        if let Ok(done) = r {
            let kind = what.split(' ').next().unwrap_or_default();
            *self.made.entry(kind.to_owned()).or_default() += 1;
            self.states.push((done.mark, self.model.clone()));
        }
    }

    fn content(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        match self.rng.below(5) {
            0 => {}
            1 => {
                // Islands of content among zeros.
                for block in data.chunks_mut(4096) {
                    if self.rng.below(4) == 0 {
                        block.fill(1 + self.rng.below(255) as u8);
                    }
                }
            }
            _ => {
                let seed = self.rng.next();
                for (i, b) in data.iter_mut().enumerate() {
                    *b = (seed >> (i % 7 * 8)) as u8 ^ i as u8 | 1;
                }
            }
        }
        data
    }

    fn namespace_op(&mut self) {
        let root = Creds::root();
        let dirs = self.model.dirs();
        let dir = *self.rng.pick(&dirs);
        let id = self.ids[&dir];
        let name = self.name();
        let node = |kind, mode| Node {
            kind: Some(kind),
            mode,
            ..Node::default()
        };
        let attr = NewAttr {
            mode: 0o640,
            ..NewAttr::default()
        };
        let mut n = name;
        let which = self.rng.below(10);
        let mut there: Vec<_> = self.model.nodes[&dir].entries.keys().cloned().collect();
        if which == 7 {
            // Directories that rmdir would take are few.
            there.retain(|n| {
                let node = &self.model.nodes[&self.model.find(dir, n).unwrap_or(0)];
                node.kind == Some(FileKind::Dir) && node.entries.is_empty()
            });
        }
        if which > 5 && !there.is_empty() && self.rng.below(3) > 0 {
            n = self.rng.pick(&there).clone();
        }
        match which {
            0..=2 => {
                let r = self
                    .fs
                    .create(Ctx::new(&root), id, &n, CreateHow::Guarded, attr);
                let want = self.model.make(dir, &n, node(FileKind::File, 0o640));
                self.agree("create", &r, want.clone().map(|_| ()));
                if let (Ok(made), Ok(new)) = (&r, want) {
                    self.ids.insert(new, made.value.attr.id);
                }
                self.done(format!("create {dir} {n:?}"), r);
            }
            3 => {
                let number = self.model.answers.keys().last().map_or(0, |n| n + 1);
                let key = number.to_le_bytes();
                let encode = |made: &Made| made.attr.id.ino.0.to_le_bytes().to_vec();
                let replay = Some(Replay {
                    client: CLIENT,
                    key: &key,
                    encode: &encode,
                });
                let ctx = Ctx {
                    replay,
                    ..Ctx::new(&root)
                };
                let r = self.fs.mkdir(ctx, id, &n, attr);
                let want = self.model.make(dir, &n, node(FileKind::Dir, 0o640));
                self.agree("mkdir", &r, want.clone().map(|_| ()));
                if let (Ok(made), Ok(new)) = (&r, want) {
                    self.ids.insert(new, made.value.attr.id);
                    let ino = made.value.attr.id.ino.0;
                    self.model.answers.insert(number, ino);
                }
                self.done(format!("mkdir {dir} {n:?}"), r);
            }
            4 => {
                let target = vec![b't'; 1 + self.rng.below(3000) as usize];
                let r = self.fs.symlink(Ctx::new(&root), id, &n, &target, attr);
                let link = Node {
                    target,
                    ..node(FileKind::Symlink, 0o777)
                };
                let want = self.model.make(dir, &n, link);
                self.agree("symlink", &r, want.clone().map(|_| ()));
                if let (Ok(made), Ok(new)) = (&r, want) {
                    self.ids.insert(new, made.value.attr.id);
                }
                self.done(format!("symlink {dir} {n:?}"), r);
            }
            5 => {
                let files = self.model.files();
                if files.is_empty() {
                    return;
                }
                let file = *self.rng.pick(&files);
                let r = self.fs.link(Ctx::new(&root), self.ids[&file], id, &n);
                let want = self.model.link(file, dir, &n);
                self.agree("link", &r, want);
                self.done(format!("link {file} {dir} {n:?}"), r);
            }
            6 | 7 => {
                let is_dir = |c: usize| self.model.nodes[&c].kind == Some(FileKind::Dir);
                let is_dir = self.model.find(dir, &n).is_some_and(is_dir);
                let want_dir = is_dir != (self.rng.below(5) == 0);
                // Half of what goes is held open for a while: an orphan until it is let go.
                if let (Some(child), 0) = (self.model.find(dir, &n), self.rng.below(2)) {
                    self.fs.open_ref(self.ids[&child]).unwrap();
                    self.open.push(self.ids[&child]);
                }
                if self.open.len() > 4 {
                    let id = self.open.remove(0);
                    self.fs.close_ref(id);
                }
                let r = match want_dir {
                    true => self.fs.rmdir(Ctx::new(&root), id, &n),
                    false => self.fs.unlink(Ctx::new(&root), id, &n),
                };
                let want = self.model.remove(dir, &n, want_dir);
                self.agree("remove", &r, want);
                let what = if want_dir { "rmdir" } else { "unlink" };
                self.done(format!("{what} {dir} {n:?}"), r);
            }
            _ => {
                let to = *self.rng.pick(&dirs);
                let to_name = self.name();
                let how = *self.rng.pick(&[
                    RenameHow::Replace,
                    RenameHow::Replace,
                    RenameHow::NoReplace,
                    RenameHow::Exchange,
                ]);
                let r = self
                    .fs
                    .rename(Ctx::new(&root), (id, &n), (self.ids[&to], &to_name), how);
                let want = self.model.rename((dir, &n), (to, &to_name), how);
                self.agree("rename", &r, want);
                self.done(format!("rename-{how:?} {dir} {n:?} {to} {to_name:?}"), r);
            }
        }
    }

    fn file_op(&mut self) {
        let root = Creds::root();
        let files = self.model.files();
        if files.is_empty() {
            return;
        }
        let file = *self.rng.pick(&files);
        let id = self.ids[&file];
        let at = match self.rng.below(3) {
            0 => self.rng.below(100) * 4096,
            1 => self.rng.below(3000),
            _ => self.rng.below(400_000),
        };
        let len = match self.rng.below(4) {
            0 => 4096 * (1 + self.rng.below(4)),
            1 => 1 + self.rng.below(5000),
            2 => 65_536 + self.rng.below(200_000),
            _ => 1 + self.rng.below(40_000),
        };
        match self.rng.below(9) {
            0..=4 => {
                let data = self.content(len as usize);
                let r = self
                    .fs
                    .write(Ctx::new(&root), id, at, Bytes::from(data.clone()));
                assert!(r.is_ok(), "{r:?}");
                self.model.write(file, at as usize, &data);
                self.done(format!("write {file} {at} {len}"), r);
            }
            5 => {
                let set = SetAttr {
                    size: Some(at),
                    mode: Some(0o600 + (at % 8) as u32),
                    ..SetAttr::default()
                };
                let r = self.fs.setattr(Ctx::new(&root), id, set);
                assert!(r.is_ok(), "{r:?}");
                self.model.edit(file, |c| c.resize(at as usize, 0));
                self.model.nodes.get_mut(&file).unwrap().mode = 0o600 + (at % 8) as u32;
                self.done(format!("setattr {file} {at}"), r);
            }
            6 | 7 => {
                let how = *self.rng.pick(&[
                    Fallocate::Allocate,
                    Fallocate::AllocateKeepSize,
                    Fallocate::PunchHole,
                    Fallocate::ZeroRange,
                    Fallocate::ZeroRangeKeepSize,
                ]);
                let r = self.fs.fallocate(Ctx::new(&root), id, at, len, how);
                assert!(r.is_ok(), "{r:?}");
                let (from, to) = (at as usize, (at + len) as usize);
                self.model.edit(file, |c| {
                    let grow = matches!(how, Fallocate::Allocate | Fallocate::ZeroRange);
                    if grow && c.len() < to {
                        c.resize(to, 0);
                    }
                    let zero = !matches!(how, Fallocate::Allocate | Fallocate::AllocateKeepSize);
                    if zero {
                        let end = to.min(c.len());
                        c[from.min(end)..end].fill(0);
                    }
                });
                self.done(format!("fallocate-{how:?} {file} {at} {len}"), r);
            }
            _ => {
                let name = format!("user.x{}", self.rng.below(4)).into_bytes();
                let has = self.model.nodes[&file].xattrs.contains_key(&name);
                if has && self.rng.below(2) == 0 || self.rng.below(6) == 0 {
                    let r = self.fs.remove_xattr(Ctx::new(&root), id, &name);
                    let had = self
                        .model
                        .nodes
                        .get_mut(&file)
                        .unwrap()
                        .xattrs
                        .remove(&name);
                    let want = had.map(|_| ()).ok_or(FsError::NoAttr);
                    self.agree("remove xattr", &r, want);
                    self.done(format!("removexattr {file}"), r);
                } else {
                    let value = vec![b'v'; self.rng.below(6000) as usize];
                    let how = XattrHow::Set;
                    let r = self.fs.set_xattr(Ctx::new(&root), id, &name, &value, how);
                    assert!(r.is_ok(), "{r:?}");
                    self.model
                        .nodes
                        .get_mut(&file)
                        .unwrap()
                        .xattrs
                        .insert(name, value);
                    self.done(format!("setxattr {file}"), r);
                }
            }
        }
    }

    /// Devices, owners, copies, clients' locks, growth.
    fn other_op(&mut self) {
        let root = Creds::root();
        let files = self.model.files();
        let which = self.rng.below(12);
        if which < 2 {
            let dir = *self.rng.pick(&self.model.dirs());
            let name = self.name();
            let rdev = Rdev {
                major: self.rng.below(4000) as u32,
                minor: self.rng.below(1 << 20) as u32,
            };
            let (what, kind, node) = match which {
                0 => ("fifo", NodeKind::Fifo, Node::default()),
                _ => {
                    let node = Node {
                        rdev,
                        ..Node::default()
                    };
                    ("device", NodeKind::Char(rdev), node)
                }
            };
            let node = Node {
                kind: Some(match which {
                    0 => FileKind::Fifo,
                    _ => FileKind::Char,
                }),
                mode: 0o640,
                ..node
            };
            let attr = NewAttr {
                mode: 0o640,
                ..NewAttr::default()
            };
            let id = self.ids[&dir];
            let r = self.fs.mknod(Ctx::new(&root), id, &name, kind, attr);
            let want = self.model.make(dir, &name, node);
            self.agree(what, &r, want.clone().map(|_| ()));
            if let (Ok(made), Ok(new)) = (&r, want) {
                self.ids.insert(new, made.value.attr.id);
            }
            return self.done(format!("mknod-{what} {dir}"), r);
        }
        if which == 2 {
            // Makes transactions of its own; nobody sees a difference.
            let bytes = self.volume.info().blocks * 4096 + (4 << 20);
            self.fs.grow(bytes).unwrap();
            *self.made.entry("grow".into()).or_default() += 1;
            return;
        }
        if files.is_empty() {
            return;
        }
        let file = *self.rng.pick(&files);
        let id = self.ids[&file];
        match which {
            3..=5 => {
                let (uid, gid) = (self.rng.below(9) as u32, self.rng.below(9) as u32);
                let set = SetAttr {
                    uid: Some(uid),
                    gid: Some(gid),
                    ..SetAttr::default()
                };
                let r = self.fs.setattr(Ctx::new(&root), id, set);
                assert!(r.is_ok(), "{r:?}");
                let node = self.model.nodes.get_mut(&file).unwrap();
                (node.uid, node.gid) = (uid, gid);
                self.done(format!("chown {file}"), r);
            }
            6 | 7 => {
                let to = *self.rng.pick(&files);
                if to == file {
                    return;
                }
                let (at, len) = (self.rng.below(50) * 4096, 1 + self.rng.below(200_000));
                let to_at = match self.rng.below(2) {
                    0 => self.rng.below(50) * 4096,
                    _ => self.rng.below(200_000),
                };
                let there = (id, at);
                let r = self
                    .fs
                    .copy_range(Ctx::new(&root), there, (self.ids[&to], to_at), len);
                let content = Arc::clone(&self.model.nodes[&file].content);
                let from = (at as usize).min(content.len());
                let part = &content[from..(from + len as usize).min(content.len())];
                assert_eq!(r.as_ref().unwrap().value, part.len() as u64, "copied");
                if !part.is_empty() {
                    self.model.write(to, to_at as usize, part);
                }
                self.done(format!("copy {file} {at} {to} {to_at} {len}"), r);
            }
            _ => {
                let (svid, start) = (self.rng.below(3) as u32, self.rng.below(8) * 20);
                let kind = match self.rng.below(3) {
                    0 => LockKind::Unlock,
                    _ => LockKind::Exclusive,
                };
                let call = LockCall {
                    family: LockFamily::Range,
                    owner: LockOwner::Nlm {
                        host: b"host".to_vec(),
                        handle: vec![svid as u8],
                        svid,
                    },
                    kind,
                    range: LockRange::from_len(start, 10),
                };
                let r = self.fs.lock(id, &call, None);
                let locks = &mut self.model.nodes.get_mut(&file).unwrap().locks;
                let holder = locks.get(&start).copied();
                let want = match (kind, holder) {
                    (LockKind::Unlock, Some(h)) if h == svid => {
                        locks.remove(&start);
                        Ok(())
                    }
                    (LockKind::Unlock, _) => Ok(()),
                    (_, Some(h)) if h != svid => Err(FsError::Locked),
                    _ => {
                        locks.insert(start, svid);
                        Ok(())
                    }
                };
                self.agree("lock", &r, want);
                let what = if kind == LockKind::Unlock {
                    "unlock"
                } else {
                    "lock"
                };
                self.done(format!("{what} {file} {start} {svid}"), r);
            }
        }
    }

    fn step(&mut self) {
        match self.rng.below(23) {
            0..=8 => self.namespace_op(),
            9..=17 => self.file_op(),
            18 => {
                let upto = match self.rng.below(2) {
                    0 => self.fs.last_mark(),
                    _ => self.states.last().unwrap().0,
                };
                self.fs.flush(upto).unwrap();
            }
            20..=22 => self.other_op(),
            _ => {
                // A read in the middle, of everything.
                if self.rng.below(6) == 0 {
                    self.model.compare(&*self.fs, "while running");
                }
            }
        }
    }
}

fn check(volume: &MemVolume, why: &str) {
    let report = fsck(volume).unwrap();
    assert!(report.is_clean(), "{why}: {report}");
}

/// Given random operations, the file system does what the model does, before and after a
/// remount, and fsck finds nothing.
#[test]
fn does_what_the_model_does() {
    for seed in seeds(25) {
        let mut w = World::new(seed);
        for _ in 0..400 {
            w.step();
        }
        let why = format!("TRIVET_SEED={seed}");
        w.model.compare(&*w.fs, &why);
        w.fs.close().unwrap();
        check(&w.volume, &why);
        let again = Fs::mount(w.volume.clone(), settings()).unwrap();
        w.model.compare(&*again, &format!("{why} remounted"));
    }
}

/// Kinds of operations that a workload is made of.
const KINDS: usize = 25;

/// What a test of crashes looked at; `docs/fs-testing.md` has a table of these.
#[derive(Default)]
struct Counts {
    workloads: u64,
    batches: u64,
    blocks: u64,
    discarded: u64,
    /// Batches of more than one block, which a crash must leave whole.
    longer: u64,
    mounted: u64,
    checked: u64,
    operations: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds a history, from its batch `from` on.
    fn add(&mut self, w: &World, from: usize) {
        self.workloads += 1;
        for (kind, n) in &w.made {
            *self.operations.entry(kind.clone()).or_default() += n;
        }
        for n in from..w.volume.batches() {
            self.batches += 1;
            let (mut written, mut discarded) = (0, 0);
            for op in w.volume.batch(n).ops {
                match op {
                    BatchOp::Write { data, .. } => written += data.len() as u64 / 4096,
                    BatchOp::Discard { count, .. } => discarded += count,
                }
            }
            self.blocks += written;
            self.discarded += discarded;
            self.longer += u64::from(written > 1);
        }
    }

    fn tell(&self, what: &str) {
        let sum: u64 = self.operations.values().sum();
        println!(
            "{what}: {} workloads, {sum} operations, {} batches ({} of more than one block), \
             {} blocks written, {} discarded; {} prefixes mounted and compared, {} fsck runs",
            self.workloads,
            self.batches,
            self.longer,
            self.blocks,
            self.discarded,
            self.mounted,
            self.checked
        );
        for (kind, n) in &self.operations {
            println!("  {kind} {n}");
        }
    }
}

/// Given a crash after any batch of a random history: fsck is clean, and the content is that
/// after exactly the operations that were in those batches; mounting leaves it so, and clean.
#[test]
fn every_prefix_of_the_history_is_whole() {
    let mut counts = Counts::default();
    for seed in seeds(12) {
        let mut w = World::new(seed);
        let made = w.volume.batches();
        for _ in 0..250 {
            w.step();
            // Small transactions give many places to crash at.
            if w.rng.below(4) == 0 {
                w.fs.flush(w.fs.last_mark()).unwrap();
            }
        }
        w.fs.flush(w.fs.last_mark()).unwrap();
        let flushed = w.volume.flushed();
        // Transactions are numbered from 2 (mkfs was 1), one batch each.
        for n in made..=w.volume.batches() {
            let why = format!("TRIVET_SEED={seed}, crash after batch {n}");
            let txn = 1 + (n - made) as u64;
            let state = w.states.iter().rev().find(|s| s.0.0 <= txn).unwrap();
            let crashed = Arc::new(w.volume.after(n));
            check(&crashed, &why);
            let fs = Fs::mount(crashed.clone(), settings()).unwrap();
            state.1.compare(&*fs, &why);
            fs.close().unwrap();
            check(&crashed, &format!("{why}, mounted and closed"));
            counts.mounted += 1;
            counts.checked += 2;
        }
        assert_eq!(flushed, w.volume.batches() as u64, "a flush covers all");
        counts.add(&w, made);
    }
    counts.tell("crash at every batch");
    if counts.workloads > 11 {
        assert_eq!(counts.operations.len(), KINDS, "of every kind");
    }
}

/// Given a crash while the mount that follows a crash is finishing what it found, the same.
#[test]
fn a_crash_during_recovery_is_no_worse() {
    let mut counts = Counts::default();
    for seed in seeds(4) {
        let mut w = World::new(seed);
        let made = w.volume.batches();
        for _ in 0..200 {
            w.step();
        }
        w.fs.flush(w.fs.last_mark()).unwrap();
        counts.add(&w, made);
        let crashed = Arc::new(w.volume.fork());
        let fs = Fs::mount(crashed.clone(), settings()).unwrap();
        fs.close().unwrap();
        for n in 0..=crashed.batches() {
            let twice = w.volume.fork();
            (0..n).for_each(|i| {
                twice.submit(crashed.batch(i)).unwrap();
            });
            let why = format!("TRIVET_SEED={seed}, second crash after {n}");
            check(&twice, &why);
            let fs = Fs::mount(Arc::new(twice), settings()).unwrap();
            w.model.compare(&*fs, &why);
            counts.mounted += 1;
            counts.checked += 1;
        }
    }
    counts.tell("second crash, at every batch of the mount after the first");
}
