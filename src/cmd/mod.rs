//! The commands, one file each. A command is listed here when it works, not before.

mod bench;
mod downstairs;
mod fsck;
mod key;
mod limits;
mod region;
mod up;
mod volume;

use clap::{Parser, Subcommand};

use crate::error::CliError;
use crate::logging::LoggingArgs;
use crate::output::Format;

/// A shared disk for a small cluster: three replicas, one active node, one NFS export
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub logging: LoggingArgs,
    /// Form of the result on standard output
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure, beside what the disk and the network would allow
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The server that keeps replicas of volumes in this node's pools
    #[command(subcommand)]
    Downstairs(downstairs::Downstairs),
    /// One replica's directory, offline: create, import, export, verify, dump
    #[command(subcommand)]
    Region(region::RegionCmd),
    /// Prove that the file system of a volume that is not in use is whole
    Fsck(fsck::FsckArgs),
    /// Who a node is to the others: its key
    #[command(subcommand)]
    Key(key::Key),
    /// Show every fixed limit: name, value, unit, what it bounds
    Limits,
    /// Run everything on this machine: three replicas, the file system, the NFS export
    Up(up::UpArgs),
    /// Volumes: replicated virtual disks
    #[command(subcommand)]
    Volume(volume::Volume),
}

/// Does it.
///
/// # Errors
/// What to tell the person who asked.
pub fn run(command: Command, output: Format) -> Result<(), CliError> {
    match command {
        Command::Bench(args) => bench::run(args, output),
        Command::Downstairs(args) => downstairs::run(args, output),
        Command::Region(args) => region::run(args, output),
        Command::Fsck(args) => fsck::run(&args, output),
        Command::Key(args) => key::run(args, output),
        Command::Limits => limits::run(output),
        Command::Up(args) => up::run(args, output),
        Command::Volume(args) => volume::run(args, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
