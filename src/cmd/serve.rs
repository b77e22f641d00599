//! `trivet serve`: the daemon of one node, in the foreground.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;
use trivet_cluster::Host;
use trivet_downstairs::server::Listen;
use trivet_node::control::Control;
use trivet_node::guard::Guard;
use trivet_node::metrics::{Figures, Http};
use trivet_node::{Config, Node, State, supervisor};
use trivet_protocol::Recorder;

use super::cluster::{ClusterArgs, failed};
use super::downstairs::failed as cluster_failed;
use crate::error::CliError;
use crate::notify::Manager;
use crate::output::{self, Format};
use crate::stop::Stop;

/// Which node, with what.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of this node in the configuration [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What the node remembers across restarts
    #[arg(long, value_name = "DIR", default_value = "/var/lib/trivet")]
    state: PathBuf,
    /// Run without the parent process that hands the leases of a dead daemon back
    #[arg(long)]
    no_supervisor: bool,
    /// This is the daemon itself; its standard input leads to its supervisor
    #[arg(long, hide = true)]
    supervised: bool,
}

#[derive(Debug, Serialize)]
struct Ready {
    event: &'static str,
    node: String,
    address: String,
    members: usize,
    problems: Vec<String>,
}

/// Runs until a signal.
///
/// # Errors
/// What does not start, and why.
pub fn run(args: ServeArgs, format: Format) -> Result<(), CliError> {
    let stop = Stop::on_signals()?;
    more_files();
    flush_io();
    if !args.supervised && !args.no_supervisor {
        return supervise(&args, &stop);
    }
    let manager = Manager::of_this_process();
    if let Some(manager) = &manager {
        manager
            .keep_telling(&stop)
            .map_err(|e| CliError::failed(format_args!("cannot tell systemd: {e}")))?;
    }
    let mut guard = Guard::none();
    if args.supervised {
        let parent = std::io::stdin().as_fd().try_clone_to_owned();
        guard =
            Guard::new(parent.map_err(|e| {
                CliError::failed(format_args!("cannot talk to the supervisor: {e}"))
            })?);
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|e| CliError::failed(format_args!("cannot watch the parent: {e}")))?;
    }
    let state = State::open(&args.state).map_err(|e| failed(&e))?;
    let config = load(&args.cluster.config, &args.state, &state)?;
    let name = args.node.unwrap_or_else(host_name);
    let security = config.security(&args.cluster.key).map_err(|e| failed(&e))?;
    let figures = Arc::new(Figures::default());
    let recorder: Arc<dyn Recorder> = figures.clone();
    let node = Node::new(
        &name,
        config,
        security.clone(),
        state,
        recorder.clone(),
        guard,
    )
    .map_err(|e| failed(&e))?;
    let listen = node.listen().map_err(|e| failed(&e))?;
    let listen = Listen {
        security,
        calls: Some(Arc::new(Control::new(&node))),
        ..Listen::plain(listen, recorder)
    };
    let host = Host::start(listen, &node.pools()).map_err(|e| cluster_failed(&e))?;
    let ready = Ready {
        event: "ready",
        node: name,
        address: host.address().to_string(),
        members: host.served().len(),
        problems: host.problems().iter().map(ToString::to_string).collect(),
    };
    node.start(host).map_err(|e| failed(&e))?;
    let metrics = node.me().and_then(|n| n.metrics);
    let http = metrics
        .map(|at| Http::start(at, &node, figures))
        .transpose();
    let http = match http {
        Ok(http) => http,
        Err(e) => {
            node.stop();
            return Err(failed(&e));
        }
    };
    output::print(format, &ready, text)?;
    if let Some(manager) = &manager {
        manager.ready(&text(&ready));
    }
    let mut read = Configured::now(&args.cluster.config);
    while !stop.wait_for(LOOK) {
        read.follow(&node);
    }
    tracing::info!("asked to end");
    drop(http);
    node.stop();
    tracing::info!("roles given up; the regions are closed");
    let closed = match Arc::into_inner(node).and_then(Node::into_host) {
        Some(host) => host.close().map_err(|e| cluster_failed(&e)),
        None => Ok(()),
    };
    tracing::info!("ended");
    closed
}

