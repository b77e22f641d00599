//! Three replica processes on disks that fail on command, an upstairs in this process, and a
//! writer whose every flushed write is checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::process::Signal;
use trivet_cluster::Host;
use trivet_cluster::Local;
use trivet_cluster::process::Downstairs;
use trivet_downstairs::member::MemberState;
use trivet_downstairs::pool::Pool;
use trivet_downstairs::server::Listen;
use trivet_downstairs::{Region, Store};
use trivet_faultfs::{Control, Mounted, skipped};
use trivet_protocol::frame::Versions;
use trivet_protocol::{
    BLOCK_BYTES, MemberId, MemberInfo, MemberKind, Millis, NullRecorder, Position, Record,
    RecordVersion, VolumeId,
};
use trivet_replica::driver::{LocalReplica, ReplicatedVolume, Start};
use trivet_replica::upstairs::{ActivateOptions, Config, Limits, LinkId, Notice};
use trivet_replica::{Volume, VolumeError};
use trivet_transport::Security;

use super::common::History;

/// For everything that has to happen by itself.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// 32 MiB: several laps of the log, and quick to check as a whole.
pub const BLOCKS: u64 = 8192;
/// Small, so that it is full and checkpointed all the time.
const LOG: u64 = 4 << 20;
/// Bytes of a disk with a file system on it: xfs takes no less than 300 MiB.
const FORMATTED: u64 = 512 << 20;

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        let late = began.elapsed() > PATIENCE;
        assert!(!late, "waited {PATIENCE:?} for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// One node: a disk, and a process that serves what is on it.
struct Node {
    member: MemberId,
    pool: PathBuf,
    backing: PathBuf,
    address: SocketAddr,
    process: Option<Downstairs>,
    // After the process, which uses it.
    formatted: Option<Formatted>,
    // After the file system, which lies on it.
    disk: Option<Mounted>,
    // After the failing disk, which lies on it.
    _small: Option<Small>,
}

impl Node {
    fn new(dir: &Path, name: &str, between: Between) -> Result<Node, String> {
        let pool = dir.join(name);
        let backing = dir.join(format!("{name}.disk"));
        std::fs::create_dir(&pool).unwrap();
        let small = match between {
            Between::Small(mib) => Some(Small::mount(&backing, mib)?),
            // What a power cut leaves is the failing disk's doing, not that of what is below it.
            Between::Formatted(_) => Some(Small::mount(&backing, FORMATTED >> 19)?),
            Between::Nothing => None,
        };
        let at = match between {
            Between::Formatted(_) => dir.join(format!("{name}.sectors")),
            _ => pool.clone(),
        };
        std::fs::create_dir_all(&at).unwrap();
        let disk = Mounted::new(&backing, &at).map_err(|e| format!("FUSE: {e}"))?;
        let formatted = match between {
            Between::Formatted(kind) => Some(Formatted::make(kind, &at, &pool)?),
            _ => None,
        };
        Ok(Node {
            member: MemberId::random(),
            // A new file system is not empty.
            pool: match formatted {
                Some(_) => pool.join("pool"),
                None => pool,
            },
            backing,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            process: None,
            formatted,
            disk: Some(disk),
            _small: small,
        })
    }
}

/// A small file system.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u64) -> Result<Small, String> {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at))?;
        Ok(Small(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        if !done.is_ok_and(|s| s.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

/// What lies between the pool and the failing disk.
#[derive(Clone, Copy)]
pub enum Between {
    /// Nothing: the pool is on it.
    Nothing,
    /// It is on a small one, in MiB.
    Small(u64),
    /// A file system of this kind, on a loop device whose sectors are on it.
    Formatted(&'static str),
}

/// A file system of the kernel's, mounted on the pool's directory.
struct Formatted {
    image: PathBuf,
    at: PathBuf,
}

impl Formatted {
    fn make(kind: &str, on: &Path, at: &Path) -> Result<Formatted, String> {
        let image = on.join("sectors");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(FORMATTED).map_err(|e| e.to_string())?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        // The disk's own name is no part of the test.
        file.sync_all().map_err(|e| e.to_string())?;
        let on = std::fs::File::open(on).and_then(|d| d.sync_all());
        on.map_err(|e| e.to_string())?;
        let made = Formatted {
            image,
            at: at.to_owned(),
        };
        made.mount()?;
        Ok(made)
    }

    /// Replays its journal, if it has to.
    fn mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    fn unmount(&self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.at))
    }
}

impl Drop for Formatted {
    fn drop(&mut self) {
        if let Err(e) = self.unmount() {
            eprintln!("cannot unmount {}: {e}", self.at.display());
        }
    }
}

/// From here on this thread, and what it starts, mounts for itself. Otherwise a namespace that
/// another test makes meanwhile has a copy of each mount, and none is ever quite gone.
fn alone() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| e.to_string())?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
}

fn run(command: &mut Command) -> Result<(), String> {
    let done = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        )),
    }
}

