//! The commands, one file each. A command is listed here when it works, not before.

mod bench;
mod client;
mod cluster;
mod config;
mod doctor;
mod downstairs;
mod driver;
mod evict;
mod fs;
mod fsck;
mod generate;
mod init;
mod key;
mod limits;
pub mod mount;
mod pool;
mod proxmox;
mod region;
mod replica;
mod role;
mod scrub;
mod serve;
mod status;
mod support;
mod up;
mod volume;
mod volume_in_cluster;
mod volume_ops;
mod wait;

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
    /// Files out of one replica or an exported image, with no daemon: ls, cat, cp
    #[command(subcommand)]
    Fs(fs::FsCmd),

    /// Directories in which a node keeps its members
    #[command(subcommand)]
    Pool(pool::PoolCmd),
    /// Write the configuration of a cluster, and a key for each of its nodes
    Init(init::InitArgs),
    /// The cluster's configuration
    #[command(subcommand)]
    Config(config::ConfigCmd),
    /// Run this node's daemon: its replicas, and its part in who is active
    Serve(serve::ServeArgs),
    /// Show who is active, since when, and how redundant everything is
    #[command(visible_alias = "st")]
    Status(status::StatusArgs),
    /// Look for what is wrong here, and say what to do about it
    Doctor(doctor::DoctorArgs),
    /// Put what somebody who is to help needs to see into one archive, without secrets
    SupportBundle(support::SupportArgs),
    /// Wait until a volume is served, redundant, or stopped
    Wait(wait::WaitArgs),
    /// Make a node the active one of a volume
    #[command(visible_alias = "primary")]
    Promote(role::PromoteArgs),
    /// Stop serving a volume, or let another node do it
    #[command(visible_alias = "secondary")]
    Demote(role::DemoteArgs),
    /// What a cluster manager calls: start, stop, monitor, with exact exit codes
    #[command(subcommand)]
    Driver(driver::DriverCmd),
    /// Who keeps a volume: add, remove, move a replica
    #[command(subcommand, visible_alias = "r")]
    Replica(replica::ReplicaCmd),
    /// How fast out-of-date replicas catch up
    Resync(replica::ResyncArgs),
    /// Read all copies of a volume, compare them, and repair what is bad
    Scrub(scrub::ScrubArgs),
    /// Give up a node that is dead: others take its replicas
    Evict(evict::EvictArgs),
    /// Take back a node that was given up
    Restore(evict::RestoreArgs),
    /// Clients of an export
    #[command(subcommand)]
    Client(client::ClientCmd),
    /// Locks that clients hold on files
    #[command(subcommand)]
    Lock(client::LockCmd),
    /// What happened lately
    #[command(subcommand)]
    Event(client::EventCmd),
    /// Mount a volume on a directory of this host, which becomes the active node for that
    Mount(mount::MountArgs),
    /// Unmount it, and wait until it is active here no longer
    Umount(mount::UmountArgs),
    /// Take a node out of service: what is active there moves away
    Drain(role::DrainArgs),
    /// Take a node back into service
    Undrain(role::DrainArgs),
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
    #[command(subcommand, visible_alias = "v")]
    Volume(volume::Volume),
    /// What Proxmox VE is to be told about a volume
    #[command(subcommand)]
    Proxmox(proxmox::ProxmoxCmd),
    /// Make the man pages and completions of a package
    #[command(subcommand, hide = true)]
    Generate(generate::Generate),
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
        Command::Fs(args) => fs::run(&args, output),

        Command::Pool(args) => pool::run(&args, output),
        Command::Init(args) => init::run(&args, output),
        Command::Config(args) => config::run(&args, output),
        Command::Serve(args) => serve::run(args, output),
        Command::Status(args) => status::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::SupportBundle(args) => support::run(&args, output),
        Command::Promote(args) => role::promote(&args, output),
        Command::Demote(args) => role::demote(&args, output),
        Command::Wait(args) => wait::run(&args, output),
        Command::Driver(args) => driver::run(&args, output),
        Command::Replica(args) => replica::run(&args, output),
        Command::Resync(args) => replica::resync(&args, output),
        Command::Scrub(args) => scrub::run(&args, output),
        Command::Evict(args) => evict::evict(&args, output),
        Command::Restore(args) => evict::restore(&args, output),
        Command::Client(args) => client::clients(&args, output),
        Command::Lock(args) => client::locks(&args, output),
        Command::Event(args) => client::events(&args, output),
        Command::Mount(args) => mount::mount(&args, output),
        Command::Umount(args) => mount::umount(&args, output),
        Command::Drain(args) => role::drain(&args, true, output),
        Command::Undrain(args) => role::drain(&args, false, output),
        Command::Fsck(args) => fsck::run(&args, output),
        Command::Key(args) => key::run(args, output),
        Command::Limits => limits::run(output),
        Command::Up(args) => up::run(args, output),
        Command::Volume(args) => volume::run(args, output),
        Command::Proxmox(args) => proxmox::run(&args, output),
        Command::Generate(args) => generate::run(&args, output),
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
