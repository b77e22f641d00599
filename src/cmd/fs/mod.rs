//! `trivet fs`: gets files out of one replica, with no daemon, no mount and no cluster.
//!
//! Reads only. What it shows is what the replica knows: operations that were durable elsewhere and
//! never reached it are missing, as after a crash (a prefix of the history).

mod copy;
mod source;

use std::io::Write;

use clap::{Args, Subcommand};
use serde::Serialize;
use trivet_fs::{Attr, Creds, FileKind, Fs, FsResult, InodeId, MAX_IO, Vfs};

use crate::error::CliError;
use crate::output::{self, Format, Table};
use source::{SourceArgs, about};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum FsCmd {
    /// List a directory, or show one file
    Ls(LsArgs),
    /// Write a file's content to standard output
    Cat(PathArgs),
    /// Copy a file or a whole directory out; holes stay holes
    Cp(CpArgs),
}

#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Path in the file system
    #[arg(default_value = "/")]
    path: String,
}

#[derive(Debug, Args)]
pub struct PathArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Path in the file system
    path: String,
}

#[derive(Debug, Args)]
pub struct CpArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Path in the file system
    path: String,
    /// Where to put it; must not exist, unless it is a directory to copy into
    target: std::path::PathBuf,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    kind: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    used: u64,
    /// Seconds since 1970.
    modified: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listing {
    path: String,
    entries: Vec<Listed>,
}

/// Does it.
///
/// # Errors
/// What went wrong, to what, what next.
pub fn run(command: &FsCmd, format: Format) -> Result<(), CliError> {
    match command {
        FsCmd::Ls(args) => ls(args, format),
        FsCmd::Cat(args) => cat(args),
        FsCmd::Cp(args) => {
            let fs = args.source.open()?;
            copy::run(&fs, &args.path, &args.target, format)
        }
    }
}

/// The object at a path; symbolic links are not followed.
fn find(fs: &Fs, path: &str) -> Result<Attr, CliError> {
    let creds = Creds::root();
    let mut at = fs.getattr(fs.root()).map_err(|e| about("/", &e))?;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        at = fs
            .lookup(&creds, at.id, name.as_bytes())
            .map_err(|e| about(path, &e))?
            .0;
    }
    Ok(at)
}

/// Calls `f(name, attributes)` for every entry of a directory but the dots.
fn each_entry(
    fs: &Fs,
    dir: InodeId,
    mut f: impl FnMut(&[u8], Attr) -> Result<(), CliError>,
) -> FsResult<Result<(), CliError>> {
    let (creds, mut cookie) = (Creds::root(), 0);
    loop {
        let page = fs.readdir(&creds, dir, cookie, 1024, true)?;
        for e in &page.entries {
            cookie = e.cookie;
            if &e.name[..] == b"." || &e.name[..] == b".." {
                continue;
            }
            let attr = e.attr.map_or_else(|| fs.getattr(e.id), Ok)?;
            if let Err(e) = f(&e.name, attr) {
                return Ok(Err(e));
            }
        }
        if page.eof || page.entries.is_empty() {
            return Ok(Ok(()));
        }
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::Block => "block",
        FileKind::Char => "char",
    }
}

fn listed(fs: &Fs, name: &[u8], a: &Attr) -> Listed {
    let target = match a.kind {
        FileKind::Symlink => fs.readlink(&Creds::root(), a.id).ok(),
        _ => None,
    };
    Listed {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: kind_name(a.kind),
        mode: format!("{:04o}", a.mode),
        links: a.nlink,
        uid: a.uid,
        gid: a.gid,
        size: a.size,
        used: a.used,
        modified: a.mtime.secs,
        target: target.map(|(t, _)| String::from_utf8_lossy(&t).into_owned()),
    }
}

fn ls(args: &LsArgs, format: Format) -> Result<(), CliError> {
    let fs = args.source.open()?;
    let at = find(&fs, &args.path)?;
    let mut entries = Vec::new();
    if at.kind == FileKind::Dir {
        each_entry(&fs, at.id, |name, attr| {
            entries.push(listed(&fs, name, &attr));
            Ok(())
        })
        .map_err(|e| about(&args.path, &e))??;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
    } else {
        let name = args.path.rsplit('/').next().unwrap_or_default();
        entries.push(listed(&fs, name.as_bytes(), &at));
    }
    let listing = Listing {
        path: args.path.clone(),
        entries,
    };
    output::print(format, &listing, |l| {
        let mut table = Table::new(&["kind", "mode", "uid", "gid", "size", "modified", "name"]);
        for e in &l.entries {
            let name = match &e.target {
                Some(to) => format!("{} -> {to}", e.name),
                None => e.name.clone(),
            };
            table.row([
                e.kind.to_owned(),
                e.mode.clone(),
                e.uid.to_string(),
                e.gid.to_string(),
                e.size.to_string(),
                utc(e.modified),
                // What a name may hold must not reach a terminal as it is.
                name.chars()
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect(),
            ]);
        }
        table.render()
    })
}

/// `2026-01-31T23:59:59Z`.
fn utc(secs: i64) -> String {
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years, so that leap days come last.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = match month < 10 {
        true => (month + 3, 0),
        false => (month - 9, 1),
    };
    format!(
        "{:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + carry,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

fn cat(args: &PathArgs) -> Result<(), CliError> {
    let fs = args.source.open()?;
    let at = find(&fs, &args.path)?;
    let mut out = std::io::stdout().lock();
    let mut offset = 0;
    loop {
        let part = fs
            .read(&Creds::root(), at.id, offset, MAX_IO as u32)
            .map_err(|e| about(&args.path, &e))?;
        for piece in &part.data {
            out.write_all(piece).map_err(|e| CliError::output(&e))?;
        }
        offset += part.len() as u64;
        if part.eof || part.is_empty() {
            return out.flush().map_err(|e| CliError::output(&e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(utc(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
    }
}