/// See the module's head.
pub struct World {
    pub volume: VolumeId,
    nodes: Vec<Node>,
    _dir: tempfile::TempDir,
}

impl World {
    /// `None`, and a line in the list of skips, where such disks cannot be had.
    pub fn new(test: &str, between: Between) -> Option<World> {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        if let Between::Formatted(_) = between
            && let Err(why) = alone()
        {
            skipped(&format!("faults {test}"), &why).unwrap();
            return None;
        }
        for name in ["a", "b", "c"] {
            match Node::new(dir.path(), name, between) {
                Ok(node) => nodes.push(node),
                Err(why) => {
                    let why = format!("its disks cannot be had here: {why}");
                    skipped(&format!("faults {test}"), &why).unwrap();
                    return None;
                }
            }
        }
        let mut world = World {
            volume: VolumeId::random(),
            nodes,
            _dir: dir,
        };
        world.make_regions();
        (0..3).for_each(|i| world.start(i));
        Some(world)
    }

    fn make_regions(&self) {
        let members = self.nodes.iter().zip(["a", "b", "c"]);
        let members: Vec<_> = members
            .map(|(n, name)| MemberInfo {
                id: n.member,
                node: name.to_owned(),
                kind: MemberKind::Replica,
                opens: 0,
                durable: Position::default(),
            })
            .collect();
        let record = Record {
            version: RecordVersion::default(),
            volume: self.volume,
            blocks: BLOCKS,
            in_sync: members.iter().map(|m| m.id).collect(),
            members,
            min_copies: 2,
            lease: Millis(2000),
            losses: 0,
        };
        for node in &self.nodes {
            let pool = Pool::create(&node.pool).unwrap();
            let recorder = Arc::new(NullRecorder);
            let disk = pool
                .make_region(self.volume, node.member, recorder.clone())
                .unwrap();
            let mut region = Region::new(self.volume, node.member, BLOCKS);
            region.log_bytes = LOG;
            region.extent_blocks = 1024;
            Store::create(&disk, &region).unwrap();
            let (mut store, _) = Store::open(disk, None, recorder).unwrap();
            let state = MemberState::new(node.member, record.clone());
            store
                .set_member_state(serde_json::to_vec(&state).unwrap())
                .unwrap();
            store.close().unwrap();
        }
    }

    /// Starts a replica, where it listened before.
    pub fn start(&mut self, i: usize) {
        let binary = Path::new(env!("CARGO_BIN_EXE_trivet"));
        let node = &mut self.nodes[i];
        let started =
            Downstairs::start(binary, node.address, std::slice::from_ref(&node.pool), None);
        let process = started.unwrap();
        node.address = process.address();
        node.process = Some(process);
    }

    pub fn runs(&self, i: usize) -> bool {
        self.nodes[i].process.is_some()
    }

    pub fn kill(&mut self, i: usize) {
        if let Some(mut process) = self.nodes[i].process.take() {
            process.kill();
        }
    }

    /// The power of a node fails, with a random half of what its disk had not synced.
    pub fn cut(&mut self, i: usize, seed: u64) {
        let report = self.disk(i).cut(seed, 50).unwrap();
        println!("  power of {i}: {report}");
        self.kill(i);
        if let Some(formatted) = &self.nodes[i].formatted {
            formatted.unmount().unwrap();
        }
    }

    /// And is back.
    pub fn power_on(&mut self, i: usize) {
        self.disk(i).power_on();
        if let Some(formatted) = &self.nodes[i].formatted {
            formatted.mount().unwrap();
        }
    }

    pub fn signal(&self, i: usize, signal: Signal) {
        let process = self.nodes[i].process.as_ref().unwrap();
        process.signal(signal).unwrap();
    }

    pub fn disk(&self, i: usize) -> &Control {
        self.nodes[i].disk.as_ref().unwrap().control()
    }

    /// Who lives there.
    pub fn member(&self, i: usize) -> MemberId {
        self.nodes[i].member
    }

    /// A file of a region behind the failing disk's back.
    pub fn file(&self, i: usize, name: &str) -> PathBuf {
        let node = &self.nodes[i];
        let region = node.backing.join("live").join(self.volume.to_string());
        region.join(node.member.to_string()).join(name)
    }

    /// Beside what the failing disk shows, on the same small disk.
    pub fn beside(&self, i: usize, name: &str) -> PathBuf {
        self.nodes[i].backing.join(name)
    }

