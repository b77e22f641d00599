//! `trivet proxmox container-root`: the root directory of the container that exports a volume. It
//! holds this program, the libraries that it runs with, a few files that name things, and empty
//! directories to mount on; no shell, nothing else that could be run. It is meant to be read-only,
//! and is the same on every host, except that the libraries are those of the host that made it.
//!
//! It is made beside its place and then put there: a crash leaves the old one, or `DIR.new`, which
//! the next run throws away. A container that runs goes on with the root that it was started with.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Format};

/// Tells a root that this command made from anything else.
const MARK: &str = "etc/trivet-root";
/// Bytes of the path of a program's loader, and headers of it, at most.
const MOST: u64 = 4096;

/// Where to.
#[derive(Debug, Args)]
pub struct RootArgs {
    /// The directory; made, or replaced if an earlier run has made it
    dir: PathBuf,
    /// Whom its files belong to: what root of the unprivileged container is on the host
    #[arg(long, value_name = "UID", default_value_t = 100_000)]
    owner: u32,
}

#[derive(Debug, Serialize)]
struct Made {
    root: PathBuf,
    version: &'static str,
    files: Vec<PathBuf>,
    bytes: u64,
}

/// Makes it.
///
/// # Errors
/// The directory holds something else, or cannot be written.
pub fn run(args: &RootArgs, format: Format) -> Result<(), CliError> {
    let dir = &args.dir;
    let failed = |e: Failed| {
        CliError::failed(format_args!(
            "cannot {} {}: {}",
            e.what,
            e.at.display(),
            e.why
        ))
        .hint("as root, on a local disk with 100 MB of room")
    };
    if holds_something_else(dir).map_err(|e| failed(at("look into", dir)(e)))? {
        return Err(
            CliError::failed(format_args!("{} is not empty", dir.display()))
                .hint("name a directory that is not there yet"),
        );
    }
    let made = make(dir, args.owner).map_err(failed)?;
    output::print(format, &made, |m| {
        format!(
            "{}: the root of an exporter, trivet {}, {} files, {} MiB\n",
            m.root.display(),
            m.version,
            m.files.len(),
            m.bytes >> 20
        )
    })
}

/// What failed on which file.
struct Failed {
    what: &'static str,
    at: PathBuf,
    why: io::Error,
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failed + use<> {
    let at = path.to_path_buf();
    move |why| Failed { what, at, why }
}

fn holds_something_else(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(mut entries) => Ok(entries.next().is_some() && !dir.join(MARK).exists()),
    }
}

