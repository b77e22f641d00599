//! `trivet-faultfs`: mounts the failing disk, or gives it commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use trivet_faultfs::{Client, Mounted};

/// A pass-through FUSE file system that fails on command
#[derive(Debug, Parser)]
enum Cli {
    /// Mount it and serve commands until SIGTERM or Ctrl-C
    Mount {
        /// Directory that holds the content
        backing: PathBuf,
        /// Where to mount
        mountpoint: PathBuf,
        /// Socket for commands; must not exist
        control: PathBuf,
    },
    /// Give a command: fail, hang, tear, lie, release, clear, cut, on, status
    Ctl {
        /// Its socket
        control: PathBuf,
        /// The command's words
        #[arg(required = true)]
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Mount {
            backing,
            mountpoint,
            control,
        } => mount(&backing, &mountpoint, &control),
        Cli::Ctl { control, words } => Client::connect(&control)
            .and_then(|mut client| client.command(&words.join(" ")))
            .map(|answer| println!("{answer}"))
            .map_err(|e| format!("{}: {e}", control.display())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or Ctrl-C, then unmounts.
fn mount(backing: &Path, mountpoint: &Path, control: &Path) -> Result<(), String> {
    let signals = Signals::new([SIGTERM, SIGINT]);
    let signals = signals.map_err(|e| format!("cannot listen for signals: {e}"))?;
    let mounted = Mounted::new(backing, mountpoint)
        .map_err(|e| format!("cannot mount {}: {e}", mountpoint.display()))?;
    mounted
        .serve_until(signals, control)
        .map_err(|e| format!("cannot serve {}: {e}", control.display()))
}
