//! `trivet mount` and `umount`: a node is active for as long as a volume is mounted on it.
//!
//! The local daemon mounts: it has the file system. This command asks it, and looks whether what
//! it mounted is to be seen from here. Unmounting is the kernel's, as for any file system: the
//! daemon notices it, ends the reign in order, and this command waits for that.

pub mod helper;
mod options;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::Serialize;
use trivet_node::messages::{Answer, Ask, Mount, Report};
use trivet_transport::Identity;

use super::cluster::{Cluster, ClusterArgs};
use super::role::holder;
use super::serve::host_name;
use crate::error::CliError;
use crate::output::{self, Format};
use options::Options;

/// What /proc calls such a mount: as the kernel mounts it for root, and as fusermount3 does.
const TYPES: [&str; 2] = ["fuse", "fuse.trivet"];
/// A daemon that is well answers within this time, beside what it was asked to wait for.
const SLACK: Duration = Duration::from_secs(15);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Which volume, where.
#[derive(Debug, Args)]
pub struct MountArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of the volume
    volume: String,
    /// The directory
    directory: PathBuf,
    /// As in mount(8): ro, nosuid, nodev, noexec, and config=, key=, node=, timeout=
    #[arg(long, value_name = "LIST", default_value = "")]
    options: String,
    /// Pass over options that are not known
    #[arg(long)]
    sloppy: bool,
    /// Name of this node in the configuration [default: whose key this is, or the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Seconds to wait for the lease of a node that died
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Say nothing of what was done, as mount(8) has it
    #[arg(long, hide = true)]
    silent: bool,
}

/// What to unmount.
#[derive(Debug, Args)]
pub struct UmountArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The directory, or the name of the volume
    what: PathBuf,
    /// Also while it is in use: its users keep it until they let go, and so does this node
    #[arg(short, long)]
    lazy: bool,
    /// Name of this node in the configuration [default: whose key this is, or the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Seconds to wait until it is active here no longer
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

#[derive(Debug, Serialize)]
struct MountedAt<'a> {
    volume: &'a str,
    directory: &'a Path,
    node: &'a str,
    by_use: bool,
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub fn mount(args: &MountArgs, format: Format) -> Result<(), CliError> {
    let options = Options::parse(&args.options, args.sloppy)?;
    let files = options.cluster(&args.cluster);
    let cluster = files.open()?;
    cluster.volume(&args.volume)?;
    let given = options.node.as_ref().or(args.node.as_ref());
    let node = this_node(&cluster, &files.key, given)?;
    let directory = absolute(&args.directory)?;
    if args.dry_run {
        let seen = cluster.report()?;
        let at = directory.display();
        let what = match holder(&seen, &args.volume) {
            Some(h) if h == node => format!("{} is active on {h}: mounted on {at}", args.volume),
            Some(h) => format!("{} is active on {h}: refused", args.volume),
            None => format!("{} becomes active on {node}, on {at}", args.volume),
        };
        return output::print(format, &what, |w| format!("would: {w}\n"));
    }
    let timeout = options.timeout.unwrap_or(args.timeout);
    let ask = Ask::Mount(Mount {
        volume: args.volume.clone(),
        directory: directory.clone(),
        without: options.without,
        timeout_ms: timeout.saturating_mul(1000),
    });
    let patience = Duration::from_secs(timeout).saturating_add(SLACK);
    let by_use = match cluster.ask(&node, &ask, patience)? {
        Answer::Mounted { by_use } => by_use,
        _ => return Err(CliError::failed("an answer to another question")),
    };
    if find(&directory)?.is_none() {
        return Err(CliError::failed(format_args!(
            "node {node} has mounted {} where it cannot be seen from here: the daemon has a mount \
             namespace of its own",
            args.volume
        ))
        .hint("run it in this one; until then `trivet demote` ends what was begun"));
    }
    if args.silent {
        return Ok(());
    }
    let done = MountedAt {
        volume: &args.volume,
        directory: &directory,
        node: &node,
        by_use,
    };
    output::print(format, &done, |m| {
        format!(
            "{} on {}: {}\n",
            m.volume,
            m.directory.display(),
            match m.by_use {
                true => "active here until it is unmounted",
                false => "it was active here before, and stays so",
            }
        )
    })
}

/// Does it.
///
/// # Errors
/// It is not mounted, or in use, or the reign did not end in time.
pub fn umount(args: &UmountArgs, format: Format) -> Result<(), CliError> {
    let cluster = args.cluster.open()?;
    let found = match find(&args.what)? {
        Some(found) => Some(found),
        None => find(&absolute(&args.what)?)?,
    };
    // Others mount through FUSE, too.
    let ours = found.filter(|(volume, _)| cluster.config.volume(volume).is_some());
    let (volume, directory) = ours.ok_or_else(|| {
        let what = args.what.display();
        CliError::failed(format_args!(
            "no volume of this cluster is mounted on {what}"
        ))
        .hint("`findmnt -t fuse,fuse.trivet` shows what is mounted")
    })?;
    let node = this_node(&cluster, &args.cluster.key, args.node.as_ref())?;
    let flags = match args.lazy {
        true => UnmountFlags::DETACH,
        false => UnmountFlags::NOFOLLOW,
    };
    unmount(&directory, flags).map_err(|e| {
        let failed = CliError::failed(format_args!(
            "cannot unmount {}: {}",
            directory.display(),
            io::Error::from(e)
        ));
        match e {
            Errno::BUSY => failed.hint("`fuser -m` on it shows who uses it; or --lazy"),
            Errno::PERM => failed.hint("only root may"),
            _ => failed,
        }
    })?;
    let gone = wait_until_gone(&cluster, &node, &volume, &directory, args)?;
    let what = match gone {
        true => "unmounted",
        false => "unmounted, but in use: its node is active until its users let go",
    };
    output::print(format, &what, |w| format!("{}: {w}\n", directory.display()))
}

