//! Where log lines go, and how many.
//!
//! `TRIVET_LOG` (the usual filter syntax, `info,trivet_replica=debug`) wins over `-v`. Lines go
//! to standard error; under systemd that is the journal, which stamps them itself.

use std::io::IsTerminal;

use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::error::CliError;

/// Environment variable with the filter.
const FILTER_VARIABLE: &str = "TRIVET_LOG";

/// The arguments that every command has for it.
#[derive(Debug, Args)]
pub struct LoggingArgs {
    /// Log more: -v info, -vv debug, -vvv trace (TRIVET_LOG, if set, decides instead)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Log only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Form of log lines
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Starts logging; call once.
///
/// # Errors
/// `TRIVET_LOG` does not parse, or logging was started before.
pub fn init(args: &LoggingArgs) -> Result<(), CliError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| {
            CliError::usage(format_args!("{FILTER_VARIABLE}={text} is no filter: {e}"))
                .hint("use for example info, or warn,trivet_replica=debug")
        })?,
        _ => EnvFilter::new(default_level(args)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal adds its own time to each line.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = match (args.log_format, journal) {
        (LogFormat::Json, _) => builder.json().try_init(),
        (LogFormat::Text, true) => builder.without_time().try_init(),
        (LogFormat::Text, false) => builder.try_init(),
    };
    started.map_err(|e| CliError::failed(format_args!("cannot start logging: {e}")))
}

fn default_level(args: &LoggingArgs) -> &'static str {
    match (args.quiet, args.verbose) {
        (true, _) => "error",
        // fuser warns of each call that it does not carry; programs ask and do without.
        (false, 0) => "warn,fuser=error",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    }
}
