//! Disks that hang.

use std::time::{Duration, Instant};

use trivet_protocol::Block;
use trivet_replica::Volume;
use trivet_replica::upstairs::Notice;

use crate::common::{History, seed};
use crate::world::{BLOCKS, Between, World, Writer, bytes_of, wait_for};

/// Two leases and a half.
const HANG: Duration = Duration::from_secs(5);

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
    let (mut reads, mut longest) = (0, Duration::ZERO);
    let mut out = vec![0; bytes_of(8)];
    while began.elapsed() < HANG {
        let one = Instant::now();
        let block = (reads * 37) % (BLOCKS - 8);
        attached.volume.read(Block(block), &mut out).unwrap();
        longest = longest.max(one.elapsed());
        reads += 1;
        // ... reads go on, within a lease that never ran out.
        assert!(!attached.heard(|n| *n == Notice::LeaseLapsed));
    }
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