fn make(dir: &Path, owner: u32) -> Result<Made, Failed> {
    let beside = |suffix: &str| {
        let mut name = dir.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (new, old) = (beside(".new"), beside(".old"));
    for left in [&new, &old] {
        remove(left)?;
    }
    let files = fill(&new)?;
    let mut bytes = 0;
    for f in &files {
        let path = new.join(f);
        bytes += fs::metadata(&path).map_err(at("look at", &path))?.len();
    }
    starts(&new, &files)?;
    if rustix::process::geteuid().is_root() {
        give(&new, owner)?;
    }
    if fs::symlink_metadata(dir).is_ok() {
        fs::rename(dir, &old).map_err(at("put away", dir))?;
    }
    fs::rename(&new, dir).map_err(at("put in place", &new))?;
    remove(&old)?;
    Ok(Made {
        root: dir.to_path_buf(),
        version: env!("CARGO_PKG_VERSION"),
        files,
        bytes,
    })
}

fn remove(dir: &Path) -> Result<(), Failed> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Directories, with their modes; `lib` and the like lead into `usr`, as on Debian.
const DIRECTORIES: [(&str, u32); 17] = [
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("etc", 0o755),
    ("etc/trivet", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/lib/trivet", 0o700),
    ("root", 0o700),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("mnt", 0o755),
];
const LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
const TEXTS: [(&str, &str); 6] = [
    (MARK, concat!("trivet ", env!("CARGO_PKG_VERSION"), "\n")),
    ("etc/passwd", "root:x:0:0:root:/root:/usr/sbin/nologin\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", ""),
    ("etc/hostname", ""),
];

/// Makes everything; the files, from the root.
fn fill(root: &Path) -> Result<Vec<PathBuf>, Failed> {
    let directory = |path: &Path, mode: u32| {
        DirBuilder::new()
            .create(path)
            .and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(mode)))
            .map_err(at("make", path))
    };
    directory(root, 0o755)?;
    for (name, mode) in DIRECTORIES {
        directory(&root.join(name), mode)?;
    }
    for name in LINKS {
        let link = root.join(name);
        symlink(format!("usr/{name}"), &link).map_err(at("make", &link))?;
    }
    let mut files = Vec::new();
    for (name, text) in TEXTS {
        let path = root.join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, PermissionsExt::from_mode(0o644)))
            .map_err(at("write", &path))?;
        files.push(name.into());
    }
    let program = Path::new("/proc/self/exe");
    copy(program, &root.join("usr/bin/trivet"), 0o755)?;
    files.push("usr/bin/trivet".into());
    for library in libraries().map_err(at("read", Path::new("/proc/self/maps")))? {
        let inside = inside(&library);
        let to = root.join(&inside);
        if let Some(parent) = to.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(at("make", parent))?;
        }
        copy(&library, &to, 0o755)?;
        files.push(inside);
    }
    // The program names its loader by a path of its own, which is a link on most systems.
    if let Some(loader) = loader(program).map_err(at("read", program))? {
        let there = root.join(inside(&loader));
        if fs::symlink_metadata(&there).is_err() {
            let real = fs::canonicalize(&loader).map_err(at("find", &loader))?;
            let target = Path::new("/").join(inside(&real));
            symlink(target, &there).map_err(at("make", &there))?;
        }
    }
    Ok(files)
}

/// A path of the host's, from the root: `/lib` and the like are in `/usr`.
fn inside(path: &Path) -> PathBuf {
    let bare = path.strip_prefix("/").unwrap_or(path);
    match LINKS.iter().any(|l| bare.starts_with(l)) {
        true => Path::new("usr").join(bare),
        false => bare.to_path_buf(),
    }
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Failed> {
    let copied = File::open(from).and_then(|mut from| {
        let mut to = File::create(to)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(PermissionsExt::from_mode(mode))?;
        to.sync_all()
    });
    copied.map_err(at("write", to))
}

/// The libraries that this process runs with, its loader included. Nothing is loaded later: names
/// of users and hosts are not looked up.
fn libraries() -> io::Result<BTreeSet<PathBuf>> {
    let own = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|l| {
        let path = l.split_once('/').map(|(_, p)| format!("/{p}"))?;
        let name = path.rsplit('/').next()?;
        let library = name.contains(".so");
        (library && !path.ends_with("(deleted)")).then(|| PathBuf::from(path))
    });
    Ok(paths.filter(|p| *p != own).collect())
}

/// The loader that a 64-bit ELF program asks for; none for one that is linked statically.
fn loader(program: &Path) -> io::Result<Option<PathBuf>> {
    let file = File::open(program)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a program of this machine");
    if head.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err(wrong());
    }
    let number = |bytes: &[u8], at: usize, len: usize| {
        let part = bytes.get(at..at + len)?;
        Some(part.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
    };
    let field = |at, len| number(&head, at, len).ok_or_else(wrong);
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    if !(56..=MOST).contains(&size) || count > MOST {
        return Err(wrong());
    }
    for n in 0..count {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.saturating_add(n * size))?;
        let field = |at, len| number(&entry, at, len).ok_or_else(wrong);
        // PT_INTERP.
        if field(0, 4)? == 3 {
            let (offset, length) = (field(8, 8)?, field(32, 8)?);
            if length == 0 || length > MOST {
                return Err(wrong());
            }
            let mut name = vec![0; length as usize];
            file.read_exact_at(&mut name, offset)?;
            let name = String::from_utf8(name).map_err(|_| wrong())?;
            return Ok(Some(name.trim_end_matches('\0').into()));
        }
    }
    Ok(None)
}