/// Waits until the daemon has noticed, and has ended what there was to end. False if it is in use
/// still, which only a lazy unmount leaves behind.
fn wait_until_gone(
    cluster: &Cluster,
    node: &str,
    volume: &str,
    directory: &Path,
    args: &UmountArgs,
) -> Result<bool, CliError> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let report = match cluster.ask(node, &Ask::Report, SLACK) {
            Ok(Answer::Report(report)) => report,
            Ok(_) => return Err(CliError::failed("an answer to another question")),
            // It is dead or being restarted, and mounts nothing.
            Err(_) => return Ok(true),
        };
        let Some((mounted, trouble)) = mounted(&report, volume) else {
            return Ok(true);
        };
        if mounted.as_deref() != Some(directory) {
            return match trouble {
                None => Ok(true),
                Some(why) => Err(CliError::failed(format_args!(
                    "unmounted, but {volume} did not end in order on {node}: {why}"
                ))
                .hint("what was synced is safe; look at `trivet status`")),
            };
        }
        if args.lazy {
            return Ok(false);
        }
        if Instant::now() > deadline {
            return Err(CliError::failed(format_args!(
                "unmounted, but {volume} is active on {node} still"
            ))
            .hint("look at `trivet status`, and `trivet demote` it"));
        }
        // Between two looks at what the daemon says; the deadline above bounds them.
        thread::sleep(PAUSE);
    }
}

fn mounted(report: &Report, volume: &str) -> Option<(Option<PathBuf>, Option<String>)> {
    let v = report.volumes.iter().find(|v| v.name == volume)?;
    Some((v.role.mounted.clone(), v.role.trouble.clone()))
}

/// Who this is in the configuration: as it was said, or whose key it has, or the host's name.
fn this_node(cluster: &Cluster, key: &Path, given: Option<&String>) -> Result<String, CliError> {
    let by_key = || {
        let key = Identity::load(key).ok()?.public();
        let mut nodes = cluster.config.nodes.iter();
        nodes.find(|n| n.key == Some(key)).map(|n| n.name.clone())
    };
    let node = given.cloned().or_else(by_key).unwrap_or_else(host_name);
    match cluster.config.node(&node) {
        Some(_) => Ok(node),
        None => Err(
            CliError::usage(format_args!("the configuration names no node {node}"))
                .hint("say which one this is: --node NAME, in fstab node=NAME"),
        ),
    }
}

/// The directory without links, also where a dead mount is on it.
fn absolute(dir: &Path) -> Result<PathBuf, CliError> {
    let failed = |e: io::Error| CliError::failed(format_args!("{}: {e}", dir.display()));
    match (dir.canonicalize(), dir.parent(), dir.file_name()) {
        (Ok(path), ..) => Ok(path),
        (Err(e), Some(parent), Some(name))
            if e.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) =>
        {
            let parent = match parent == Path::new("") {
                true => Path::new("."),
                false => parent,
            };
            Ok(parent.canonicalize().map_err(failed)?.join(name))
        }
        (Err(e), ..) => Err(failed(e).hint("make the directory first")),
    }
}

/// The source and the place of what is mounted there, the newest of several; `what` is either.
fn find(what: &Path) -> Result<Option<(String, PathBuf)>, CliError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| CliError::failed(format_args!("cannot read /proc/self/mountinfo: {e}")))?;
    Ok(found(&table, what))
}

fn found(table: &str, what: &Path) -> Option<(String, PathBuf)> {
    let mut lines = table.lines().rev().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let source = unescaped(after.next()?);
        let at = PathBuf::from(unescaped(before.split(' ').nth(4)?));
        TYPES.contains(&kind).then_some((source, at))
    });
    lines.find(|(source, at)| at == what || Path::new(source) == what)
}

/// A space and a few others stand there as `\040`.
fn unescaped(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let digits = after.get(..3).unwrap_or_default();
        match u8::from_str_radix(digits, 8) {
            Ok(c) if c.is_ascii() => {
                out.push(char::from(c));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_place_and_by_volume() {
        let table = "30 1 0:31 / /mnt/a\\040b rw,noatime - fuse.trivet vms rw,user_id=0\n\
                     31 1 0:32 / /home rw shared:1 - ext4 /dev/sda1 rw\n\
                     32 1 0:33 / /mnt/x rw - fuse.sshfs vms rw\n\
                     33 1 0:34 / /mnt/v2 rw - fuse v2 rw\n";
        let at = (String::from("vms"), PathBuf::from("/mnt/a b"));
        assert_eq!(found(table, Path::new("/mnt/a b")), Some(at.clone()));
        assert_eq!(found(table, Path::new("vms")), Some(at));
        let by_root = (String::from("v2"), PathBuf::from("/mnt/v2"));
        assert_eq!(found(table, Path::new("v2")), Some(by_root));
        assert_eq!(found(table, Path::new("/home")), None);
        assert_eq!(found(table, Path::new("/mnt/x")), None);
        assert_eq!(unescaped("a\\011b\\"), "a\tb\\");
    }
}
