//! Latencies in buckets that grow with the value: any percentile within 1.6 %, 18 KiB of memory.
//!
//! A value below 64 ns has a bucket of its own; each doubling above is cut into 64 buckets.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// Values from 2^41 ns (37 minutes) on share the last bucket.
const TOP_BIT: u32 = 40;
const BUCKETS: usize = SUB * (TOP_BIT - SUB_BITS + 2) as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; BUCKETS],
            total: 0,
            max: 0,
        }
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB as u64 {
        return nanos as usize;
    }
    let top = 63 - nanos.leading_zeros();
    if top > TOP_BIT {
        return BUCKETS - 1;
    }
    let sub = (nanos >> (top - SUB_BITS)) as usize & (SUB - 1);
    (top - SUB_BITS + 1) as usize * SUB + sub
}

/// Middle of a bucket, in nanoseconds.
fn middle(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let shift = (bucket / SUB - 1) as u32;
    let low = ((SUB + bucket % SUB) as u64) << shift;
    low + (1u64 << shift) / 2
}

impl Histogram {
    /// Counts one duration.
    pub fn add(&mut self, d: Duration) {
        let nanos = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether none was counted.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The longest one, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that a share `q` (0 to 1) of all did not exceed; zero if nothing was counted.
    pub fn percentile(&self, q: f64) -> Duration {
        let rank = (self.total as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(middle(i).min(self.max));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_percent_of_the_sorted_list() {
        let mut rng = crate::rng::Rng::new(7);
        let mut all: Vec<u64> = (0..20_000)
            .map(|_| rng.below(1 << (4 + rng.clone().below(34))))
            .collect();
        let mut h = Histogram::default();
        all.iter().for_each(|v| h.add(Duration::from_nanos(*v)));
        all.sort_unstable();
        for q in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = all[((all.len() as f64 * q).ceil() as usize).max(1) - 1] as f64;
            let got = h.percentile(q).as_nanos() as f64;
            assert!(
                (got - exact).abs() <= exact * 0.02 + 1.0,
                "{q}: {got} for {exact}"
            );
        }
        assert_eq!(h.max().as_nanos() as u64, *all.last().unwrap());
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let mut last = 0;
        for shift in 0..42u32 {
            for sub in 0..64u64 {
                let v = (64 + sub) << shift;
                let b = bucket(v);
                assert!(
                    b == last || b == last + 1 || shift == 0 && sub == 0,
                    "{v}: {b} after {last}"
                );
                last = b;
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::default().percentile(0.5), Duration::ZERO);
    }
}
