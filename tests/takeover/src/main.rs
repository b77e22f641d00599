//! The proof of takeovers: three hosts and a client in network namespaces, real daemons, load with
//! a memory, a nemesis, and a checker.
//!
//! - `takeovers`: events in random order, a table of pauses, and what clients should not have seen;
//! - `demo`: three events, told as they happen;
//! - `lab`: the lab alone, for hands;
//! - `load`: the load alone, on any export, until a signal;
//! - `clear`: removes what killed runs left.
//!
//! Exit code 0: all as it should be; 1: a finding; 2: the run could not go on; 77: this machine
//! cannot do it.

mod beside;
mod client;
mod cluster;
mod demo;
mod disk;
mod error;
mod findings;
mod host;
mod lab;
mod leaks;
mod load;
mod nemesis;
mod report;
mod run;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use error::{LabError, Result};
use nemesis::Event;
use sys::Stop;

#[derive(Parser)]
#[command(about = "Takeovers of real daemons in network namespaces, under load and checked")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What every lab is told.
#[derive(Args)]
pub struct Common {
    /// The program under test
    #[arg(long, value_name = "FILE", default_value = "target/release/trivet")]
    pub trivet: PathBuf,
    /// Two hosts keep replicas and may be active; the third one only votes
    #[arg(long)]
    pub witness: bool,
    /// Keep the directory of the lab, with the daemons' logs
    #[arg(long)]
    pub keep: bool,
}

/// What a run is told.
#[derive(Args)]
pub struct RunArgs {
    /// The lab.
    #[command(flatten)]
    pub common: Common,
    /// Events
    #[arg(short = 'n', long, default_value_t = 20)]
    pub count: usize,
    /// Repeats the order and the lengths of an earlier run [default: a new one]
    #[arg(long, env = "SEED")]
    pub seed: Option<u64>,
    /// Only these, in turn
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Event>,
    /// Not these
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "only")]
    pub except: Vec<Event>,
    /// A program that uses the export meanwhile, as a guest does (see tests/vm); any number of them
    #[arg(long, value_name = "PROGRAM")]
    pub beside: Vec<PathBuf>,
    /// A pause above its bar is a failure
    #[arg(long)]
    pub bars: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Events in random order, under load
    Takeovers(RunArgs),
    /// A loss of a node, a killed daemon and a planned move, told as they happen
    Demo(Common),
    /// The lab, with a served volume, until Ctrl-C
    Lab(Common),
    /// The load alone, on an export that is there, until a signal; then everything is compared
    Load(client::LoadArgs),
    /// Remove what killed runs left
    Clear,
    /// The disk of a host: a part of the lab
    #[command(hide = true)]
    Disk {
        /// Directory that holds the content
        backing: PathBuf,
        /// Where to mount
        at: PathBuf,
        /// Socket for commands
        control: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(LabError::Unable(why)) => {
            eprintln!("not run: {why}");
            ExitCode::from(77)
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn start(command: Command) -> Result<bool> {
    if let Some(why) = lab::lacks() {
        return Err(LabError::Unable(why));
    }
    let stop = Stop::on_signals()?;
    match command {
        Command::Takeovers(args) => run::run(&args, &stop),
        Command::Demo(common) => demo::demo(&common, &stop),
        Command::Lab(common) => demo::lab(&common, &stop),
        Command::Load(args) => client::load(&args, &stop),
        Command::Clear => lab::clear_leftovers().map(|()| true),
        Command::Disk {
            backing,
            at,
            control,
        } => disk::serve(&backing, &at, &control).map(|()| true),
    }
}
