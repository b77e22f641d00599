//! `trivet scrub`: reads all copies of a volume and compares them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use trivet_cluster::{Embedded, Options};
use trivet_node::messages::{ActiveReport, Answer, Ask, ScrubAsk, ScrubReport};
use trivet_replica::upstairs::Status;

use super::cluster::{Cluster, ClusterArgs};
use super::downstairs::failed as cluster_failed;
use super::region::{bar, told};
use super::role::holder;
use super::status::active;
use crate::error::CliError;
use crate::output::{self, Format};
use crate::size::Size;
use crate::stop::Stop;

/// A question that needs no disk.
const QUICK: Duration = Duration::from_secs(30);
/// How often is looked while waiting.
const LOOK: Duration = Duration::from_millis(300);
/// Replicas on this machine are in sync again after this long, or not waited for.
const JOINING: Duration = Duration::from_secs(10);
/// The scrub is not seen for so long, and the wait is given up. What other nodes are like is heard
/// of a little later.
const UNHEARD: Duration = Duration::from_secs(15);

/// Of what, and how.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume, which is active somewhere and stays in use
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    volume: Option<String>,
    /// Directory of the three replicas, as `up` was given, which is not in use
    #[arg(long, value_name = "DIR", conflicts_with_all = ["stop", "detach"])]
    dir: Option<PathBuf>,
    /// Bytes per second that are read of each replica at most; also of a scrub that goes on
    #[arg(long, value_name = "SIZE", default_value = "50M")]
    rate: Size,
    /// Do not wait for its end; `trivet status VOLUME` shows how far it is
    #[arg(long)]
    detach: bool,
    /// End the one that goes on
    #[arg(long, conflicts_with = "detach")]
    stop: bool,
}

/// Does it.
///
/// # Errors
/// It cannot be begun, does not come to its end, or leaves bad copies.
pub fn run(args: &ScrubArgs, format: Format) -> Result<(), CliError> {
    if args.rate.bytes() == 0 {
        return Err(CliError::usage("a rate of 0 would never end").hint("give at least 1"));
    }
    match (&args.volume, &args.dir) {
        (Some(volume), None) => in_cluster(args, volume, format),
        (None, Some(dir)) => alone(dir, args.rate.bytes(), format),
        _ => Err(CliError::usage(
            "a volume or a directory is needed, not both",
        )),
    }
}

fn in_cluster(args: &ScrubArgs, volume: &str, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let at = holder(&seen, volume).unwrap_or_else(|| seen.by.clone());
    let what = match args.stop {
        true => ScrubAsk::Stop,
        false => ScrubAsk::Start(args.rate.bytes()),
    };
    let volume_name = volume.to_owned();
    let ask = Ask::Scrub {
        volume: volume_name,
        what,
    };
    let Answer::Scrub(begun) = cluster.ask(&at, &ask, QUICK)? else {
        return Err(CliError::failed("an answer to another question"));
    };
    if args.stop {
        return output::print(format, &begun, |r| {
            format!("scrub of {volume}: {}\n", r.outcome())
        });
    }
    if args.detach {
        return output::print(format, &begun, |_| {
            format!("scrub of {volume}: begun; `trivet status {volume}` shows how far it is\n")
        });
    }
    let (report, active) = wait(&cluster, volume, begun.id)?;
    finish(volume, &report, format, |id| {
        let member = active.members.iter().find(|m| m.id.to_string() == id);
        member.map_or_else(|| id.to_owned(), |m| m.node.clone())
    })
}

fn wait(cluster: &Cluster, volume: &str, id: u64) -> Result<(ScrubReport, ActiveReport), CliError> {
    let stop = Stop::on_signals()?;
    let bar = bar("scrub");
    let mut tell = told(&bar);
    let mut heard = Instant::now();
    loop {
        let seen = cluster.report()?;
        let found = active(&seen, volume).and_then(|(_, a)| Some((a.scrub.clone()?, a.clone())));
        if let Some((scrub, active)) = found.filter(|(s, _)| s.id == id) {
            heard = Instant::now();
            tell(scrub.place, scrub.size);
            if !scrub.running {
                bar.finish_and_clear();
                return Ok((scrub, active));
            }
        } else if heard.elapsed() > UNHEARD {
            let why = format_args!("the scrub of {volume} ended with its reign, or is not heard");
            return Err(CliError::failed(why).hint(format!(
                "look at `trivet status {volume}`, and begin again: trivet scrub {volume}"
            )));
        }
        if stop.asked() {
            let why = format!("not waited for; the scrub of {volume} goes on");
            return Err(CliError::failed(why).hint(format!("trivet scrub {volume} --stop ends it")));
        }
        // Nothing tells of its progress: it is asked for.
        std::thread::sleep(LOOK);
    }
}

