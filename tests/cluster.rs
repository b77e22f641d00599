//! The block layer as real processes: killed, stopped and started again under load, with a check
//! of every flushed write. No step waits for a fixed time: each waits for what it needs, and fails
//! after [`PATIENCE`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod common;
#[path = "common/wait.rs"]
mod wait;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{History, seed};
use rustix::process::Signal;
use trivet_cluster::process::Downstairs;
use trivet_cluster::{
    Attach, ClusterError, Embedded, KeyFiles, Options, Problem, Reach, VolumeFile, attach, create,
};
use trivet_downstairs::Store;
use trivet_downstairs::pool::Pool;
use trivet_protocol::{BLOCK_BYTES, Block, NullRecorder};
use trivet_replica::Volume;
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::upstairs::Limits;
use trivet_transport::{Role, Security};

const PATIENCE: Duration = Duration::from_secs(30);
/// One replica keeps nobody waiting longer than this. On a machine with nothing else to do it is
/// well below a second (the benchmark shows it); here others may run, and only a wait for the
/// replica's return must be told from that.
const STALL: Duration = Duration::from_secs(8);
/// An activation that did not wait for a lease takes less than the shortest wait for one.
const LEASE: Duration = Duration::from_secs(2);
/// 64 MiB: small enough to check as a whole, twice the size of what a region's log holds at once.
const BLOCKS: u64 = 16_384;

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait::within(PATIENCE, what, done);
}

/// Three replica processes and where they keep their data.
struct Cluster {
    dir: tempfile::TempDir,
    file: VolumeFile,
    replicas: Vec<Option<Downstairs>>,
    addresses: Vec<SocketAddr>,
    /// Of the three and of whoever attaches; none: no TLS.
    keys: Vec<KeyFiles>,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster::with_keys(&[])
    }

    /// With TLS, if anybody has a key: the three, in order, and whoever attaches.
    fn with_keys(who: &[(&str, Role)]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.toml");
        let pools = ["a", "b", "c"].map(|n| (n.to_owned(), PathBuf::from(n)));
        let file = VolumeFile::new(BLOCKS * BLOCK_BYTES as u64, pools).unwrap();
        let file = create(&path, file).unwrap();
        let keys = KeyFiles::make(&dir.path().join("keys"), who).unwrap();
        let mut cluster = Cluster {
            keys,
            dir,
            file,
            replicas: vec![None, None, None],
            addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3],
        };
        (0..3).for_each(|i| cluster.start(i));
        cluster
    }

    fn pool(&self, i: usize) -> PathBuf {
        self.dir.path().join(&self.file.member[i].pool)
    }

    /// Starts a replica, where it listened before.
    fn start(&mut self, i: usize) {
        let binary = Path::new(env!("CARGO_BIN_EXE_trivet"));
        let pools = [self.pool(i)];
        let replica = Downstairs::start(binary, self.addresses[i], &pools, self.keys.get(i));
        let replica = replica.unwrap();
        self.addresses[i] = replica.address();
        self.replicas[i] = Some(replica);
    }

    fn kill(&mut self, i: usize) {
        self.replicas[i].take().unwrap().kill();
    }

    fn signal(&self, i: usize, signal: Signal) {
        self.replicas[i].as_ref().unwrap().signal(signal).unwrap();
    }

    fn attach(&self) -> Arc<ReplicatedVolume> {
        let security = match self.keys.last() {
            Some(own) => own.security().unwrap(),
            None => Security::Plain,
        };
        attach_to(self.file.volume, &self.addresses, security)
    }

    fn in_sync(&self, volume: &ReplicatedVolume, i: usize) -> bool {
        let status = volume.status();
        let member = status
            .members
            .iter()
            .find(|m| m.id == self.file.member[i].id);
        member.is_some_and(|m| m.in_sync)
    }

    /// Ends all replicas in order and checks each region by itself.
    fn check_each(mut self, history: &History, flushed: u64) {
        for replica in self.replicas.drain(..) {
            replica.unwrap().stop().unwrap();
        }
        for i in 0..3 {
            let member = &self.file.member[i];
            let pool = Pool::open(&self.dir.path().join(&member.pool)).unwrap();
            let recorder = Arc::new(NullRecorder);
            let disk = pool
                .region(self.file.volume, member.id, recorder.clone())
                .unwrap();
            let (store, _) = Store::open(disk, None, recorder).unwrap();
            let last = history.check(flushed, |first, out| {
                let count = (out.len() / BLOCK_BYTES) as u32;
                out.copy_from_slice(&store.read(Block(first), count).unwrap().data);
            });
            assert_eq!(last, flushed, "replica {i} alone, closed in order");
        }
    }
}