    /// Serves a node's replica from this process from now on.
    pub fn serve_here(&mut self, i: usize) -> Host {
        self.kill(i);
        let node = &mut self.nodes[i];
        let listen = Listen::plain(node.address, Arc::new(NullRecorder));
        let host = Host::start(listen, std::slice::from_ref(&node.pool)).unwrap();
        node.address = host.address();
        host
    }

    pub fn attach(&self) -> Arc<Attached> {
        self.attach_beside(None)
    }

    /// With the replica that this process serves, if there is one.
    pub fn attach_beside(&self, host: Option<&Host>) -> Arc<Attached> {
        let local = host.map(|h| h.member_of(self.volume).unwrap());
        let place = local
            .as_ref()
            .and_then(|l| self.nodes.iter().position(|n| n.member == l.member()));
        let config = Config {
            volume: self.volume,
            node: "test".into(),
            links: ["a", "b", "c"].map(String::from).into(),
            local: place.map(LinkId::from_index),
            limits: Limits {
                lapse_patience: Duration::from_secs(8),
                ..Limits::default()
            },
        };
        let (volume, notices) = ReplicatedVolume::start(Start {
            config,
            addresses: self.nodes.iter().map(|n| vec![n.address]).collect(),
            security: Security::Plain,
            versions: Versions::default(),
            local: local.map(|l| Arc::new(Local(l)) as Arc<dyn LocalReplica>),
            recorder: Arc::new(NullRecorder),
        })
        .unwrap();
        volume
            .activate(ActivateOptions {
                claim: u128::from_le_bytes(VolumeId::random().bytes()),
                wait_for_lease: true,
                patience: PATIENCE,
                accept_data_loss: false,
            })
            .unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        std::thread::spawn(move || {
            for notice in notices {
                println!("  notice: {notice:?}");
                ears.lock().unwrap().push(notice);
            }
        });
        Arc::new(Attached { volume, heard })
    }
}

/// The volume, and what was told about it.
pub struct Attached {
    pub volume: ReplicatedVolume,
    heard: Arc<Mutex<Vec<Notice>>>,
}

impl Attached {
    pub fn heard(&self, wanted: impl Fn(&Notice) -> bool) -> bool {
        self.heard.lock().unwrap().iter().any(wanted)
    }

    /// The volume to share, and what was told so far and is told from now on.
    pub fn apart(self) -> (Arc<ReplicatedVolume>, Arc<Mutex<Vec<Notice>>>) {
        (Arc::new(self.volume), self.heard)
    }

    pub fn all_in_sync(&self) -> bool {
        let status = self.volume.status();
        status.members.iter().all(|m| m.in_sync && m.up)
    }
}

/// Writes on, flushing every few writes, until told to stop. An error is borne: the same write is
/// offered again.
pub struct Writer {
    stop: Arc<AtomicBool>,
    flushed: Arc<AtomicU64>,
    pause: Arc<Mutex<Duration>>,
    errors: Arc<Mutex<Vec<VolumeError>>>,
    thread: std::thread::JoinHandle<u64>,
}

impl Writer {
    /// Goes on after write `from`.
    pub fn start(attached: Arc<Attached>, history: History, from: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let flushed = Arc::new(AtomicU64::new(from));
        let pause = Arc::new(Mutex::new(Duration::ZERO));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (s, f, p, e) = (stop.clone(), flushed.clone(), pause.clone(), errors.clone());
        let thread = std::thread::spawn(move || {
            let mut n = from;
            let mut last = Instant::now();
            while !s.load(Ordering::Acquire) {
                let mut failed = None;
                for _ in 0..8 {
                    match attached.volume.submit(history.batch(n + 1)) {
                        Ok(_) => n += 1,
                        Err(e) => failed = Some(e),
                    }
                }
                match attached.volume.flush_all() {
                    Ok(_) => f.store(n, Ordering::Release),
                    Err(e) => failed = Some(e),
                }
                if let Some(error) = failed {
                    e.lock().unwrap().push(error);
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                let mut longest = p.lock().unwrap();
                *longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            n
        });
        Writer {
            stop,
            flushed,
            pause,
            errors,
            thread,
        }
    }

    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    pub fn wait_for_more(&self, writes: u64) {
        let upto = self.flushed() + writes;
        wait_for("more writes", || self.flushed() >= upto);
    }

    /// The longest pause since it was last asked for.
    pub fn take_pause(&self) -> Duration {
        std::mem::take(&mut *self.pause.lock().unwrap())
    }

    pub fn errors(&self) -> Vec<VolumeError> {
        self.errors.lock().unwrap().clone()
    }

    /// Ends it; how many writes were flushed, and submitted.
    pub fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Release);
        let submitted = self.thread.join().unwrap();
        (self.flushed.load(Ordering::Acquire), submitted)
    }
}

pub fn bytes_of(blocks: u64) -> usize {
    blocks as usize * BLOCK_BYTES
}