/// Whether the program starts with nothing but what is in the root: its loader, told to look there
/// alone, finds everything.
fn starts(root: &Path, files: &[PathBuf]) -> Result<(), Failed> {
    let program = root.join("usr/bin/trivet");
    let Some(loader) = loader(&program).map_err(at("read", &program))? else {
        return Ok(());
    };
    let real = fs::canonicalize(&loader).map_err(at("find", &loader))?;
    let mut paths = BTreeSet::new();
    for f in files
        .iter()
        .filter(|f| f.starts_with("usr/lib") || f.starts_with("usr/lib64"))
    {
        paths.extend(f.parent().map(|p| root.join(p).display().to_string()));
    }
    let paths: Vec<String> = paths.into_iter().collect();
    let run = root.join(inside(&real));
    let mut child = Command::new(&run)
        .args([
            "--inhibit-cache",
            "--library-path",
            &paths.join(":"),
            "--list",
        ])
        .arg(&program)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(at("run", &run))?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        // A list of files; it ends when the loader does, which runs nothing.
        let mut out = out.take(MOST * 16);
        out.read_to_string(&mut said).map_err(at("hear", &run))?;
    }
    let status = child.wait().map_err(at("hear", &run))?;
    let outside = said.lines().find(|l| {
        let path = l.split("=> ").nth(1).unwrap_or_default();
        l.contains("not found") || (path.starts_with('/') && !Path::new(path).starts_with(root))
    });
    match outside {
        None if status.success() => Ok(()),
        None => Err(at("run", &run)(io::Error::other(status.to_string()))),
        Some(line) => Err(at("run", &run)(io::Error::other(format!(
            "it would need more than is there: {}",
            line.trim()
        )))),
    }
}

/// Everything in it belongs to this user and group.
fn give(root: &Path, owner: u32) -> Result<(), Failed> {
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        lchown(&path, Some(owner), Some(owner)).map_err(at("give away", &path))?;
        let m = fs::symlink_metadata(&path).map_err(at("look at", &path))?;
        if m.is_dir() {
            for entry in fs::read_dir(&path).map_err(at("look into", &path))? {
                left.push(entry.map_err(at("look into", &path))?.path());
            }
        }
        // Taken away by chown for files that may run.
        if m.is_file() {
            fs::set_permissions(&path, m.permissions()).map_err(at("write", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_host_have_one_place() {
        let of = |p: &str| inside(Path::new(p)).display().to_string();
        assert_eq!(of("/lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(of("/usr/lib/x/libc.so.6"), "usr/lib/x/libc.so.6");
        assert_eq!(of("/library/x.so"), "library/x.so");
    }

    #[test]
    fn what_is_no_program_has_no_loader() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, [0; 100]).unwrap();
        assert!(loader(&file).is_err());
        let mut head = vec![0xff; 200];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        fs::write(&file, head).unwrap();
        assert!(loader(&file).is_err(), "sizes out of all bounds");
        let own = loader(Path::new("/proc/self/exe")).unwrap();
        assert!(own.is_none_or(|l| l.is_absolute()));
    }

    #[test]
    fn a_root_is_made_again_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let owner = rustix::process::geteuid().as_raw();
        for _ in 0..2 {
            assert!(!holds_something_else(&root).unwrap());
            let Ok(made) = make(&root, owner) else {
                unreachable!("a root cannot be made");
            };
            assert!(made.files.contains(&"usr/bin/trivet".into()));
            assert!(root.join("lib/.").is_dir() && root.join(MARK).is_file());
        }
        let all: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(all.len(), 1, "{all:?}");
        let other = dir.path().join("other");
        fs::create_dir_all(other.join("etc")).unwrap();
        assert!(holds_something_else(&other).unwrap());
    }
}
