//! Counters, gauges and latencies of all crates, by name.
//!
//! A fixed table of atomics: taking a figure is a hash of a short name, a probe and an addition; no
//! lock, no allocation after a name was first seen. Bounded: [`SLOTS`] names; figures under further
//! ones are lost, which a counter of its own says.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use trivet_protocol::Recorder;

/// Names, at most.
const SLOTS: usize = 256;

/// Upper bounds of the latency buckets, in nanoseconds: 10 us to 10 s, then all the rest.
pub const BOUNDS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Latencies.
    Times,
}

struct Slot {
    name: &'static str,
    kind: Kind,
    /// The counter, the gauge, or the sum of the latencies in nanoseconds.
    value: AtomicU64,
    /// Latencies at most as long as the bound beside it, and in the last place longer ones.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

/// One figure, as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Its name, dotted.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The counter, the gauge, or the sum of the latencies in nanoseconds.
    pub value: u64,
    /// How many latencies fell into each bucket; see [`BOUNDS`].
    pub buckets: Vec<u64>,
}

/// See the module's head.
pub struct Figures {
    slots: Box<[OnceLock<Slot>]>,
    lost: AtomicU64,
}

impl Default for Figures {
    fn default() -> Figures {
        Figures {
            slots: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            lost: AtomicU64::new(0),
        }
    }
}

/// FNV-1a: short names, and nobody chooses them to collide.
fn hash(name: &str) -> usize {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step) as usize
}

impl Figures {
    fn slot(&self, name: &'static str, kind: Kind) -> Option<&Slot> {
        let begin = hash(name);
        for i in 0..SLOTS {
            let slot = self.slots.get((begin.wrapping_add(i)) % SLOTS)?;
            let slot = slot.get_or_init(|| Slot {
                name,
                kind,
                value: AtomicU64::new(0),
                buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            });
            if slot.kind == kind && slot.name == name {
                return Some(slot);
            }
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// All figures, sorted by name.
    pub fn all(&self) -> Vec<Figure> {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let figure = |s: &Slot| Figure {
            name: s.name,
            kind: s.kind,
            value: get(&s.value),
            buckets: match s.kind {
                Kind::Times => s.buckets.iter().map(get).collect(),
                _ => Vec::new(),
            },
        };
        let mut all: Vec<Figure> = self
            .slots
            .iter()
            .filter_map(|s| s.get())
            .map(figure)
            .collect();
        all.push(Figure {
            name: "metrics.lost",
            kind: Kind::Counter,
            value: get(&self.lost),
            buckets: Vec::new(),
        });
        all.sort_unstable_by_key(|f| f.name);
        all
    }
}

impl Recorder for Figures {
    fn count(&self, name: &'static str, n: u64) {
        if let Some(slot) = self.slot(name, Kind::Counter) {
            slot.value.fetch_add(n, Ordering::Relaxed);
        }
    }

    fn gauge(&self, name: &'static str, value: u64) {
        if let Some(slot) = self.slot(name, Kind::Gauge) {
            slot.value.store(value, Ordering::Relaxed);
        }
    }

    fn time(&self, name: &'static str, nanos: u64) {
        if let Some(slot) = self.slot(name, Kind::Times) {
            let at = BOUNDS.partition_point(|b| *b < nanos);
            if let Some(bucket) = slot.buckets.get(at) {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
            slot.value.fetch_add(nanos, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn figures_of_many_threads_add_up() {
        let figures = Arc::new(Figures::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let f = figures.clone();
                std::thread::spawn(move || {
                    for i in 0..1000 {
                        f.count("a.b", 2);
                        f.time("a.t", i * 1000);
                    }
                    f.gauge("a.g", 7);
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let all = figures.all();
        let of = |name| all.iter().find(|f| f.name == name).unwrap();
        assert_eq!(of("a.b").value, 8000);
        assert_eq!(of("a.g").value, 7);
        let t = of("a.t");
        assert_eq!(t.value, 4 * 999 * 1000 / 2 * 1000);
        assert_eq!(t.buckets.iter().sum::<u64>(), 4000);
        assert_eq!(t.buckets[0], 4 * 11, "0 to 10 us, both among them");
        assert_eq!(of("metrics.lost").value, 0);
    }

    #[test]
    fn names_beyond_the_table_are_counted_as_lost() {
        let figures = Figures::default();
        for i in 0..SLOTS + 3 {
            let name: &'static str = Box::leak(format!("n{i}").into_boxed_str());
            figures.count(name, 1);
        }
        let all = figures.all();
        assert_eq!(all.len(), SLOTS + 1);
        let lost = all.iter().find(|f| f.name == "metrics.lost").unwrap();
        assert_eq!(lost.value, 3);
    }
}