/// The three replicas of `trivet up`, while it does not run.
fn alone(dir: &Path, rate: u64, format: Format) -> Result<(), CliError> {
    let stop = Stop::on_signals()?;
    let embedded = Embedded::open(dir, Options::default()).map_err(|e| cluster_failed(&e))?;
    let volume = embedded.volume();
    let whole = |s: &Status| s.members.iter().all(|m| m.in_sync);
    let opened = Instant::now();
    while !whole(&volume.status()) && opened.elapsed() < JOINING && !stop.asked() {
        // The last one to be back joins by itself; who does not is said not to have been seen.
        std::thread::sleep(LOOK);
    }
    let begun = volume.with(|u, now| u.scrub(now, rate));
    begun.map_err(CliError::failed)?;
    let bar = bar("scrub");
    let mut tell = told(&bar);
    let status = loop {
        if stop.asked() {
            volume.with(|u, now| u.stop_scrub(now));
        }
        let status = volume.status();
        let Some(scrub) = status.scrub.clone() else {
            return Err(CliError::failed("the scrub is gone with the volume"));
        };
        tell(scrub.place, scrub.blocks);
        if !scrub.running {
            break status;
        }
        if let Some(why) = &status.stopped {
            return Err(CliError::failed(format_args!("the volume was lost: {why}")));
        }
        // Nothing tells of its progress: it is asked for.
        std::thread::sleep(LOOK);
    };
    bar.finish_and_clear();
    let names = status.members.clone();
    let report = status.scrub.map(ScrubReport::from).unwrap_or_default();
    // What was repaired is durable before this ends.
    let closed = embedded.close();
    closed.map_err(|e| cluster_failed(&e))?;
    finish(&dir.display().to_string(), &report, format, |id| {
        let member = names.iter().find(|m| m.id.to_string() == id);
        member.map_or_else(|| id.to_owned(), |m| m.node.clone())
    })
}

/// Prints what became of it; it is an error if it left something.
fn finish(
    what: &str,
    report: &ScrubReport,
    format: Format,
    node: impl Fn(&str) -> String,
) -> Result<(), CliError> {
    output::print(format, report, |r| text(what, r, &node))?;
    if report.stopped {
        return Err(CliError::failed(format_args!(
            "the scrub of {what} was stopped"
        )));
    }
    if report.left_blocks > 0 {
        let left = report.left_blocks;
        return Err(
            CliError::failed(format_args!("{left} blocks have a bad copy that stays"))
                .hint("docs/guides/what-to-do-when.md, \"A scrub leaves bad copies\""),
        );
    }
    match report.unseen.len() {
        0 => Ok(()),
        n => Err(
            CliError::failed(format_args!("{n} replicas were not looked at everywhere"))
                .hint("scrub again when all are in sync"),
        ),
    }
}

fn text(what: &str, r: &ScrubReport, node: impl Fn(&str) -> String) -> String {
    let mut out = format!("scrub of {what}: {}\n", r.outcome());
    for f in &r.findings {
        let members: Vec<String> = f.members.iter().map(|m| node(&m.to_string())).collect();
        let matter = match f.matter.as_str() {
            "damaged" => "does not match its checksum, or cannot be read, on",
            "differs" => "is not what most replicas hold on",
            "no_majority" => "differs, and nothing tells which copy is right, on",
            _ => "has no good copy on",
        };
        let last = f.block + f.count.max(1) - 1;
        let which = match f.count {
            1 => format!("block {}", f.block),
            _ => format!("blocks {} to {last}", f.block),
        };
        out.push_str(&format!("  {which}: {matter} {}\n", members.join(", ")));
    }
    let shown: u64 = r.findings.iter().map(|f| f.count).sum();
    if shown < r.wrong_blocks {
        out.push_str(&format!("  and {} blocks more\n", r.wrong_blocks - shown));
    }
    for (member, bytes) in &r.unseen {
        let node = node(&member.to_string());
        out.push_str(&format!("  {node}: {} MiB not looked at\n", bytes >> 20));
    }
    out
}
