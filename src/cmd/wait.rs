//! `trivet wait`: until a volume is as it should be. Exit code 0: it is; 1: not in time; 3: no
//! daemon answered to the end.

use std::time::{Duration, Instant};

use clap::Args;

use trivet_node::messages::{Answer, Ask, Standing};

use super::cluster::{Cluster, ClusterArgs};
use super::role::holder;
use super::status::{Grade, grade};
use crate::error::CliError;
use crate::output::{self, Format};

/// How often is looked.
const LOOK: Duration = Duration::from_millis(200);

/// The active node answers within this time, or is not.
const ANSWERS: Duration = Duration::from_secs(1);

/// For what.
#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// What is waited for
    #[arg(long = "for", value_enum, default_value_t = Goal::Serving)]
    goal: Goal,
    /// Seconds to wait, at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// What a volume can be waited to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// Some node is active for it
    Serving,
    /// It is served, all its members are well, and one can be lost
    Redundant,
    /// No node is active for it
    Stopped,
}

/// Waits.
///
/// # Errors
/// It is not so in time, or no daemon answers.
pub fn run(args: &WaitArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    cluster.volume(&args.volume)?;
    let goal = match args.goal {
        Goal::Serving => "serving",
        Goal::Redundant => "redundant",
        Goal::Stopped => "stopped",
    };
    let began = Instant::now();
    let deadline = began + Duration::from_secs(args.timeout);
    loop {
        let seen = cluster.report();
        let mut is = seen.as_ref().ok().map(|s| grade(s, &args.volume));
        // The others believe a node that has just died for a moment.
        if args.goal != Goal::Stopped
            && let Ok(seen) = &seen
            && let Some(at) = holder(seen, &args.volume)
            && !says_so(&cluster, &at, &args.volume)
        {
            is = Some(Grade::NotServed);
        }
        let there = is.is_some_and(|is| match args.goal {
            Goal::Serving => is <= Grade::Degraded,
            Goal::Redundant => is == Grade::Redundant,
            Goal::Stopped => is == Grade::NotServed,
        });
        if there {
            let ms = began.elapsed().as_millis() as u64;
            return output::print(format, &(goal, ms), |(goal, ms)| {
                format!("{} is {goal} after {ms} ms\n", args.volume)
            });
        }
        if Instant::now() > deadline {
            seen?;
            let is = is.map_or("unknown", Grade::word);
            return Err(CliError::failed(format_args!(
                "{} is {is}, not {goal}, after {} s",
                args.volume, args.timeout
            ))
            .hint("look at `trivet status`"));
        }
        // Nothing tells when it is there: it is asked for.
        std::thread::sleep(LOOK);
    }
}

/// Whether a node itself says that it is active.
fn says_so(cluster: &Cluster, node: &str, volume: &str) -> bool {
    let Ok(Answer::Report(report)) = cluster.ask(node, &Ask::Report, ANSWERS) else {
        return false;
    };
    let own = report.volumes.iter().find(|v| v.name == volume);
    own.is_some_and(|v| v.role.standing == Standing::Active)
}
