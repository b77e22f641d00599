//! Faults at random, one after the other, under load.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::{History, seed};
use crate::world::{Attached, BLOCKS, Between, World, Writer, wait_for};

/// Rounds unless TRIVET_FAULT_ROUNDS says otherwise.
const ROUNDS: u64 = 14;
/// Writes between two things that happen.
const SOME: u64 = 150;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Disk operations fail: the rule, in the words of the failing disk.
    Disk(&'static str),
    Hang,
    Kill,
    Stop,
    /// The power of these nodes fails, with what their disks had not synced.
    Power,
    /// Bytes of the extent files change.
    RottenExtents,
    /// Bytes of the log change while nobody uses it.
    RottenLog,
}

const ONE: &[Fault] = &[
    Fault::Disk("fail sync EIO path=log count=1"),
    Fault::Disk("fail sync EIO count=1"),
    Fault::Disk("fail write EIO path=log count=1"),
    Fault::Disk("fail write EIO path=/e/ count=1"),
    Fault::Disk("fail read EIO count=2"),
    Fault::Disk("fail write,alloc ENOSPC path=/e/ count=40"),
    Fault::Disk("fail write ENOSPC count=3"),
    Fault::Disk("tear count=1"),
    Fault::Hang,
    Fault::Kill,
    Fault::Stop,
    Fault::Power,
    Fault::RottenExtents,
    Fault::RottenLog,
];

/// What two may suffer at once, and all three: nothing that takes away what was synced.
const MANY: &[Fault] = &[
    Fault::Disk("fail sync EIO count=1"),
    Fault::Disk("fail write,alloc ENOSPC path=/e/ count=40"),
    Fault::Hang,
    Fault::Kill,
    Fault::Stop,
    Fault::Power,
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }
}

struct Test {
    world: World,
    history: History,
    rng: Rng,
    attached: Arc<Attached>,
    writer: Writer,
}

impl Test {
    /// `None` where such disks cannot be had.
    fn new(test: &str, between: Between, history: History) -> Option<Test> {
        let world = World::new(test, between)?;
        let attached = world.attach();
        let writer = Writer::start(attached.clone(), history, 0);
        Some(Test {
            world,
            history,
            rng: Rng(history.seed),
            attached,
            writer,
        })
    }

    /// Lets it go wrong at these nodes, under load, and mends it.
    fn suffer(&mut self, fault: Fault, nodes: &[usize]) {
        match fault {
            Fault::Disk(rule) => nodes
                .iter()
                .for_each(|i| self.world.disk(*i).rule(rule).unwrap()),
            Fault::Hang => nodes
                .iter()
                .for_each(|i| self.world.disk(*i).rule("hang sync,write").unwrap()),
            Fault::Kill => nodes.iter().for_each(|i| self.world.kill(*i)),
            Fault::Stop => nodes
                .iter()
                .for_each(|i| self.world.signal(*i, Signal::STOP)),
            Fault::Power => {
                for i in nodes {
                    self.world.cut(*i, self.rng.0);
                }
            }
            Fault::RottenExtents => self.rot_extents(nodes[0]),
            Fault::RottenLog => {
                self.world.kill(nodes[0]);
                self.rot(nodes[0], "log");
            }
        }
        if nodes.len() == 1 {
            // The other two go on.
            self.writer.wait_for_more(SOME);
        } else {
            std::thread::park_timeout(Duration::from_millis(700));
        }
        self.mend(fault, nodes);
    }

    fn mend(&mut self, fault: Fault, nodes: &[usize]) {
        for &i in nodes {
            if let Fault::Stop = fault {
                self.world.signal(i, Signal::CONT);
            }
            self.world.disk(i).clear();
            self.world.disk(i).release();
            if let Fault::Power = fault {
                self.world.power_on(i);
            }
            if !self.world.runs(i) {
                self.world.start(i);
            }
        }
    }

    fn rot(&mut self, i: usize, name: &str) {
        let path = self.world.file(i, name);
        let file = File::options().read(true).write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        for _ in 0..8 {
            let at = self.rng.below(size as usize - 64) as u64;
            let mut bytes = [0; 64];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes.iter_mut().for_each(|b| *b ^= 0x5a);
            file.write_all_at(&bytes, at).unwrap();
        }
    }

    /// Of replica 0, which is the one that is read first, so that the damage is found.
    fn rot_extents(&mut self, i: usize) {
        self.world.kill(i);
        let files = std::fs::read_dir(self.world.file(i, "e")).unwrap();
        let names: Vec<_> = files.map(|f| f.unwrap().file_name()).collect();
        for name in names {
            self.rot(i, &format!("e/{}", name.display()));
        }
    }

