//! `trivet client`, `trivet lock`, `trivet event`: who uses an export, what they hold, what happened.

use std::time::Duration;

use clap::Subcommand;
use trivet_node::messages::{Answer, Ask, ClientReport, Event, LockReport};

use super::cluster::{Cluster, ClusterArgs};
use super::role::{confirm, holder};
use crate::error::CliError;
use crate::output::{self, Format, Table};

const PATIENCE: Duration = Duration::from_secs(20);

/// What to do about clients.
#[derive(Debug, Subcommand)]
pub enum ClientCmd {
    /// Show who uses the export of a volume
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Name of the volume
        volume: String,
    },
}

/// What to do about locks.
#[derive(Debug, Subcommand)]
pub enum LockCmd {
    /// Show the locks held on the files of a volume
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Name of the volume
        volume: String,
    },
    /// Drop all locks of a client that is gone for good, so that others can have them
    Clear {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Name of the volume
        volume: String,
        /// The client's address, or the name that it calls itself
        client: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// What to do about events.
#[derive(Debug, Subcommand)]
pub enum EventCmd {
    /// Show what happened lately, on all nodes that answer
    List(ClusterArgs),
    /// The same, and what happens from now on
    Follow(ClusterArgs),
}

/// Does it.
///
/// # Errors
/// Why it cannot be told.
pub fn clients(args: &ClientCmd, format: Format) -> Result<(), CliError> {
    let ClientCmd::List { cluster, volume } = args;
    let cluster = cluster.open()?;
    let ask = Ask::Clients {
        volume: volume.clone(),
    };
    match at_holder(&cluster, volume, &ask)? {
        Answer::Clients(all) => output::print(format, &all, |all| client_table(all)),
        _ => Err(other()),
    }
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub fn locks(args: &LockCmd, format: Format) -> Result<(), CliError> {
    match args {
        LockCmd::List { cluster, volume } => {
            let cluster = cluster.open()?;
            let ask = Ask::Locks {
                volume: volume.clone(),
            };
            match at_holder(&cluster, volume, &ask)? {
                Answer::Locks(all) => output::print(format, &all, |all| lock_table(all)),
                _ => Err(other()),
            }
        }
        LockCmd::Clear {
            cluster,
            volume,
            client,
            yes,
        } => {
            let cluster = cluster.open()?;
            if !yes {
                confirm(&format!(
                    "{client} loses all its locks on {volume}; if it still runs, two may write to \
                     one disk image"
                ))?;
            }
            let ask = Ask::ClearLocks {
                volume: volume.clone(),
                client: client.clone(),
            };
            match at_holder(&cluster, volume, &ask)? {
                Answer::Cleared(n) => {
                    output::print(format, &n, |n| format!("{n} locks of {client} dropped\n"))
                }
                _ => Err(other()),
            }
        }
    }
}

/// Does it.
///
/// # Errors
/// No node answers.
pub fn events(args: &EventCmd, format: Format) -> Result<(), CliError> {
    let (args, follow) = match args {
        EventCmd::List(args) => (args, false),
        EventCmd::Follow(args) => (args, true),
    };
    let cluster = args.open()?;
    let mut seen = vec![0; cluster.config.nodes.len()];
    loop {
        let mut news: Vec<Event> = Vec::new();
        let mut answered = false;
        for (node, after) in cluster.config.nodes.iter().zip(&mut seen) {
            // A node that is down has nothing to tell.
            if let Ok(Answer::Events(events)) =
                cluster.ask(&node.name, &Ask::Events { after: *after }, PATIENCE)
            {
                answered = true;
                *after = events.last().map_or(*after, |e| e.number);
                news.extend(events);
            }
        }
        if !answered && !follow {
            return Err(CliError::unreachable("no node answers"));
        }
        news.sort_by_key(|e| e.at);
        if !follow || !news.is_empty() {
            output::print(format, &news, |news| event_lines(news))?;
        }
        if !follow {
            return Ok(());
        }
        // For the person who follows.
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn at_holder(cluster: &Cluster, volume: &str, ask: &Ask) -> Result<Answer, CliError> {
    let seen = cluster.report()?;
    let at = holder(&seen, volume).unwrap_or(seen.by);
    cluster.ask(&at, ask, PATIENCE)
}

fn other() -> CliError {
    CliError::failed("an answer to another question; are all nodes of the same version?")
}

fn client_table(all: &[ClientReport]) -> String {
    let mut t = Table::new(&[
        "client",
        "connections",
        "idle s",
        "locks",
        "files locked",
        "mounted",
    ]);
    for c in all {
        let idle = match c.idle_ms {
            u64::MAX => "-".into(),
            ms => (ms / 1000).to_string(),
        };
        t.row([
            c.address.to_string(),
            c.connections.to_string(),
            idle,
            c.locks.to_string(),
            c.files.to_string(),
            c.mounts.join(" "),
        ]);
    }
    t.render()
}

fn lock_table(all: &[LockReport]) -> String {
    let mut t = Table::new(&["file", "client", "address", "kind", "from", "to"]);
    for l in all {
        t.row([
            l.ino.to_string(),
            l.client.clone(),
            l.address.map_or("-".into(), |a| a.to_string()),
            if l.shared { "shared" } else { "exclusive" }.into(),
            l.start.to_string(),
            if l.end == u64::MAX {
                "-".into()
            } else {
                l.end.to_string()
            },
        ]);
    }
    t.render()
}

fn event_lines(events: &[Event]) -> String {
    let mut out = String::new();
    for e in events {
        let volume = e
            .volume
            .as_ref()
            .map_or(String::new(), |v| format!("{v}: "));
        out.push_str(&format!("{} {}: {volume}{}\n", e.at, e.node, e.text));
    }
    out
}
