//! `trivet up`: the whole thing on one machine, for a first look and for tests.
//!
//! Order of start: volume, file system, doors; of the end: the reverse, so that nobody is
//! answered from what is already closed. A crash leaves what was flushed; the next `up` waits for
//! the old lease and goes on.

mod export;
mod mount;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use trivet_cluster::{Embedded, Options};
use trivet_fs::{Fs, FsError, MkfsOptions, Settings, mkfs};
use trivet_replica::Volume;

use super::downstairs::failed as cluster_failed;
use crate::error::CliError;
use crate::output::{self, Format};
use crate::size::Size;
use crate::stop::Stop;

/// Size of a new volume, if nothing else is said.
const NEW_BYTES: u64 = 100 << 30;

/// Where, how large, for whom.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Directory of the three replicas; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "var/trivet")]
    dir: PathBuf,
    /// Size (replicas take space as they are written): of a new volume, 100G if not given; one
    /// that exists is enlarged to it, and never shrinks
    #[arg(long)]
    size: Option<Size>,
    #[command(flatten)]
    export: export::ExportArgs,
    #[command(flatten)]
    mount: mount::MountArgs,
}

/// What is printed when it runs.
#[derive(Debug, Serialize)]
struct Running {
    volume: String,
    bytes: u64,
    nfs: Option<export::Lines>,
    mount: Option<String>,
    problems: Vec<String>,
}

/// Runs until a signal.
///
/// # Errors
/// What does not start, and why.
pub fn run(args: UpArgs, format: Format) -> Result<(), CliError> {
    let stop = Stop::on_signals()?;
    super::serve::more_files();
    let new = args.size.map_or(NEW_BYTES, Size::bytes);
    let embedded = Embedded::open_or_create(&args.dir, new, Options::default())
        .map_err(|e| cluster_failed(&e))?;
    let volume: Arc<dyn Volume> = embedded.volume();
    let fs = open_fs(&volume)?;
    let bytes = fs
        .grow(args.size.map_or(0, Size::bytes))
        .map_err(|e| fs_failed(&e))?;
    if args.size.is_some_and(|s| s.bytes() < bytes) {
        tracing::warn!(
            bytes,
            "the volume is larger than --size says; it does not shrink"
        );
    }
    let export = args.export.start(&fs, &volume)?;
    let mounted = args.mount.start(&fs)?;
    let info = volume.info();
    let running = Running {
        volume: info.id.to_string(),
        bytes,
        nfs: export.as_ref().map(|e| e.lines.clone()),
        mount: args.mount.line(),
        problems: embedded
            .problems()
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    output::print(format, &running, text)?;
    stop.wait();
    drop(export);
    mount::end(mounted);
    let closed = fs.close();
    drop(fs);
    drop(volume);
    let handed_back = embedded.close();
    closed.map_err(|e| fs_failed(&e))?;
    handed_back.map_err(|e| cluster_failed(&e))
}

fn fs_failed(e: &FsError) -> CliError {
    CliError::failed(format_args!("file system: {e}"))
}

/// Mounts the volume's file system; makes one on a volume that holds nothing.
fn open_fs(volume: &Arc<dyn Volume>) -> Result<Arc<Fs>, CliError> {
    let mut first = [0; trivet_replica::volume::BLOCK_BYTES];
    volume
        .read(trivet_replica::volume::Block(0), &mut first)
        .map_err(|e| CliError::failed(format_args!("the volume's first block: {e}")))?;
    if first.iter().all(|b| *b == 0) {
        mkfs(volume.as_ref(), &MkfsOptions::default()).map_err(|e| fs_failed(&e))?;
    }
    Fs::mount(Arc::clone(volume), Settings::default()).map_err(|e| fs_failed(&e))
}

fn text(r: &Running) -> String {
    let mut out = format!(
        "volume {} of {} GiB is up: three replicas on this machine, which protect against a bad \
         sector and nothing else\n",
        r.volume,
        r.bytes >> 30
    );
    for p in &r.problems {
        out.push_str(&format!("problem: {p}\n"));
    }
    if let Some(dir) = &r.mount {
        out.push_str(&format!(
            "mounted on {dir}; in another terminal:\n  cp -a FILES {dir}/ && ls -l {dir}\n"
        ));
    }
    if let Some(nfs) = &r.nfs {
        out.push_str("exported over NFS; on a client, any Linux or Proxmox VE:\n");
        out.push_str(&format!("  {}\n  {}\n", nfs.mount, nfs.proxmox));
    }
    out.push_str("Ctrl-C or SIGTERM ends it; the same command goes on with the data.\n");
    out
}
