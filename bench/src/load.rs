//! Drives a volume as one kind of user would, and times each operation.
//!
//! An operation's latency runs from just before the call to its completion. A load's rate counts
//! everything that it caused: a load of volatile writes ends with a flush, inside the time.
//! Content comes from one random pool and is shared, not copied; a slice that starts at any of
//! its bytes is content of its own.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_READ_BLOCKS};
use trivet_replica::volume::{Admission, BLOCK_BYTES, Batch, Block, VolumeError};
use trivet_replica::{Flushed, Ticket, Volume};

use crate::BenchError;
use crate::histogram::Histogram;
use crate::rng::Rng;

/// A load without a completion for so long has failed.
pub const STALLED: Duration = Duration::from_secs(60);

/// Writes of at least this many bytes ask to be admitted.
const STREAM: u64 = 128 << 10;

/// What each operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Write, complete when the volume has taken it. The load ends with a flush.
    Write,
    /// Write and flush, complete when durable.
    DurableWrite,
    /// Read.
    Read,
}

/// Where operations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere in the area, evenly.
    Random,
    /// One after the other. Writes that reach the end of the area discard it and start again,
    /// so that they always write new data.
    Sequential,
}

/// One load.
#[derive(Clone, Debug)]
pub struct Load {
    /// What.
    pub kind: Kind,
    /// Where next.
    pub order: Order,
    /// The blocks it may touch.
    pub area: Range<u64>,
    /// Blocks per operation, 1 to 256 (1 MiB).
    pub blocks: u32,
    /// Operations in flight, at least 1.
    pub depth: usize,
    /// Starts no operation after this time, unless `at_least` has not been reached.
    pub time: Duration,
    /// Bytes that it moves at least, however long that takes.
    pub at_least: u64,
    /// Starts no operation after so many bytes.
    pub at_most: u64,
    /// Of the places and the content.
    pub seed: u64,
}

/// What a load achieved.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Operations completed.
    pub operations: u64,
    /// Bytes read or written.
    pub bytes: u64,
    /// From the first call to the last completion, the closing flush included.
    pub elapsed: Duration,
    /// Of each operation.
    pub latency: Histogram,
    /// Longest time without any completion: the stall that a user would have seen.
    pub longest_gap: Duration,
}