/// As many open files as the system grants: a connection of a client is two of them, one here and
/// one at the supervisor.
pub fn more_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, limit = limit.current, "no more open files than that");
    }
}

/// Tells the kernel that other processes' page-outs go through this one, so that memory which it
/// asks for is never waited for by way of itself (a mount of the export on this very host). Threads
/// and children made from now on inherit it. It takes CAP_SYS_RESOURCE, which nobody in an
/// unprivileged container has; `trivet doctor` says where it is missing.
fn flush_io() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::info!(%error, "not an IO flusher: short of memory it may wait for its own export");
    }
}

/// Runs this very command again as the daemon, and looks after it.
fn supervise(args: &ServeArgs, stop: &Stop) -> Result<(), CliError> {
    let state = State::open(&args.state).map_err(|e| failed(&e))?;
    let config = load(&args.cluster.config, &args.state, &state)?;
    let security = config.security(&args.cluster.key).map_err(|e| failed(&e))?;
    // The program as it was started, also after an upgrade has replaced the file.
    let program = PathBuf::from("/proc/self/exe");
    let command = || {
        let mut command = Command::new(&program);
        command.arg0("trivet");
        command
            .args(std::env::args_os().skip(1))
            .arg("--supervised");
        command
    };
    // As of when it is needed: nodes come and go while the daemon runs.
    let latest = || {
        let read = load(&args.cluster.config, &args.state, &state);
        let key = |c: &Config| c.security(&args.cluster.key).map_err(|e| failed(&e));
        match read.and_then(|c| key(&c).map(|s| (c, s))) {
            Ok(latest) => latest,
            Err(error) => {
                tracing::warn!(%error, "going by the configuration of the start");
                (config.clone(), security.clone())
            }
        }
    };
    let status = supervisor::run(command, latest, stop.flag()).map_err(|e| failed(&e))?;
    match status.success() {
        true => Ok(()),
        false => Err(CliError::failed(format_args!(
            "the daemon ended with {status}"
        ))),
    }
}

/// How often the configuration's file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The configuration's file, as it was last read: time, length and file number.
struct Configured {
    path: PathBuf,
    last: Option<(SystemTime, u64, u64)>,
    /// What was wrong with a newer one.
    told: Option<String>,
}

impl Configured {
    fn now(path: &Path) -> Configured {
        Configured {
            path: path.to_path_buf(),
            last: stamp(path),
            told: None,
        }
    }

    /// Puts it in force if it has changed. What makes no sense, or cannot be done yet, is said
    /// once, changes nothing, and is tried again; a file that is not there (`/etc/pve`, at times)
    /// is waited for.
    fn follow(&mut self, node: &Arc<Node>) {
        let stamp = stamp(&self.path);
        if stamp.is_none() || stamp == self.last {
            return;
        }
        match Config::load(&self.path).and_then(|c| node.reload(c)) {
            Ok(()) => (self.last, self.told) = (stamp, None),
            Err(error) => {
                let error = error.to_string();
                if self.told.as_ref() != Some(&error) {
                    tracing::error!(error, "the configuration stays as it was");
                    self.told = Some(error);
                }
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64, u64)> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.modified().ok()?, m.len(), m.ino()))
}

/// The configuration, or the last good copy of it where it is not there (`/etc/pve` is not, before
/// its cluster is up).
fn load(path: &Path, dir: &Path, state: &State) -> Result<Config, CliError> {
    match Config::load(path) {
        Ok(config) => {
            state.keep_config(&config).map_err(|e| failed(&e))?;
            Ok(config)
        }
        Err(e) => {
            let copy = dir.join(trivet_node::state::CONFIG_COPY);
            match Config::load(&copy) {
                Ok(config) => {
                    let copy = copy.display();
                    tracing::warn!(error = %e, %copy, "starting from the last good copy");
                    Ok(config)
                }
                Err(_) => Err(failed(&e)),
            }
        }
    }
}

/// This host's name, without its domain.
pub fn host_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn text(r: &Ready) -> String {
    let mut out = format!(
        "ready: node {} on {}, members: {}\n",
        r.node, r.address, r.members
    );
    for p in &r.problems {
        out.push_str(&format!("problem: {p}\n"));
    }
    out
}
