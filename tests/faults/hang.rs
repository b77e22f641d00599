//! Disks that hang.

use std::time::{Duration, Instant};

use trivet_protocol::Block;
use trivet_replica::Volume;
use trivet_replica::upstairs::Notice;

use crate::common::{History, seed};
use crate::world::{Attached, BLOCKS, Between, World, Writer, bytes_of, wait_for};

/// Two leases and a half.
const HANG: Duration = Duration::from_secs(5);

/// Reads eight blocks here and there, every `step`th place from the `first` on; how many times, and
/// how long the slowest took.
fn read_until(attached: &Attached, end: Instant, first: u64, step: u64) -> (u64, Duration) {
    let (mut place, mut reads, mut longest) = (first, 0, Duration::ZERO);
    let mut out = vec![0; bytes_of(8)];
    while Instant::now() < end {
        let one = Instant::now();
        let block = (place * 37) % (BLOCKS - 8);
        attached.volume.read(Block(block), &mut out).unwrap();
        longest = longest.max(one.elapsed());
        place += step;
        reads += 1;
    }
    (reads, longest)
}

#[test]
fn two_of_three_disks_hang_and_the_lease_is_kept() {
    let Some(world) = World::new("hang", Between::Nothing) else {
        return;
    };
    let history = History {
        seed: seed(),
        blocks: BLOCKS,
    };
    // Given a volume under load.
    let attached = world.attach();
    let writer = Writer::start(attached.clone(), history, 0);
    writer.wait_for_more(500);

    // When the disks of two replicas hang in every sync, for longer than two leases...
    world.disk(0).rule("hang sync").unwrap();
    world.disk(1).rule("hang sync").unwrap();
    let began = Instant::now();
    wait_for("the writer is held up", || {
        let before = writer.flushed();
        std::thread::park_timeout(Duration::from_millis(500));
        writer.flushed() == before
    });
    // ... reads go on, within a lease that never ran out.
    let (reads, longest) = read_until(&attached, began + HANG, 0, 1);
    assert!(!attached.heard(|n| *n == Notice::LeaseLapsed));
    let held_up = writer.flushed();
    for i in 0..2 {
        world.disk(i).clear();
        world.disk(i).release();
    }

    // Then the writer goes on, without an error, and nothing is lost.
    writer.wait_for_more(500);
    println!("{reads} reads while hung, the slowest {longest:?}; flushed {held_up} until then");
    assert!(!attached.heard(|n| *n == Notice::LeaseLapsed));
    assert_eq!(writer.errors(), []);
    let (flushed, submitted) = writer.stop();
    wait_for("all are in sync", || attached.all_in_sync());
    assert_eq!(history.check_volume(flushed, &attached.volume), submitted);
    attached.volume.hand_back().unwrap();
}

/// The replica beside the volume is read on the caller's own thread. While its disk hung in a read,
/// the caller hung, though two other replicas had the data: as many callers as a door has threads,
/// and the door was shut.
#[test]
fn the_disk_beside_the_volume_hangs_and_reads_go_on() {
    let Some(mut world) = World::new("hang beside", Between::Nothing) else {
        return;
    };
    let history = History {
        seed: seed(),
        blocks: BLOCKS,
    };
    // Given a volume whose first replica is in this process.
    let host = world.serve_here(0);
    let attached = world.attach_beside(Some(&host));
    let writer = Writer::start(attached.clone(), history, 0);
    writer.wait_for_more(500);
    let (flushed, submitted) = writer.stop();
    wait_for("all are in sync", || attached.all_in_sync());

    // When its disk hangs in every read...
    world.disk(0).rule("hang read").unwrap();
    let began = Instant::now();
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let attached = attached.clone();
            std::thread::spawn(move || read_until(&attached, began + HANG, n, 4))
        })
        .collect();
    wait_for("the readers have read, or hang", || {
        began.elapsed() > HANG + Duration::from_secs(1)
    });
    world.disk(0).clear();
    world.disk(0).release();

    // ... then each caller has the data from elsewhere, soon.
    for reader in readers {
        let (reads, longest) = reader.join().unwrap();
        println!("{reads} reads while hung, the slowest {longest:?}");
        assert!(longest < HANG / 2, "{longest:?}");
    }
    wait_for("all are in sync", || attached.all_in_sync());
    assert_eq!(history.check_volume(flushed, &attached.volume), submitted);
    attached.volume.hand_back().unwrap();
    drop(attached);
    host.close().unwrap();
}
