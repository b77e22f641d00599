//! The figures: medians over the runs, in the form that `-o json` prints.
//!
//! Field names and units are a promise to scripts: fields are only ever added.

use std::time::Duration;

use serde::Serialize;

use crate::load::Sample;

/// One measurement of one workload.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What the volume did.
    pub sample: Sample,
    /// Processor time of all processes while it did.
    pub cpu: Duration,
    /// Bytes that one replica's disk got per byte written, until everything was in place.
    pub bytes_written_ratio: Option<f64>,
    /// What it is compared with, in operations per second; 0: with nothing.
    pub limit: f64,
}

/// The line of one workload: medians over the runs.
#[derive(Clone, Debug, Serialize)]
pub struct ResultRow {
    /// Name of the workload.
    pub workload: String,
    /// Operations per second.
    pub per_second: f64,
    /// The same in MiB/s.
    pub mib_per_second: f64,
    /// What it is compared with, in operations per second; null if with nothing.
    pub limit: Option<f64>,
    /// `per_second / limit`; null likewise.
    pub ratio: Option<f64>,
    /// Latency that half of the operations did not exceed.
    pub p50_us: f64,
    /// Likewise 99 of 100.
    pub p99_us: f64,
    /// Likewise 999 of 1000.
    pub p999_us: f64,
    /// Longest time in any run during which nothing completed.
    pub longest_gap_ms: f64,
    /// Processor time per operation, summed over all processes.
    pub cpu_us_per_op: f64,
    /// Bytes that reached one replica's disk per byte written; null for reads.
    pub bytes_written_ratio: Option<f64>,
    /// `per_second` of each run, in their order.
    pub runs: Vec<f64>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// What was measured, in words.
    pub subject: String,
    /// Runs, of which medians are shown.
    pub runs: u32,
    /// Seconds per workload and run, at least.
    pub seconds: f64,
    /// Bytes over which small operations are spread.
    pub working_set_bytes: u64,
    /// Bytes of one sequential write.
    pub stream_bytes: u64,
    /// Seed of places and content.
    pub seed: u64,
    /// Processors of this machine.
    pub cores: usize,
}

/// Everything that `trivet bench volume -o json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One row per workload.
    pub results: Vec<ResultRow>,
    /// How.
    pub setup: Setup,
}

/// The middle one (the mean of the two middle ones) of some figures; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => (all[n / 2 - 1] + all[n / 2]) / 2.0,
        n => all[n / 2],
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl ResultRow {
    /// Sums up the runs of one workload.
    pub fn of(workload: &str, runs: &[Measured]) -> ResultRow {
        let mid = |f: &dyn Fn(&Measured) -> f64| rounded(median(runs.iter().map(f)));
        let us = |q: f64| mid(&|m| m.sample.latency.percentile(q).as_secs_f64() * 1e6);
        let per_second = mid(&|m| m.sample.per_second());
        let limit = mid(&|m| m.limit);
        let gap = runs.iter().map(|m| m.sample.longest_gap).max();
        let written: Vec<f64> = runs.iter().filter_map(|m| m.bytes_written_ratio).collect();
        ResultRow {
            workload: workload.to_owned(),
            per_second,
            mib_per_second: mid(&|m| {
                m.sample.bytes as f64
                    / f64::from(1 << 20)
                    / m.sample.elapsed.as_secs_f64().max(1e-9)
            }),
            limit: (limit > 0.0).then_some(limit),
            ratio: (limit > 0.0).then(|| rounded(per_second / limit)),
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            longest_gap_ms: rounded(gap.unwrap_or_default().as_secs_f64() * 1e3),
            cpu_us_per_op: mid(&|m| {
                m.cpu.as_secs_f64() * 1e6 / (m.sample.operations as f64).max(1.0)
            }),
            bytes_written_ratio: (!written.is_empty()).then(|| rounded(median(written))),
            runs: runs
                .iter()
                .map(|m| rounded(m.sample.per_second()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_made_of_medians_and_the_worst_gap() {
        let run = |ops, gap, limit| Measured {
            sample: Sample {
                operations: ops,
                bytes: ops * 4096,
                elapsed: Duration::from_secs(1),
                longest_gap: Duration::from_millis(gap),
                ..Sample::default()
            },
            cpu: Duration::from_micros(ops * 10),
            bytes_written_ratio: Some(2.0),
            limit,
        };
        let row = ResultRow::of(
            "w",
            &[run(100, 5, 50.0), run(300, 9, 400.0), run(200, 1, 200.0)],
        );
        assert_eq!(
            (row.per_second, row.limit, row.ratio),
            (200.0, Some(200.0), Some(1.0))
        );
        assert_eq!((row.longest_gap_ms, row.cpu_us_per_op), (9.0, 10.0));
        assert_eq!(row.mib_per_second, 0.781);
        assert_eq!(row.runs, [100.0, 300.0, 200.0]);
        assert_eq!(median([4.0, 1.0]), 2.5);
    }
}
