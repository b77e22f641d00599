//! `load`: the load of a run against an export that somebody else looks after, until a signal.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::error::{LabError, Result};
use crate::findings::Findings;
use crate::load::Load;
use crate::report;
use crate::sys::Stop;

/// Sockets belong where this process runs.
const HERE: &str = "/proc/self/ns/net";

/// What the load is told.
#[derive(Args)]
pub struct LoadArgs {
    /// Address of the server
    #[arg(long)]
    pub server: IpAddr,
    /// Path of the export, which must not hold an earlier load's files
    #[arg(long)]
    pub export: String,
    /// Repeats the contents and places of an earlier load
    #[arg(long, env = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// A file of the export on which another client holds a lock all along, which is tried and must
    /// not be got; any number of them
    #[arg(long, value_name = "NAME")]
    pub contend: Vec<String>,
}

/// Works on the export from this network namespace until SIGINT or SIGTERM, and then compares
/// everything once more; whether nothing was found.
///
/// # Errors
/// The export cannot be mounted, or a thread not be started.
pub fn load(args: &LoadArgs, stop: &Stop) -> Result<bool> {
    println!("SEED={}", args.seed);
    let findings = Arc::new(Findings::default());
    let here = Path::new(HERE);
    let mut load = Load::start(args.server, &args.export, here, &[], &findings, args.seed)?;
    for name in &args.contend {
        load.contend(args.server, &args.export, name)?;
    }
    println!("under load");
    loop {
        match stop.sleep(Duration::from_secs(60)) {
            Ok(()) => {}
            Err(LabError::Interrupted) => break,
            Err(e) => return Err(e),
        }
    }
    let pause = load.pause();
    // The signal ended the load, not the look at what it wrote: that has a bound of its own.
    let shared = load.finish(&Stop::default())?;
    let summary = report::summary(&shared.counts, &findings, shared.reigns.count());
    println!(
        "{summary}longest wait for a durable write {:.2} s",
        pause.as_secs_f64()
    );
    Ok(findings.all() == 0)
}