fn attach_to(
    volume: trivet_protocol::VolumeId,
    addresses: &[SocketAddr],
    security: Security,
) -> Arc<ReplicatedVolume> {
    let hosts = ["a", "b", "c"].iter().zip(addresses).map(|(n, a)| Reach {
        node: (*n).to_owned(),
        addresses: vec![*a],
    });
    attach(Attach {
        volume,
        node: "test".into(),
        hosts: hosts.collect(),
        security,
        local: None,
        recorder: Arc::new(NullRecorder),
        limits: Limits::default(),
        patience: PATIENCE,
        wait_for_lease: true,
        accept_data_loss: false,
    })
    .unwrap()
}

/// Writes on, flushing every few writes, until told to stop; remembers the longest pause.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    pause: Arc<Mutex<Duration>>,
    thread: std::thread::JoinHandle<u64>,
}

impl Writer {
    fn start(volume: Arc<ReplicatedVolume>, history: History, from: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(from));
        let pause = Arc::new(Mutex::new(Duration::ZERO));
        let (s, w, p) = (stop.clone(), written.clone(), pause.clone());
        let thread = std::thread::spawn(move || {
            let mut n = from;
            let mut last = Instant::now();
            while !s.load(Ordering::Acquire) {
                for _ in 0..8 {
                    n += 1;
                    volume.submit(history.batch(n)).unwrap();
                }
                volume.flush_all().unwrap();
                w.store(n, Ordering::Release);
                let mut longest = p.lock().unwrap();
                *longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            n
        });
        Writer {
            stop,
            written,
            pause,
            thread,
        }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn wait_for_more(&self, writes: u64) {
        let upto = self.written() + writes;
        wait_for("more writes", || self.written() >= upto);
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

#[test]
fn one_replica_dies_or_hangs_under_load_and_comes_back() {
    dies_or_hangs_and_comes_back(Cluster::new());
}

#[test]
fn one_replica_dies_or_hangs_under_load_and_comes_back_over_tls() {
    let nodes = ["a", "b", "c"].map(|n| (n, Role::Node));
    let who = [&nodes[..], &[("test", Role::Exporter)]].concat();
    dies_or_hangs_and_comes_back(Cluster::with_keys(&who));
}

fn dies_or_hangs_and_comes_back(mut cluster: Cluster) {
    // Given a volume under load.
    let history = History {
        seed: seed(),
        blocks: BLOCKS,
    };
    let volume = cluster.attach();
    let writer = Writer::start(volume.clone(), history, 0);
    writer.wait_for_more(200);

    // When one is killed and comes back soon, it is caught up.
    cluster.kill(2);
    wait_for("the dead one is seen to be down", || {
        let status = volume.status();
        status.members.iter().any(|m| !m.up)
    });
    writer.wait_for_more(200);
    cluster.start(2);
    wait_for("the dead one is back in sync", || {
        let up = volume.status().members.iter().all(|m| m.up);
        up && cluster.in_sync(&volume, 2)
    });

    // When one is stopped, so that nothing but its silence tells, it leaves the set and holds up
    // nobody, however much is written; and it comes back when it goes on.
    cluster.signal(1, Signal::STOP);
    wait_for("the hung one leaves the set", || {
        !cluster.in_sync(&volume, 1)
    });
    writer.wait_for_more(6000);
    cluster.signal(1, Signal::CONT);
    wait_for("the hung one is back in sync", || {
        cluster.in_sync(&volume, 1)
    });

    // When one is away for more than memory holds, it is resynced.
    cluster.kill(0);
    wait_for("the dead one leaves the set", || {
        !cluster.in_sync(&volume, 0)
    });
    writer.wait_for_more(6000);
    cluster.start(0);
    wait_for("the late one is back in sync", || {
        cluster.in_sync(&volume, 0)
    });
    writer.wait_for_more(50);

    // Then nobody waited long, and every replica by itself holds everything.
    let pause = *writer.pause.lock().unwrap();
    let last = writer.stop();
    println!("{last} writes, longest pause {pause:?}");
    assert!(pause < STALL, "a flush took {pause:?}");
    assert_eq!(history.check_volume(last, &*volume), last);
    volume.hand_back().unwrap();
    drop(volume);
    cluster.check_each(&history, last);
}

/// The other process of the next test: writes, and says what is flushed.
#[test]
#[ignore = "a part of another test, run by it"]
fn worker() {
    let Ok(text) = std::env::var("TRIVET_TEST_WORKER") else {
        return;
    };
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap();
    let history = History {
        seed: word().parse().unwrap(),
        blocks: BLOCKS,
    };
    let mut n: u64 = word().parse().unwrap();
    let volume = serde_json::from_str(word()).unwrap();
    let addresses: Vec<SocketAddr> = (0..3).map(|_| word().parse().unwrap()).collect();
    let volume = attach_to(volume, &addresses, Security::Plain);
    assert_eq!(history.check_volume(n, &*volume), n, "what the parent saw");
    println!("flushed {n}");
    loop {
        for _ in 0..5 {
            n += 1;
            volume.submit(history.batch(n)).unwrap();
        }
        volume.flush_all().unwrap();
        println!("flushed {n}");
    }
}

struct Worker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    flushed: u64,
}

impl Worker {
    fn start(cluster: &Cluster, history: &History, from: u64) -> Worker {
        let volume = serde_json::to_string(&cluster.file.volume).unwrap();
        let mut config = format!("{} {from} {volume}", history.seed);
        for address in &cluster.addresses {
            config.push_str(&format!(" {address}"));
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "worker", "--nocapture"])
            .env("TRIVET_TEST_WORKER", config)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Worker {
            child,
            lines,
            flushed: from,
        }
    }

    /// Waits until so many lines more were heard.
    fn hear(&mut self, lines: usize) {
        let mut heard = 0;
        while heard < lines {
            let line = self.lines.next().expect("the worker ended").unwrap();
            // The harness prints its own name before the first line.
            if let Some((_, n)) = line.split_once("flushed ") {
                self.flushed = n.parse().unwrap();
                heard += 1;
            }
        }
    }

    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for line in self.lines.map_while(Result::ok) {
            // A last line cut short says nothing.
            if let Some(n) = line.strip_prefix("flushed ").and_then(|n| n.parse().ok()) {
                self.flushed = self.flushed.max(n);
            }
        }
        self.flushed
    }
}