    /// All is well again, and everything flushed is there.
    fn check(mut self) -> Test {
        self.writer.wait_for_more(SOME);
        let (flushed, submitted) = self.writer.stop();
        wait_for("all are in sync", || self.attached.all_in_sync());
        let found = self.history.check_volume(flushed, &self.attached.volume);
        assert_eq!(found, submitted);
        self.writer = Writer::start(self.attached.clone(), self.history, found);
        self
    }

    /// Every process of every node dies, the active one included, and the power with it.
    fn all_die(mut self) -> Test {
        for i in 0..3 {
            self.world.cut(i, self.rng.0);
        }
        let flushed = self.writer.flushed();
        // Nothing that it has in memory gets anywhere.
        drop(self.attached);
        self.writer.stop();
        for i in 0..3 {
            self.world.power_on(i);
            self.world.start(i);
        }
        let began = Instant::now();
        self.attached = self.world.attach();
        let took = began.elapsed();
        let found = self.history.check_volume(flushed, &self.attached.volume);
        println!("  {flushed} flushed, {found} found, activation took {took:?}");
        self.writer = Writer::start(self.attached.clone(), self.history, found);
        self
    }
}

fn rounds() -> u64 {
    let asked = std::env::var("TRIVET_FAULT_ROUNDS");
    asked.map_or(ROUNDS, |n| n.parse().expect("a number of rounds"))
}

#[test]
fn faults_at_random_take_nothing_that_was_flushed() {
    let history = History {
        seed: seed(),
        blocks: BLOCKS,
    };
    let rounds = rounds();
    let Some(mut test) = Test::new("rounds", Between::Nothing, history) else {
        return;
    };
    test.writer.wait_for_more(SOME);
    // Each kind once, in an order of its own, and then at random.
    let mut first: Vec<Fault> = ONE.to_vec();
    for round in 0..rounds {
        let dice = test.rng.below(6);
        let (fault, nodes) = match (dice, first.len()) {
            (0, _) => {
                println!("round {round}: power of all, and the active one");
                test = test.all_die().check();
                continue;
            }
            (1, _) => (MANY[test.rng.below(MANY.len())], vec![0, 1, 2]),
            (2, _) => {
                let spared = test.rng.below(3);
                let two = (0..3).filter(|i| *i != spared).collect();
                (MANY[test.rng.below(MANY.len())], two)
            }
            (_, 0) => (ONE[test.rng.below(ONE.len())], vec![test.rng.below(3)]),
            (_, n) => (
                first.swap_remove(test.rng.below(n)),
                vec![test.rng.below(3)],
            ),
        };
        let nodes = match fault {
            Fault::RottenExtents => vec![0],
            _ => nodes,
        };
        println!("round {round}: {fault:?} at {nodes:?}");
        test.writer.take_pause();
        let errors = test.writer.errors().len();
        test.suffer(fault, &nodes);
        let pause = test.writer.take_pause();
        if nodes.len() == 1 {
            let new = &test.writer.errors()[errors..];
            assert!(new.is_empty(), "one replica failed, and a writer: {new:?}");
        }
        test = test.check();
        println!("  longest pause {pause:?}");
    }
    test.writer.stop();
    test.attached.volume.hand_back().unwrap();
}

/// A host that loses its power loses what its file system had not written: here the sectors below
/// a journaling file system, in any order, torn at 512 bytes. The region relies on its own
/// ordering and on what `fsync` means in POSIX, so each kind must do.
#[test]
fn power_cuts_below_file_systems_take_nothing_that_was_flushed() {
    let seed = seed();
    for kind in ["ext4", "xfs", "btrfs"] {
        let history = History {
            seed,
            blocks: BLOCKS,
        };
        let name = format!("power below {kind}");
        let Some(mut test) = Test::new(&name, Between::Formatted(kind), history) else {
            return;
        };
        for round in 0..rounds().div_ceil(ROUNDS) {
            test.writer.wait_for_more(SOME);
            let one = test.rng.below(3);
            println!("{kind}, round {round}: power of {one}, then of all and the active one");
            test.suffer(Fault::Power, &[one]);
            test = test.check();
            test.writer.wait_for_more(SOME);
            test = test.all_die().check();
        }
        test.writer.stop();
        test.attached.volume.hand_back().unwrap();
    }
}
