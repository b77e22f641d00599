//! Figures of one region alone, without network and upstairs:
//! `cargo run --release -p trivet-downstairs --example store_speed -- DIR`.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use trivet_downstairs::disk::RealDisk;
use trivet_downstairs::{Region, Store, StoreError};
use trivet_protocol::entry::Batch;
use trivet_protocol::{BLOCK_BYTES, Block, Entry, MemberId, Recorder, Seq, VolumeId};

#[derive(Default)]
struct Written(AtomicU64);

impl Recorder for Written {
    fn count(&self, name: &'static str, n: u64) {
        if name == "downstairs.disk.bytes_written" {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }
    fn gauge(&self, _: &'static str, _: u64) {}
    fn time(&self, _: &'static str, _: u64) {}
}

fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

struct Bench {
    store: Store,
    volume: VolumeId,
    written: Arc<Written>,
    random: u64,
}

impl Bench {
    fn below(&mut self, n: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.random >> 33) % n
    }

    fn append(&mut self, mut entry: Entry) -> Result<(), StoreError> {
        entry.seq = self.store.end().seq.next();
        entry.generation = 1;
        match self.store.append(&entry) {
            Err(StoreError::LogFull { .. }) => {
                self.empty()?;
                self.store.append(&entry)
            }
            other => other,
        }
    }

    fn empty(&mut self) -> Result<(), StoreError> {
        let end: Seq = self.store.sync()?;
        self.store.set_commit(end);
        self.store.set_trim(end);
        self.store.checkpoint_now().map(|_| ())
    }

    fn entry(&mut self, block: u64, data: &Bytes) -> Entry {
        Entry::unplaced(self.volume, Batch::write(Block(block), data.clone()))
    }
}

fn report(out: &mut dyn Write, what: &str, n: u64, wall: f64, cpu: f64) -> std::io::Result<()> {
    let per = 1e6 / n as f64;
    writeln!(
        out,
        "{what}: {:.0}/s, {:.2} us wall, {:.2} us CPU each",
        n as f64 / wall,
        wall * per,
        cpu * per
    )
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args()
        .nth(1)
        .ok_or("name a directory that does not exist")?;
    let dir = Path::new(&dir);
    std::fs::create_dir(dir)?;
    let mut out = std::io::stdout();
    let volume = VolumeId::random();
    let region = Region::new(volume, MemberId::random(), 1 << 24);
    let written = Arc::new(Written::default());
    let disk: Arc<dyn trivet_downstairs::disk::Disk> = Arc::new(RealDisk::new(
        dir,
        Arc::clone(&written) as Arc<dyn Recorder>,
    ));
    Store::create(&disk, &region)?;
    let (store, _) = Store::open(Arc::clone(&disk), None, written.clone())?;
    let mut b = Bench {
        store,
        volume,
        written,
        random: 7,
    };

    // New data in runs of 1 MiB: 1 GiB.
    let mib = Bytes::from(
        (0..1usize << 20)
            .map(|i| (i * 31 / 7) as u8)
            .collect::<Vec<_>>(),
    );
    let entries: Vec<Entry> = (0..1024).map(|i| b.entry(i * 256, &mib)).collect();
    let (before, t, c) = (b.written.0.load(Ordering::Relaxed), Instant::now(), cpu());
    for e in entries {
        b.append(e)?;
    }
    report(
        &mut out,
        "1 MiB new, in place",
        1024,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;
    b.empty()?;
    let bytes = b.written.0.load(Ordering::Relaxed) - before;
    writeln!(
        out,
        "  with sync and checkpoint {:.2} s, {:.3} bytes per byte",
        t.elapsed().as_secs_f64(),
        bytes as f64 / (1u64 << 30) as f64
    )?;

    // Random overwrites of 4 KiB within that, no sync but for checkpoints.
    let four = mib.slice(..BLOCK_BYTES);
    let n = 200_000u64;
    let entries: Vec<Entry> = (0..20_000)
        .map(|_| {
            let block = b.below(262_144);
            b.entry(block, &four)
        })
        .collect();
    let (t, c) = (Instant::now(), cpu());
    for e in &entries {
        b.append(e.clone())?;
    }
    report(
        &mut out,
        "4 KiB overwrite, append alone",
        20_000,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;
    b.empty()?;
    let (before, t, c) = (b.written.0.load(Ordering::Relaxed), Instant::now(), cpu());
    for i in 0..n {
        let block = b.below(262_144);
        let e = b.entry(block, &four);
        b.append(e)?;
        if i % 32 == 31 {
            b.store.sync()?;
        }
        if b.store.wants_checkpoint() {
            b.empty()?;
        }
    }
    b.empty()?;
    report(
        &mut out,
        "4 KiB overwrite, sync each 32, checkpoints, checksums",
        n,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;
    let bytes = b.written.0.load(Ordering::Relaxed) - before;
    writeln!(
        out,
        "  {:.2} bytes given to the file system per byte",
        bytes as f64 / (n * 4096) as f64
    )?;

    // Reads.
    let (t, c) = (Instant::now(), cpu());
    for _ in 0..100_000 {
        let block = b.below(262_144);
        b.store.read(Block(block), 1)?;
    }
    report(
        &mut out,
        "4 KiB read, in memory",
        100_000,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;
    let (t, c) = (Instant::now(), cpu());
    for i in 0..1024 {
        b.store.read(Block(i * 256), 256)?;
    }
    report(
        &mut out,
        "1 MiB read, in memory",
        1024,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;

    // QD1: append and sync each.
    let (t, c) = (Instant::now(), cpu());
    for _ in 0..2000 {
        let block = b.below(262_144);
        let e = b.entry(block, &four);
        b.append(e)?;
        b.store.sync()?;
    }
    report(
        &mut out,
        "4 KiB append and sync",
        2000,
        t.elapsed().as_secs_f64(),
        cpu() - c,
    )?;

    // Open with a full log.
    while b.store.log_free() > 1 << 20 {
        let block = b.below(262_144);
        let e = b.entry(block, &four);
        b.append(e)?;
        if b.below(32) == 0 {
            b.store.sync()?;
        }
    }
    drop(b);
    let t = Instant::now();
    let (store, found) = Store::open(disk, None, Arc::new(trivet_protocol::NullRecorder))?;
    writeln!(
        out,
        "open with a full log: {:.0} ms, {} records, {} MiB, {} bytes written again",
        t.elapsed().as_secs_f64() * 1e3,
        found.records,
        found.bytes >> 20,
        found.rewritten
    )?;
    store.close()?;
    Ok(())
}
