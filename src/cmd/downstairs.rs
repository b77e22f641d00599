//! `trivet downstairs run`: serves the regions of this node's pools, in the foreground.
//!
//! Says `ready` on standard output when it serves. SIGTERM and Ctrl-C close the regions in order;
//! SIGUSR1 moves the logs to the extent files, as before copying a pool, and says `settled`;
//! SIGHUP reads the list of peers again, looks for regions and witnesses made in the pools since,
//! serves them, and says `ready` again.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use signal_hook::consts::{SIGHUP, SIGUSR1};
use signal_hook::iterator::Signals;
use trivet_cluster::process::Said;
use trivet_cluster::{ClusterError, Host};
use trivet_downstairs::server::Listen;
use trivet_protocol::{NullRecorder, Recorder};
use trivet_transport::Security;

use super::key::IdentityArgs;
use crate::error::CliError;
use crate::output::Format;
use crate::stop::Stop;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Downstairs {
    /// Serve every region and witness in the given pools until SIGTERM
    Run(RunArgs),
}

/// Where, and what.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7100")]
    listen: SocketAddr,
    /// Directory with regions; repeatable
    #[arg(long = "pool", value_name = "DIR", required = true)]
    pools: Vec<PathBuf>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// End in order when the process that started this one ends
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

/// Serves.
///
/// # Errors
/// A pool is missing or in use, the address is taken, or closing a region failed.
pub fn run(args: Downstairs, format: Format) -> Result<(), CliError> {
    let Downstairs::Run(args) = args;
    let stop = Stop::on_signals()?;
    if args.end_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|e| CliError::failed(format_args!("cannot watch the parent: {e}")))?;
    }
    let mut asked = Signals::new([SIGUSR1, SIGHUP])
        .map_err(|e| CliError::failed(format_args!("cannot listen for signals: {e}")))?;
    let recorder: Arc<dyn Recorder> = Arc::new(NullRecorder);
    let identity = args.identity;
    let security = identity.security().map_err(CliError::failed)?;
    may_host(&security)?;
    let listen = Listen {
        security: security.clone(),
        ..Listen::plain(args.listen, recorder)
    };
    let host = Host::start(listen, &args.pools).map_err(|e| failed(&e))?;
    let host = Arc::new(host);
    say(
        format,
        &Said::Ready {
            address: host.address(),
            regions: host.served().len(),
        },
    )?;
    let signals = asked.handle();
    let asked_of = host.clone();
    let settler = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in asked.forever() {
                let said = if signal == SIGHUP {
                    reload(&identity, &security);
                    rescan(&asked_of)
                } else {
                    asked_of.settle();
                    Said::Settled
                };
                if let Err(e) = say(format, &said) {
                    tracing::warn!("{e}");
                }
            }
        })
        .map_err(|e| CliError::failed(format_args!("cannot start a thread: {e}")))?;
    stop.wait();
    signals.close();
    // A panic there was reported by the panic itself.
    let _ = settler.join();
    match Arc::into_inner(host) {
        Some(host) => host.close().map_err(|e| failed(&e)),
        None => Ok(()),
    }
}

/// Problems are in the log; what was served before goes on.
fn rescan(host: &Host) -> Said {
    if let Err(e) = host.rescan() {
        tracing::error!("{e}");
    }
    Said::Ready {
        address: host.address(),
        regions: host.served().len(),
    }
}

/// An exporter or an operator has a key so that it need not be trusted with data.
fn may_host(security: &Security) -> Result<(), CliError> {
    match security.own() {
        Some(own) if own.role.hosts_members() => Ok(()),
        Some(own) => Err(
            CliError::usage(format_args!("the list of peers has this key as {own}"))
                .hint("only a node keeps replicas: use a node's key, or change the list"),
        ),
        None => Err(
            CliError::usage("this node's own key is not in the list of peers")
                .hint("add what `trivet key show FILE` prints, with role = \"node\""),
        ),
    }
}

/// Puts the list in force as it is now in its file; the old one stays if that makes no sense.
fn reload(identity: &IdentityArgs, security: &Security) {
    match identity.reload(security) {
        Ok(()) => tracing::info!("list of peers read again"),
        Err(e) => tracing::error!("{e}; the list stays as it was"),
    }
}

pub(super) fn failed(e: &ClusterError) -> CliError {
    CliError::failed(e)
}

fn say(format: Format, said: &Said) -> Result<(), CliError> {
    let line = match (format, said) {
        (Format::Json | Format::Yaml, _) => serde_json::to_string(said)
            .map_err(|e| CliError::failed(format_args!("cannot make JSON: {e}")))?,
        (Format::Table, Said::Ready { address, regions }) => {
            format!("ready: listening on {address}, regions: {regions}")
        }
        (Format::Table, Said::Settled) => "settled".to_owned(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| CliError::output(&e))
}
