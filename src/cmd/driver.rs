//! `trivet driver`: what a cluster manager calls where it decides which node is active
//! (`driver = "external"`): Pacemaker, a hookscript of Proxmox, a systemd unit.
//!
//! The exit codes are those of OCF resource agents, and all that a caller need look at:
//!
//! | code | `start` | `stop` | `monitor` |
//! |--:|---|---|---|
//! | 0 | it is active here | it is not active here | it is active here and holds its lease |
//! | 1 | it did not become active | that cannot be told for certain | active here, lease lapsed |
//! | 2 | wrong arguments | wrong arguments | wrong arguments |
//! | 6 | not configured as external | not configured | not configured as external |
//! | 7 | - | - | it is not active here |

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use trivet_node::config::{Driver, VolumeConfig};
use trivet_node::messages::{Answer, Ask, ClusterReport, Demote, Promote, Report, Standing};

use super::cluster::{Cluster, ClusterArgs};
use super::serve::host_name;
use super::status::of;
use crate::error::{CliError, Exit};
use crate::output::{self, Format};

/// One attempt to become active.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Between two attempts, and two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// A daemon that is well answers within this time.
const QUICK: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug, Subcommand)]
pub enum DriverCmd {
    /// Make this node the active one; a dead holder's lease is waited for
    Start(DriverArgs),
    /// Make sure that this node is not the active one
    Stop(DriverArgs),
    /// Tell by the exit code whether this node is the active one
    Monitor(DriverArgs),
}

/// Of which volume.
#[derive(Debug, Args)]
pub struct DriverArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// Name of this node in the configuration [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Seconds to try, in all
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

/// The volume on this node, as it was asked for.
struct Here<'a> {
    cluster: Cluster,
    args: &'a DriverArgs,
    node: String,
    deadline: Instant,
}

/// Does it.
///
/// # Errors
/// With the exit codes of the module's head.
pub fn run(cmd: &DriverCmd, format: Format) -> Result<(), CliError> {
    let (DriverCmd::Start(args) | DriverCmd::Stop(args) | DriverCmd::Monitor(args)) = cmd;
    let cluster = args
        .cluster
        .open()
        .map_err(|e| e.with_exit(Exit::NotConfigured))?;
    let here = Here {
        node: args.node.clone().unwrap_or_else(host_name),
        deadline: Instant::now() + Duration::from_secs(args.timeout),
        cluster,
        args,
    };
    let volume = here.configured()?;
    let external = match volume.driver {
        Driver::External => Ok(()),
        other => Err(CliError::failed(format_args!(
            "volume {} has driver = \"{other}\"",
            args.volume
        ))
        .hint("one decides, not two: set driver = \"external\" on all nodes")
        .with_exit(Exit::NotConfigured)),
    };
    match cmd {
        DriverCmd::Start(_) => external.and_then(|()| here.start(format)),
        DriverCmd::Stop(_) => here.stop(external, format),
        DriverCmd::Monitor(_) => external.and_then(|()| here.monitor(format)),
    }
}

