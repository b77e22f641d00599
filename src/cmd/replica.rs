//! `trivet replica`, `trivet resync`: who keeps a volume, and how fast one catches up.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use trivet_node::messages::{Answer, Ask, Change, ChangeKind, Changed};

use super::cluster::{Cluster, ClusterArgs};
use super::role::{confirm, holder};
use super::status::active;
use crate::error::CliError;
use crate::output::{self, Format, Table};
use crate::size::Size;

/// A node makes a region, and the members store the new record, within this time.
const CHANGE: Duration = Duration::from_secs(150);
/// A question that needs no disk.
const QUICK: Duration = Duration::from_secs(30);
/// How often is looked while waiting.
const LOOK: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ReplicaCmd {
    /// Show who keeps a volume
    #[command(visible_alias = "l")]
    List(ListArgs),
    /// Have one node more keep a volume
    #[command(visible_alias = "c", alias = "create")]
    Add(AddArgs),
    /// Have a node keep a volume no longer; what it kept is thrown away
    #[command(visible_alias = "d", alias = "delete")]
    Remove(RemoveArgs),
    /// Have a node keep a volume in the place of another one
    #[command(visible_alias = "m", alias = "replace")]
    Move(MoveArgs),
}

/// Of which volume.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume [default: all]
    volume: Option<String>,
}

/// How to go about it.
#[derive(Debug, Args)]
pub struct Manner {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Wait until the new one has everything and the old one is gone
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait, at most
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub timeout: u64,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Of which volume, where.
#[derive(Debug, Args)]
pub struct AddArgs {
    #[command(flatten)]
    manner: Manner,
    /// Name of the volume
    volume: String,
    /// Where
    #[arg(value_name = "NODE[:POOL]")]
    node: String,
    /// One that votes and keeps no data
    #[arg(long)]
    witness: bool,
}

/// Of which volume, from where.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    manner: Manner,
    /// Name of the volume
    volume: String,
    /// Which node
    node: String,
}

/// Of which volume, from where, to where.
#[derive(Debug, Args)]
pub struct MoveArgs {
    #[command(flatten)]
    manner: Manner,
    /// Name of the volume
    volume: String,
    /// To where
    #[arg(value_name = "NODE[:POOL]")]
    node: String,
    /// From which node [default: the one that is dead]
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
}

/// How fast.
#[derive(Debug, Args)]
pub struct ResyncArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Bytes per second that it copies at most, such as 50M; in force at once, until the volume is
    /// active elsewhere (for longer: `resync_mib` in the configuration)
    #[arg(long, value_name = "SIZE")]
    rate: Size,
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub fn run(cmd: &ReplicaCmd, format: Format) -> Result<(), CliError> {
    let split = |given: &str| match given.split_once(':') {
        Some((node, pool)) => (node.to_owned(), Some(pool.to_owned())),
        None => (given.to_owned(), None),
    };
    let (manner, volume, what) = match cmd {
        ReplicaCmd::List(args) => return list(args, format),
        ReplicaCmd::Add(a) => {
            let (node, pool) = split(&a.node);
            let witness = a.witness;
            let what = ChangeKind::Add {
                node,
                pool,
                witness,
            };
            (&a.manner, &a.volume, what)
        }
        ReplicaCmd::Remove(a) => {
            let node = a.node.clone();
            (&a.manner, &a.volume, ChangeKind::Remove { node })
        }
        ReplicaCmd::Move(a) => {
            let (node, pool) = split(&a.node);
            let from = a.from.clone();
            (&a.manner, &a.volume, ChangeKind::Move { from, node, pool })
        }
    };
    change(manner, volume, what, format)
}

fn change(manner: &Manner, volume: &str, what: ChangeKind, format: Format) -> Result<(), CliError> {
    let cluster = manner.cluster.open()?;
    let seen = cluster.report()?;
    let at = holder(&seen, volume).unwrap_or_else(|| seen.by.clone());
    let ask = |dry_run| -> Result<Changed, CliError> {
        let (volume, what) = (volume.to_owned(), what.clone());
        let ask = Ask::Change(Change {
            volume,
            what,
            dry_run,
        });
        match cluster.ask(&at, &ask, CHANGE)? {
            Answer::Changed(c) => Ok(c),
            _ => Err(CliError::failed("an answer to another question")),
        }
    };
    // Refused before anybody is asked anything.
    let planned = ask(true)?;
    if manner.dry_run {
        return output::print(format, &planned, |c| format!("would: {}\n", c.what));
    }
    let adds = matches!(what, ChangeKind::Add { .. });
    if !adds && !manner.yes {
        confirm(&planned.what)?;
    }
    let done = ask(false)?;
    if manner.wait {
        wait(&cluster, volume, &done, Duration::from_secs(manner.timeout))?;
    }
    output::print(format, &done, |c| {
        let more = match (c.new, manner.wait) {
            (Some(_), false) => "; `trivet status` shows how far it is",
            _ => "",
        };
        format!("{}{more}\n", c.what)
    })
}

/// Until the new member is in sync, or votes, and the old one is none any more.
fn wait(
    cluster: &Cluster,
    volume: &str,
    done: &Changed,
    patience: Duration,
) -> Result<(), CliError> {
    let deadline = Instant::now() + patience;
    loop {
        let seen = cluster.report()?;
        let there = active(&seen, volume).is_some_and(|(_, a)| {
            let witness = |k| k == trivet_protocol::MemberKind::Witness;
            let new = done.new.is_none_or(|id| {
                let m = a.members.iter().find(|m| m.id == id);
                m.is_some_and(|m| m.up && (m.in_sync || witness(m.kind)))
            });
            let old = done
                .old
                .is_some_and(|id| a.members.iter().any(|m| m.id == id));
            new && !old
        });
        if there {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(CliError::failed(format_args!(
                "begun, and not complete after {} s: {}",
                patience.as_secs(),
                done.what
            ))
            .hint("it goes on by itself; look at `trivet status`"));
        }
        // Nothing tells when it is there: it is asked for.
        std::thread::sleep(LOOK);
    }
}

fn list(args: &ListArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let mut rows = Vec::new();
    for v in &cluster.config.volumes {
        if args.volume.as_ref().is_some_and(|wanted| *wanted != v.name) {
            continue;
        }
        if let Some((_, a)) = active(&seen, &v.name) {
            let of = a.members.iter().map(|m| (v.name.clone(), m.clone()));
            rows.extend(of);
        }
    }
    output::print(format, &rows, |rows| {
        let mut t = Table::new(&["volume", "node", "kind", "state", "id"]);
        for (volume, m) in rows {
            let kind = format!("{:?}", m.kind).to_lowercase();
            t.row([
                volume.clone(),
                m.node.clone(),
                kind,
                super::status::member_state(m),
                m.id.to_string(),
            ]);
        }
        t.render()
    })
}

/// Changes the rate of resyncs.
///
/// # Errors
/// Why it was not done.
pub fn resync(args: &ResyncArgs, format: Format) -> Result<(), CliError> {
    if args.rate.bytes() == 0 {
        return Err(CliError::usage("a rate of 0 would never end").hint("give at least 1"));
    }
    let cluster = args.cluster.open()?;
    let seen = cluster.report()?;
    let at = holder(&seen, &args.volume).unwrap_or_else(|| seen.by.clone());
    let ask = Ask::ResyncRate {
        volume: args.volume.clone(),
        bytes_per_second: args.rate.bytes(),
    };
    cluster.ask(&at, &ask, QUICK)?;
    output::print(format, &args.rate.bytes(), |rate| {
        format!("resyncs of {} copy at most {rate} bytes/s\n", args.volume)
    })
}
