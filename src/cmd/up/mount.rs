//! The FUSE mount of `trivet up`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use trivet_fs::Fs;
use trivet_fs::fuse::{FuseOptions, Mounted, mount};

use crate::error::CliError;

/// Where it is mounted.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Also mount it on this directory, through FUSE; made if it is not there
    #[arg(long, value_name = "MNT")]
    mount: Option<PathBuf>,
}

impl MountArgs {
    /// Mounts the file system, if asked to.
    ///
    /// # Errors
    /// The directory cannot be used, or the kernel refuses.
    pub fn start(&self, fs: &Arc<Fs>) -> Result<Option<Mounted>, CliError> {
        let Some(dir) = &self.mount else {
            return Ok(None);
        };
        let failed = |e: std::io::Error| {
            CliError::failed(format_args!("cannot mount on {}: {e}", dir.display()))
                .hint("it takes /dev/fuse, and root or fusermount3 (package fuse3)")
        };
        // Fails where a dead mount is in the way, which `mount` then clears.
        let _ = std::fs::create_dir_all(dir);
        let options = FuseOptions {
            // Nobody else can serve this volume: all its replicas are in this process.
            abort_when_lost: false,
            ..FuseOptions::default()
        };
        mount(Arc::clone(fs) as _, dir, &options)
            .map(Some)
            .map_err(failed)
    }

    /// The directory, to tell the person.
    pub fn line(&self) -> Option<String> {
        self.mount.as_ref().map(|m| m.display().to_string())
    }
}

/// Unmounts; a directory in use goes from sight at once.
pub fn end(mounted: Option<Mounted>) {
    match mounted.map(Mounted::unmount) {
        None | Some(Ok(true)) => {}
        Some(Ok(false)) => tracing::warn!("the mount was in use; its users now get errors"),
        Some(Err(error)) => tracing::warn!(%error, "cannot unmount"),
    }
}