impl Here<'_> {
    fn configured(&self) -> Result<&VolumeConfig, CliError> {
        let volume = self.cluster.config.volume(&self.args.volume);
        let node = self.cluster.config.node(&self.node);
        match (volume, node) {
            (Some(volume), Some(_)) => Ok(volume),
            (None, _) => Err(CliError::failed(format_args!(
                "the configuration names no volume {}",
                self.args.volume
            ))
            .with_exit(Exit::NotConfigured)),
            (_, None) => Err(CliError::failed(format_args!(
                "the configuration names no node {}",
                self.node
            ))
            .hint("say which one this is: --node NAME")
            .with_exit(Exit::NotConfigured)),
        }
    }

    fn say(&self, format: Format, what: &str) -> Result<(), CliError> {
        output::print(format, &what, |w| {
            format!("{} {w} on {}\n", self.args.volume, self.node)
        })
    }

    /// This node's own daemon's report.
    fn report(&self) -> Result<Report, CliError> {
        match self.cluster.ask(&self.node, &Ask::Report, QUICK)? {
            Answer::Report(report) => Ok(*report),
            _ => Err(CliError::failed("an answer to another question")),
        }
    }

    /// Whether it is active here, and the lease left.
    fn standing(&self) -> Result<Option<(Standing, u64)>, CliError> {
        let report = self.report()?;
        let mut volumes = report.volumes.into_iter();
        let v = volumes.find(|v| v.name == self.args.volume);
        Ok(v.map(|v| (v.role.standing, v.active.map_or(0, |a| a.lease_left_ms))))
    }

    fn start(&self, format: Format) -> Result<(), CliError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let ask = Ask::Promote(Promote {
                volume: self.args.volume.clone(),
                node: self.node.clone(),
                // Whoever decides has stopped it elsewhere, or knows that one to be dead.
                take: false,
                wait: true,
                timeout_ms: left.min(ATTEMPT).as_millis() as u64,
                accept_data_loss: false,
            });
            match self.cluster.ask(&self.node, &ask, left + QUICK) {
                Ok(Answer::Promoted(_)) => return self.say(format, "is active"),
                Ok(_) => return Err(CliError::failed("an answer to another question")),
                Err(e) if Instant::now() + PAUSE > self.deadline => {
                    return Err(e.with_exit(Exit::Failed));
                }
                // A holder that has just died is still believed for a moment.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn stop(&self, external: Result<(), CliError>, format: Format) -> Result<(), CliError> {
        let mut standing = self.standing();
        while let Ok(Some((Standing::Promoting | Standing::Demoting, _))) = &standing
            && Instant::now() + PAUSE < self.deadline
        {
            // It does one thing at a time; what it begins now it will have ended soon.
            std::thread::sleep(PAUSE);
            standing = self.standing();
        }
        match standing {
            Ok(Some((Standing::Active | Standing::Promoting | Standing::Demoting, _))) => {
                external?;
                let ask = Ask::Demote(Demote {
                    volume: self.args.volume.clone(),
                    elsewhere: false,
                });
                let left = self.deadline.saturating_duration_since(Instant::now());
                let done = self.cluster.ask(&self.node, &ask, left + QUICK);
                match self.standing() {
                    Ok(Some((Standing::Standby | Standing::None, _))) => {}
                    _ => return done.and_then(|_| self.gone_by_the_members(format)),
                }
            }
            Ok(_) => {}
            // A daemon that does not answer serves nothing once its lease has run out.
            Err(_) => return self.gone_by_the_members(format),
        }
        self.say(format, "is not active")
    }

    /// Waits until no member is promised to this node any more (invariant 2: it then answers
    /// nothing, whatever is wrong with it).
    fn gone_by_the_members(&self, format: Format) -> Result<(), CliError> {
        loop {
            let seen = self.cluster.report();
            let held = seen.as_ref().ok().map(|s| self.held(s));
            match held {
                Some(Some(false)) => return self.say(format, "is not active"),
                _ if Instant::now() > self.deadline => {
                    return Err(CliError::failed(format_args!(
                        "whether {} is still active on {} cannot be told: {}",
                        self.args.volume,
                        self.node,
                        match seen {
                            Err(e) => e.to_string(),
                            Ok(_) => "no majority of its members says that it is not".into(),
                        }
                    )));
                }
                // Leases run out by themselves: nothing tells when they have.
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Whether a majority of members might hold it for this node; none if too few are heard.
    fn held(&self, seen: &ClusterReport) -> Option<bool> {
        let volume = &self.args.volume;
        let fresh = seen.nodes.iter().filter(|n| n.trouble.is_none());
        let members: Vec<_> = fresh
            .filter_map(|n| of(n, volume))
            .flat_map(|v| &v.members)
            .filter(|m| !m.removed)
            .collect();
        let record = members
            .iter()
            .map(|m| &m.record)
            .max_by_key(|r| r.version)?;
        let free = members
            .iter()
            .filter(|m| m.lease_left_ms == 0 || m.holder != self.node)
            .map(|m| m.id)
            .collect();
        Some(!record.is_majority(&free)).filter(|_| {
            let heard = members.iter().map(|m| m.id).collect();
            record.is_majority(&heard)
        })
    }

    fn monitor(&self, format: Format) -> Result<(), CliError> {
        match self.standing() {
            Ok(Some((Standing::Active, 1..))) => self.say(format, "is active"),
            Ok(Some((Standing::Active, 0))) => Err(CliError::failed(format_args!(
                "{} is active on {} without a lease: it answers nothing",
                self.args.volume, self.node
            ))),
            Ok(_) => Err(CliError::failed(format_args!(
                "{} is not active on {}",
                self.args.volume, self.node
            ))
            .with_exit(Exit::NotRunning)),
            Err(e) => Err(e.with_exit(Exit::NotRunning)),
        }
    }
}
