//! `trivet fs cp`: a file or a tree, out of the file system into a directory here.
//!
//! Content with its holes, names, modes, times, symbolic and hard links; owners if root. What the
//! target cannot hold (devices, sockets) is named on standard error and counted. Nothing is
//! written over.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde::Serialize;
use trivet_fs::{Attr, Creds, FileKind, Fs, FsError, Ino, MAX_IO, Seek, Time, Vfs};

use super::source::about;
use super::{each_entry, find, kind_name};
use crate::error::CliError;
use crate::output::{self, Format};

/// Directories in each other that are copied: what is damaged may have no end.
const MAX_DEPTH: usize = 500;

#[derive(Debug, Default, Serialize)]
struct Copied {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    skipped: u64,
}

struct Copy<'a> {
    fs: &'a Fs,
    done: Copied,
    /// Where an inode with several names was put first.
    first: HashMap<Ino, PathBuf>,
    chown: bool,
}

/// Copies `path` to `target`, or into it if it is a directory.
///
/// # Errors
/// The first failure; what was copied before stays.
pub fn run(fs: &Fs, path: &str, target: &Path, format: Format) -> Result<(), CliError> {
    let at = find(fs, path)?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or("");
    let to = match target.is_dir() && !name.is_empty() {
        true => target.join(name),
        false => target.to_owned(),
    };
    let mut copy = Copy {
        fs,
        done: Copied::default(),
        first: HashMap::new(),
        chown: rustix::process::geteuid().is_root(),
    };
    copy.object(&at, path, &to)?;
    output::print(format, &copy.done, |d| {
        let skipped = match d.skipped {
            0 => String::new(),
            n => format!(", {n} SKIPPED"),
        };
        format!(
            "{} files, {} directories, {} links; {} bytes of content{skipped}\n",
            d.files, d.directories, d.links, d.bytes
        )
    })
}

fn here(action: &'static str, to: &Path) -> impl Fn(std::io::Error) -> CliError {
    let to = to.to_owned();
    move |e| CliError::failed(format_args!("cannot {action} {}: {e}", to.display()))
}

fn time(t: Time) -> Timespec {
    Timespec {
        tv_sec: t.secs,
        tv_nsec: t.nanos.into(),
    }
}

impl Copy<'_> {
    fn object(&mut self, at: &Attr, path: &str, to: &Path) -> Result<(), CliError> {
        if at.kind != FileKind::Dir && at.nlink > 1 {
            if let Some(first) = self.first.get(&at.id.ino) {
                self.done.links += 1;
                return std::fs::hard_link(first, to).map_err(here("link", to));
            }
            self.first.insert(at.id.ino, to.to_owned());
        }
        match at.kind {
            FileKind::File => self.file(at, path, to)?,
            FileKind::Dir => self.directory(at, path, to)?,
            FileKind::Symlink => {
                let (link, _) = self
                    .fs
                    .readlink(&Creds::root(), at.id)
                    .map_err(|e| about(path, &e))?;
                let link = OsStr::from_bytes(&link);
                std::os::unix::fs::symlink(link, to).map_err(here("create", to))?;
                self.done.links += 1;
            }
            kind => {
                eprintln!("skipped: {path} is a {}", kind_name(kind));
                self.first.remove(&at.id.ino);
                self.done.skipped += 1;
                return Ok(());
            }
        }
        self.attributes(at, to)
    }

    fn attributes(&self, at: &Attr, to: &Path) -> Result<(), CliError> {
        if self.chown {
            std::os::unix::fs::lchown(to, Some(at.uid), Some(at.gid))
                .map_err(here("set the owner of", to))?;
        }
        if at.kind != FileKind::Symlink {
            let mode = std::fs::Permissions::from_mode(at.mode);
            std::fs::set_permissions(to, mode).map_err(here("set the mode of", to))?;
        }
        let times = Timestamps {
            last_access: time(at.atime),
            last_modification: time(at.mtime),
        };
        utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| here("set the times of", to)(e.into()))
    }

    fn directory(&mut self, at: &Attr, path: &str, to: &Path) -> Result<(), CliError> {
        if let Err(e) = DirBuilder::new().mode(0o700).create(to) {
            let root_into = e.kind() == std::io::ErrorKind::AlreadyExists
                && to.read_dir().is_ok_and(|mut d| d.next().is_none());
            if !root_into {
                return Err(here("create", to)(e));
            }
        }
        self.done.directories += 1;
        let mut entries = Vec::new();
        each_entry(self.fs, at.id, |name, attr| {
            entries.push((name.to_vec(), attr));
            Ok(())
        })
        .map_err(|e| about(path, &e))??;
        let base = path.trim_end_matches('/');
        if base.matches('/').count() > MAX_DEPTH {
            return Err(CliError::failed(format_args!(
                "{path}: deeper than {MAX_DEPTH} directories; is it damaged? see `trivet fsck`"
            )));
        }
        for (name, attr) in entries {
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                // Only damage makes such a name; it could lead out of the target.
                eprintln!("skipped: a name in {path} that no file can have");
                self.done.skipped += 1;
                continue;
            }
            let path = format!("{base}/{}", String::from_utf8_lossy(&name));
            self.object(&attr, &path, &to.join(OsStr::from_bytes(&name)))?;
        }
        Ok(())
    }

    fn file(&mut self, at: &Attr, path: &str, to: &Path) -> Result<(), CliError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(here("create", to))?;
        file.set_len(at.size).map_err(here("size", to))?;
        self.content(at, path, &file, to)?;
        self.done.files += 1;
        Ok(())
    }

    fn content(&mut self, at: &Attr, path: &str, file: &File, to: &Path) -> Result<(), CliError> {
        let failed = |e: FsError| about(path, &e);
        let mut offset = 0;
        while offset < at.size {
            offset = match self.fs.seek(at.id, offset, Seek::Data) {
                Ok(data) => data,
                Err(FsError::NoSuchOffset) => break,
                Err(e) => return Err(failed(e)),
            };
            let end = self
                .fs
                .seek(at.id, offset, Seek::Hole)
                .map_err(failed)?
                .min(at.size);
            while offset < end {
                let want = (end - offset).min(MAX_IO as u64) as u32;
                let part = self
                    .fs
                    .read(&Creds::root(), at.id, offset, want)
                    .map_err(failed)?;
                if part.is_empty() {
                    return Ok(());
                }
                for piece in &part.data {
                    file.write_all_at(piece, offset)
                        .map_err(here("write", to))?;
                    offset += piece.len() as u64;
                    self.done.bytes += piece.len() as u64;
                }
            }
        }
        Ok(())
    }
}