impl Sample {
    /// Operations per second.
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Everything in flight, and what has completed so far.
struct Flight {
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    free: usize,
    sample: Sample,
    last: Instant,
    failure: Option<VolumeError>,
}

impl Flight {
    fn new(depth: usize) -> Arc<Flight> {
        Arc::new(Flight {
            state: Mutex::new(State {
                free: depth,
                sample: Sample::default(),
                last: Instant::now(),
                failure: None,
            }),
            freed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain counters: a panic elsewhere cannot have left them half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until at least `wanted` places are free and takes one (none if `wanted` is all).
    fn wait_free(&self, wanted: usize) -> Result<MutexGuard<'_, State>, BenchError> {
        let mut state = self.lock();
        while state.free < wanted && state.failure.is_none() {
            let seen = state.sample.operations;
            let (back, timeout) = self
                .freed
                .wait_timeout(state, STALLED)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            if timeout.timed_out() && state.sample.operations == seen {
                return Err(BenchError::Stalled(STALLED));
            }
        }
        match state.failure.take() {
            Some(e) => Err(e.into()),
            None => Ok(state),
        }
    }

    /// Takes a place.
    fn begin(&self) -> Result<(), BenchError> {
        self.wait_free(1)?.free -= 1;
        Ok(())
    }

    /// Gives a place back; called from the volume's threads, never waits for long.
    fn end(&self, started: Instant, bytes: u64, result: Result<(), VolumeError>) {
        let now = Instant::now();
        let mut state = self.lock();
        state.free += 1;
        match result {
            Ok(()) => {
                let gap = now.saturating_duration_since(state.last);
                state.last = now;
                let sample = &mut state.sample;
                sample.operations += 1;
                sample.bytes += bytes;
                sample.latency.add(now.saturating_duration_since(started));
                sample.longest_gap = sample.longest_gap.max(gap);
            }
            Err(e) => state.failure = Some(e),
        }
        drop(state);
        self.freed.notify_one();
    }
}

/// Where the next operations go, and with what.
struct Source<'a> {
    load: &'a Load,
    rng: Rng,
    next: u64,
    pool: Bytes,
    /// Where reads that wait put what they read.
    buffer: Vec<u8>,
}

impl<'a> Source<'a> {
    fn new(load: &'a Load) -> Source<'a> {
        let mut rng = Rng::new(load.seed);
        let longest = load.blocks as usize * BLOCK_BYTES;
        let pool = match load.kind {
            Kind::Read => Bytes::new(),
            _ => Bytes::from(rng.bytes(longest + BLOCK_BYTES)),
        };
        Source {
            load,
            rng,
            next: load.area.start,
            pool,
            buffer: match load.kind {
                Kind::Read => vec![0; longest],
                _ => Vec::new(),
            },
        }
    }

    /// The next place, and whether the area starts again with it.
    fn place(&mut self) -> (Block, bool) {
        let (area, blocks) = (&self.load.area, u64::from(self.load.blocks));
        match self.load.order {
            Order::Random => {
                let slots = (area.end - area.start) / blocks;
                (Block(area.start + self.rng.below(slots) * blocks), false)
            }
            Order::Sequential => {
                let again = self.next + blocks > area.end;
                if again {
                    self.next = area.start;
                }
                self.next += blocks;
                (Block(self.next - blocks), again)
            }
        }
    }

    fn content(&mut self) -> Bytes {
        let start = self.rng.below(BLOCK_BYTES as u64) as usize;
        self.pool
            .slice(start..start + self.load.blocks as usize * BLOCK_BYTES)
    }
}

/// Runs one load to its end, or until `stop` is set.
///
/// # Errors
/// The volume failed or stalled, the load makes no sense for it, or `stop` was set.
pub fn run(volume: &dyn Volume, load: &Load, stop: &AtomicBool) -> Result<Sample, BenchError> {
    check(volume, load)?;
    let flight = Flight::new(load.depth);
    let mut source = Source::new(load);
    let start = Instant::now();
    let mut started_bytes = 0;
    while more(load, start, started_bytes) {
        if stop.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        flight.begin()?;
        let bytes = step(volume, &mut source, &flight)?;
        started_bytes += bytes;
    }
    drop(flight.wait_free(load.depth)?);
    if load.kind == Kind::Write {
        volume.flush_all()?;
    }
    let mut sample = std::mem::take(&mut flight.lock().sample);
    sample.elapsed = start.elapsed();
    Ok(sample)
}

fn more(load: &Load, start: Instant, bytes: u64) -> bool {
    bytes < load.at_most && (bytes < load.at_least || start.elapsed() < load.time)
}

/// Starts one operation; the place in flight was taken and is given back by its completion.
fn step(
    volume: &dyn Volume,
    source: &mut Source<'_>,
    flight: &Arc<Flight>,
) -> Result<u64, BenchError> {
    let (block, again) = source.place();
    let (kind, count) = (source.load.kind, source.load.blocks);
    let bytes = u64::from(count) * BLOCK_BYTES as u64;
    let held = Arc::clone(flight);
    let alone = source.load.depth == 1;
    if kind == Kind::Read {
        let started = Instant::now();
        if alone {
            let result = volume.read(block, &mut source.buffer);
            held.end(started, bytes, result);
            return Ok(bytes);
        }
        volume.read_then(
            block,
            count,
            Box::new(move |r| held.end(started, bytes, r.map(drop))),
        );
        return Ok(bytes);
    }
    if again {
        let area = &source.load.area;
        volume.submit(Batch::discard(Block(area.start), area.end - area.start))?;
    }
    let batch = Batch::write(block, source.content());
    let started = Instant::now();
    // As the file system does.
    let admitted = match bytes >= STREAM {
        true => volume.admit(bytes),
        false => Admission::default(),
    };
    let ticket = volume.submit(batch)?;
    drop(admitted);
    match kind {
        Kind::DurableWrite if alone => {
            held.end(started, bytes, covered(ticket, volume.flush(ticket)));
        }
        Kind::DurableWrite => volume.flush_then(
            ticket,
            Box::new(move |flushed| held.end(started, bytes, covered(ticket, flushed))),
        ),
        _ => held.end(started, bytes, Ok(())),
    }
    Ok(bytes)
}

fn covered(ticket: Ticket, flushed: Flushed) -> Result<(), VolumeError> {
    match flushed?.covers(ticket) {
        true => Ok(()),
        false => Err(VolumeError::Io(
            "a flush completed without covering its ticket".into(),
        )),
    }
}

fn check(volume: &dyn Volume, load: &Load) -> Result<(), BenchError> {
    let blocks = volume.info().blocks;
    let area = &load.area;
    let largest = match load.kind {
        Kind::Read => MAX_READ_BLOCKS,
        _ => MAX_BATCH_BLOCKS as u32,
    };
    if area.end > blocks || area.start >= area.end {
        return Err(BenchError::BadLoad(format!(
            "blocks {area:?} of a volume that has {blocks}"
        )));
    }
    if load.blocks == 0 || load.blocks > largest || u64::from(load.blocks) > area.end - area.start {
        return Err(BenchError::BadLoad(format!(
            "{} blocks per operation in an area of {}; 1 to {largest} are possible",
            load.blocks,
            area.end - area.start
        )));
    }
    if load.depth == 0 {
        return Err(BenchError::BadLoad("a depth of 0 does nothing".into()));
    }
    Ok(())
}

/// As [`run`], with `threads` callers that each keep `load.depth` operations in flight: for calls
/// that complete before they return, that is the only way to have several under way.
///
/// # Errors
/// As [`run`].
pub fn run_threads(
    volume: &dyn Volume,
    load: &Load,
    threads: usize,
    stop: &AtomicBool,
) -> Result<Sample, BenchError> {
    let loads: Vec<Load> = (0..threads as u64)
        .map(|i| Load {
            seed: load.seed ^ (i << 48),
            at_least: load.at_least / threads as u64,
            ..load.clone()
        })
        .collect();
    let mut sum = Sample::default();
    for s in run_together(volume, &loads, stop)? {
        sum.operations += s.operations;
        sum.bytes += s.bytes;
        sum.elapsed = sum.elapsed.max(s.elapsed);
        sum.latency.merge(&s.latency);
        sum.longest_gap = sum.longest_gap.max(s.longest_gap);
    }
    Ok(sum)
}

/// Runs several loads at once, each from a thread of its own; results in their order.
///
/// # Errors
/// The first failure among them.
pub fn run_together(
    volume: &dyn Volume,
    loads: &[Load],
    stop: &AtomicBool,
) -> Result<Vec<Sample>, BenchError> {
    std::thread::scope(|scope| {
        let running: Vec<_> = loads
            .iter()
            .map(|load| scope.spawn(move || run(volume, load, stop)))
            .collect();
        let ended: Vec<_> = running
            .into_iter()
            .map(|r| match r.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        ended.into_iter().collect()
    })
}

/// Fills an area, a whole number of MiB, with new content and makes it durable.
///
/// # Errors
/// As [`run`].
pub fn fill(
    volume: &dyn Volume,
    area: Range<u64>,
    seed: u64,
    stop: &AtomicBool,
) -> Result<(), BenchError> {
    let count = area.end.saturating_sub(area.start);
    if !count.is_multiple_of(u64::from(MAX_READ_BLOCKS)) {
        return Err(BenchError::BadLoad(format!(
            "{count} blocks to fill are no whole number of MiB"
        )));
    }
    let whole = count * BLOCK_BYTES as u64;
    let load = Load {
        kind: Kind::Write,
        order: Order::Sequential,
        blocks: MAX_READ_BLOCKS,
        area,
        depth: 1,
        time: Duration::ZERO,
        at_least: whole,
        at_most: whole,
        seed,
    };
    run(volume, &load, stop).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trivet_replica::volume::{PlainVolume, VolumeId};

    fn volume(dir: &std::path::Path) -> PlainVolume {
        PlainVolume::open(&dir.join("v"), VolumeId::random(), 1024).unwrap()
    }

    fn load(kind: Kind, depth: usize) -> Load {
        Load {
            kind,
            order: Order::Random,
            area: 0..512,
            blocks: 1,
            depth,
            time: Duration::ZERO,
            at_least: 100 * BLOCK_BYTES as u64,
            at_most: u64::MAX,
            seed: 1,
        }
    }

    #[test]
    fn every_kind_and_depth_completes_exactly_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let v = volume(dir.path());
        let stop = AtomicBool::new(false);
        for kind in [Kind::Write, Kind::DurableWrite, Kind::Read] {
            for depth in [1, 32] {
                let s = run(&v, &load(kind, depth), &stop).unwrap();
                assert_eq!(
                    (s.operations, s.latency.len()),
                    (100, 100),
                    "{kind:?} {depth}"
                );
                assert_eq!(s.bytes, 100 * BLOCK_BYTES as u64);
            }
        }
        let s = run_threads(&v, &load(Kind::Write, 1), 4, &stop).unwrap();
        assert_eq!(s.operations, 100);
    }

    #[test]
    fn a_sequential_writer_stays_in_its_area_and_starts_again_on_new_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let v = volume(dir.path());
        let stop = AtomicBool::new(false);
        let l = Load {
            order: Order::Sequential,
            area: 256..512,
            blocks: 128,
            at_least: 3 * 128 * BLOCK_BYTES as u64,
            ..load(Kind::Write, 1)
        };
        run(&v, &l, &stop).unwrap();
        let mut block = vec![1; BLOCK_BYTES];
        let mut zero = |b| {
            v.read(Block(b), &mut block).unwrap();
            block.iter().all(|x| *x == 0)
        };
        assert!(zero(255) && zero(512), "the neighbours are untouched");
        assert!(!zero(256), "the third write, at the start again");
        assert!(zero(384), "discarded before the third write");
    }

    #[test]
    fn nonsense_and_a_stop_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let v = volume(dir.path());
        let good = load(Kind::Write, 1);
        for bad in [
            Load {
                area: 0..2000,
                ..good.clone()
            },
            Load {
                area: 5..5,
                ..good.clone()
            },
            Load {
                blocks: 0,
                ..good.clone()
            },
            Load {
                blocks: 300,
                kind: Kind::Read,
                ..good.clone()
            },
            Load {
                depth: 0,
                ..good.clone()
            },
        ] {
            let result = run(&v, &bad, &AtomicBool::new(false));
            assert!(matches!(result, Err(BenchError::BadLoad(_))), "{bad:?}");
        }
        let stopped = run(&v, &good, &AtomicBool::new(true));
        assert!(matches!(stopped, Err(BenchError::Interrupted)));
        assert_eq!(v.last_ticket(), Ticket::default());
    }
}
