//! The `trivet` binary: wires the crates together and talks to people.
//!
//! Nothing here keeps state: a command parses its arguments, calls the crates, prints. An error
//! is printed once, here, as `error: what happened, to what; what to do next`, and turned into
//! the exit code that [`error::Exit`] documents.

mod cmd;
mod error;
mod logging;
mod notify;
mod output;
mod size;
mod stop;
mod yaml;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = cmd::mount::helper::run() {
        return code;
    }
    let cli = cmd::Cli::parse();
    let done = logging::init(&cli.logging).and_then(|()| cmd::run(cli.command, cli.output));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that went away (`trivet limits | head`) is no failure of ours.
        Err(e) if e.is_closed_output() => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is_quiet() {
                eprintln!("{e}");
            }
            ExitCode::from(e.exit() as u8)
        }
    }
}
