//! The table of a run.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::findings::{Findings, Kind};
use crate::load::Counts;
use crate::nemesis::{Event, Record};

/// Median and worst, in seconds.
pub fn spread(pauses: &[Duration]) -> (f64, f64) {
    let mut sorted: Vec<f64> = pauses.iter().map(Duration::as_secs_f64).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |n: usize| sorted.get(n).copied().unwrap_or_default();
    (
        at(sorted.len().saturating_sub(1) / 2),
        at(sorted.len().saturating_sub(1)),
    )
}

/// Whether every bar that a run can be held to was kept.
pub fn bars_kept(records: &[Record]) -> bool {
    by_event(records).iter().all(|(event, pauses)| {
        let (median, worst) = spread(pauses);
        event.bar().is_none_or(|(m, w)| median <= m && worst <= w)
    })
}

fn by_event(records: &[Record]) -> BTreeMap<Event, Vec<Duration>> {
    let mut by: BTreeMap<Event, Vec<Duration>> = BTreeMap::new();
    for r in records {
        by.entry(r.event).or_default().push(r.pause);
    }
    by
}

/// The table, as Markdown.
pub fn table(records: &[Record]) -> String {
    let mut out = table_of(&by_event(records));
    let others = records.first().map_or(0, |r| r.beside.len());
    for n in 0..others {
        let mut by: BTreeMap<Event, Vec<Duration>> = BTreeMap::new();
        let mut name = "";
        for r in records {
            if let Some((of, pause)) = r.beside.get(n) {
                by.entry(r.event).or_default().push(*pause);
                name = of;
            }
        }
        // Writing to a string cannot fail.
        let _ = write!(out, "\n{name}:\n\n{}", table_of(&by));
    }
    out
}

fn table_of(by: &BTreeMap<Event, Vec<Duration>>) -> String {
    let mut out = String::from(
        "| event | count | pause, median s | worst s | bar: median, worst |\n|---|--:|--:|--:|---|\n",
    );
    for (event, pauses) in by {
        let (median, worst) = spread(pauses);
        let bar = match event.bar() {
            None => String::new(),
            Some((m, w)) if median <= m && worst <= w => format!("{m}, {w}: kept"),
            Some((m, w)) => format!("{m}, {w}: NOT kept"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {median:.2} | {worst:.2} | {bar} |",
            event.name(),
            pauses.len()
        );
    }
    out
}

/// What the load did, and what it found.
pub fn summary(counts: &Counts, findings: &Findings, reigns: usize) -> String {
    let n = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    let mut out = format!(
        "{} durable writes, {} changes of names, {} lock calls, {} blocks read and compared; {} old \
         calls repeated; {} COMMITs that asked for the data again; {reigns} reigns\n\
         {} connections ended, {} refused, {} not made for another reason; {} calls refused while \
         a pool was full\n",
        n(&counts.writes),
        n(&counts.names),
        n(&counts.locks),
        n(&counts.reads),
        n(&counts.replays),
        n(&counts.resent),
        n(&counts.reconnects),
        n(&counts.refused),
        n(&counts.unreachable),
        n(&counts.no_space),
    );
    let c = |k| findings.count(k);
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "lost {}, ESTALE {}, EIO {}, not once {}, locks {}, two active {}, hangs {}, other answers {}, not whole \
         in time {}, programs beside {}, left behind {}",
        c(Kind::Lost),
        c(Kind::Stale),
        c(Kind::Io),
        c(Kind::NotOnce),
        c(Kind::Lock),
        c(Kind::TwoActive),
        c(Kind::Hang),
        c(Kind::Answer),
        c(Kind::NotWhole),
        c(Kind::Beside),
        c(Kind::Leak),
    );
    out
}

/// One event, as it is told while the run goes on.
pub fn line(n: usize, of: usize, r: &Record) -> String {
    let steps: Vec<String> = r
        .timeline
        .iter()
        .map(|(what, ms)| format!("{what} {ms:.0}"))
        .collect();
    let beside: String = (r.beside.iter())
        .map(|(name, pause)| format!("{name} {:.2} s, ", pause.as_secs_f64()))
        .collect();
    format!(
        "{n:>3}/{of} {:<30} {} > {}  pause {:>5.2} s, {beside}whole after {:>5.1} s  {}{}",
        r.event.name(),
        r.nodes.0,
        r.nodes.1,
        r.pause.as_secs_f64(),
        r.whole_after.as_secs_f64(),
        match steps.is_empty() {
            true => String::new(),
            false => format!("[ms: {}]", steps.join(", ")),
        },
        match (r.refused, r.findings) {
            (0, 0) => String::new(),
            (n, 0) => format!("  {n} refused"),
            (_, n) => format!("  {n} FINDINGS"),
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event, ms: u64) -> Record {
        Record {
            event,
            nodes: ("n1".into(), "n2".into()),
            pause: Duration::from_millis(ms),
            whole_after: Duration::ZERO,
            timeline: Vec::new(),
            refused: 0,
            beside: Vec::new(),
            findings: 0,
        }
    }

    #[test]
    fn median_worst_and_bars() {
        let ms = |m: &[u64]| {
            m.iter()
                .map(|m| Duration::from_millis(*m))
                .collect::<Vec<_>>()
        };
        assert_eq!(spread(&ms(&[300, 100, 200])), (0.2, 0.3));
        assert_eq!(spread(&ms(&[100, 200])), (0.1, 0.2));
        assert_eq!(spread(&[]), (0.0, 0.0));
        let good = [record(Event::Move, 200), record(Event::Pause, 90_000)];
        assert!(bars_kept(&good));
        let bad = [record(Event::Move, 200), record(Event::Move, 1001)];
        assert!(!bars_kept(&bad));
        assert!(table(&bad).contains("NOT kept"));
    }
}