#[test]
fn everything_is_killed_at_once_and_every_flushed_write_is_there() {
    let mut cluster = Cluster::new();
    let history = History {
        seed: seed(),
        blocks: BLOCKS,
    };
    let mut last = 0;
    for round in 0..4u64 {
        let mut worker = Worker::start(&cluster, &history, last);
        worker.hear(20 + (history.seed >> (round * 8)) as usize % 200);
        // In each round another one dies first, or none does.
        if round > 0 {
            cluster.kill(round as usize - 1);
            worker.hear(50);
        }
        (0..3).for_each(|i| {
            if let Some(mut replica) = cluster.replicas[i].take() {
                replica.kill();
            }
        });
        let flushed = worker.kill();
        (0..3).for_each(|i| cluster.start(i));
        let began = Instant::now();
        let volume = cluster.attach();
        let took = began.elapsed();
        last = history.check_volume(flushed, &*volume);
        println!("round {round}: {flushed} flushed, {last} found, activation took {took:?}");
        assert!(
            took < Duration::from_secs(3),
            "the lease and its margin are 2.045 s, and the activation took {took:?}"
        );
        volume.hand_back().unwrap();
    }
    let volume = cluster.attach();
    wait_for("all are in sync", || {
        (0..3).all(|i| cluster.in_sync(&volume, i))
    });
    volume.hand_back().unwrap();
    drop(volume);
    cluster.check_each(&history, last);
}

#[test]
fn embedded_volumes_come_back_and_a_lost_region_is_never_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let history = History {
        seed: seed(),
        blocks: 2048,
    };
    let bytes = history.blocks * BLOCK_BYTES as u64;
    let open = || Embedded::open_or_create(dir, bytes, Options::default());

    // Given a volume with content, handed back: opened again it is there at once.
    let embedded = open().unwrap();
    assert!(open().is_err(), "its pools are in use");
    let volume = embedded.volume();
    for n in 1..=300 {
        volume.submit(history.batch(n)).unwrap();
    }
    drop(volume);
    embedded.close().unwrap();
    let began = Instant::now();
    let embedded = open().unwrap();
    assert!(began.elapsed() < LEASE, "took {:?}", began.elapsed());
    assert_eq!(history.check_volume(300, &*embedded.volume()), 300);
    let id = embedded.volume().info().id;
    embedded.close().unwrap();

    // When a region is gone, the other two serve and the loss is told.
    std::fs::remove_dir_all(dir.join("b").join(id.to_string())).unwrap();
    let embedded = open().unwrap();
    assert!(matches!(embedded.problems(), [Problem::Lost { node, .. }] if node == "b"));
    assert_eq!(history.check_volume(300, &*embedded.volume()), 300);
    assert!(!dir.join("b").join(id.to_string()).exists());
    embedded.close().unwrap();

    // When two are gone nothing is served, and nothing made anew.
    std::fs::remove_dir_all(dir.join("a").join(id.to_string())).unwrap();
    let refused = open().map(drop).unwrap_err();
    assert!(
        matches!(&refused, ClusterError::TooFew { usable: 1, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("replace"), "{refused}");

    // When the description is gone, what is left is not taken for empty pools.
    std::fs::remove_file(dir.join("volume.toml")).unwrap();
    let refused = open().map(drop).unwrap_err();
    assert!(matches!(refused, ClusterError::Orphan { .. }), "{refused}");
}
