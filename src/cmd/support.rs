//! `trivet support-bundle`: what somebody who is to help needs to see, in one small archive.
//!
//! No secrets: key files are never opened for their content, and of the configuration and of every
//! text the public keys, the notify command and whatever looks like a password are left out. It
//! needs no daemon; what cannot be had is named in `missing.txt`.
//!
//! The archive is made by the system's `tar`. Bounded: [`MOST`] bytes and [`PATIENCE`] for each
//! part.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use trivet_node::Config;
use trivet_node::child::end_within;
use trivet_node::messages::{Answer, Ask, ClusterReport};

use super::cluster::Cluster;
use super::doctor::{self, DoctorArgs};
use super::serve::host_name;
use crate::error::CliError;
use crate::output::{self, Format};

/// Bytes of one part, at most.
const MOST: u64 = 4 << 20;
/// One part takes at most this long.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines of the journal.
const LINES: &str = "3000";
/// How the public form of a key begins.
const KEY: &str = "trivet1:";
/// Names of a pool that are listed, at most.
const NAMES: usize = 20_000;

/// Where to, and of what.
#[derive(Debug, Args)]
pub struct SupportArgs {
    #[command(flatten)]
    doctor: DoctorArgs,
    /// The archive to be made [default: trivet-support-HOST-TIME.tar.gz, here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Made {
    file: PathBuf,
    bytes: u64,
    parts: Vec<String>,
    missing: Vec<String>,
}

/// Makes it.
///
/// # Errors
/// It cannot be written, or there is no `tar`.
pub fn run(args: &SupportArgs, format: Format) -> Result<(), CliError> {
    let name = format!("trivet-support-{}-{}", host_name(), seconds());
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| format!("{name}.tar.gz").into());
    let failed = |what: &str, e: io::Error| {
        CliError::failed(format_args!("cannot {what} {}: {e}", out.display()))
            .hint("name another file: --out FILE")
    };
    // Readable by its maker alone, and nobody else's file.
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&out)
        .map_err(|e| failed("make", e))?;
    let made = collect(args, &out, &name);
    let made = match made {
        Ok(made) => made,
        Err(e) => {
            // An empty archive would be taken for one.
            let _ = std::fs::remove_file(&out);
            return Err(e);
        }
    };
    output::print(format, &made, |m| {
        let mut text = format!("{}: {} KiB\n", m.file.display(), m.bytes.div_ceil(1024));
        for missing in &m.missing {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "not in it: {missing}");
        }
        text.push_str("Look through it before you send it.\n");
        text
    })
}

fn collect(args: &SupportArgs, out: &Path, name: &str) -> Result<Made, CliError> {
    let beside = out.parent().filter(|p| !p.as_os_str().is_empty());
    let work = beside.unwrap_or(Path::new("."));
    let work = Work::new(work).map_err(|e| {
        CliError::failed(format_args!("cannot work beside {}: {e}", out.display()))
            .hint("name a file in a directory that can be written: --out FILE")
    })?;
    let root = work.0.join(name);
    let mut bundle = Bundle {
        root: root.clone(),
        parts: Vec::new(),
        missing: Vec::new(),
    };
    bundle.fill(args).map_err(|e| {
        CliError::failed(format_args!("cannot write {}: {e}", root.display()))
            .hint("is the disk full? name another file: --out FILE")
    })?;
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(out).arg("-C").arg(&work.0).arg(name);
    let log = work.0.join("tar.log");
    bounded(&mut tar, &log).map_err(|e| {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        CliError::failed(format_args!("tar: {e} {}", said.trim()))
            .hint("it needs the programs tar and gzip")
    })?;
    let bytes = std::fs::metadata(out).map_or(0, |m| m.len());
    Ok(Made {
        file: out.to_path_buf(),
        bytes,
        parts: bundle.parts,
        missing: bundle.missing,
    })
}

/// A directory for the parts, gone again whatever happens.
struct Work(PathBuf);

impl Work {
    fn new(beside: &Path) -> io::Result<Work> {
        let dir = beside.join(format!(".trivet-support-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Work(dir))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What stays is a hidden directory with nothing secret in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Bundle {
    root: PathBuf,
    parts: Vec<String>,
    missing: Vec<String>,
}

impl Bundle {
    fn fill(&mut self, args: &SupportArgs) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.root)?;
        self.put("about.txt", &about())?;
        let file = &args.doctor.cluster.config;
        match read(file) {
            Ok(text) => self.put("trivet.toml", &without_secrets(&text))?,
            Err(e) => self.lack("trivet.toml", &format!("{}: {e}", file.display())),
        }
        let config = Config::load(file).ok();
        match args.doctor.cluster.open() {
            Ok(cluster) => self.ask(&cluster)?,
            Err(e) => self.lack("status.json", &e.to_string()),
        }
        let found = doctor::diagnose(&args.doctor);
        self.json("doctor.json", &found)?;
        self.journal()?;
        let mounts = read(Path::new("/proc/mounts")).unwrap_or_default();
        self.put("mounts.txt", &doctor::own_mounts(config.as_ref(), &mounts))?;
        let own = config.iter().flat_map(|c| &c.nodes);
        for node in own.filter(|n| found.nodes.contains(&n.name)) {
            for (pool, dir) in &node.pools {
                let name = format!("pool-{}-{pool}.txt", node.name);
                match listing(dir) {
                    Ok(text) => self.put(&name, &text)?,
                    Err(e) => self.lack(&name, &format!("{}: {e}", dir.display())),
                }
            }
            if let Some(at) = node.metrics {
                let name = format!("metrics-{}.txt", node.name);
                match metrics(at) {
                    Ok(text) => self.put(&name, &text)?,
                    Err(e) => self.lack(&name, &format!("{at}: {e}")),
                }
            }
        }
        let missing = self.missing.join("\n");
        self.put("missing.txt", &missing)
    }

    /// What the daemons say.
    fn ask(&mut self, cluster: &Cluster) -> io::Result<()> {
        let report: ClusterReport = match cluster.report() {
            Ok(report) => report,
            Err(e) => {
                self.lack("status.json", &e.to_string());
                return Ok(());
            }
        };
        self.json("status.json", &report)?;
        for node in &report.nodes {
            let name = format!("events-{}.json", node.node);
            match cluster.ask(&node.node, &Ask::Events { after: 0 }, PATIENCE) {
                Ok(Answer::Events(events)) => self.json(&name, &events)?,
                Ok(_) => self.lack(&name, "an answer to another question"),
                Err(e) => self.lack(&name, &e.to_string()),
            }
        }
        Ok(())
    }

    fn journal(&mut self) -> io::Result<()> {
        let raw = self.root.join("journal.raw");
        let mut command = Command::new("journalctl");
        command.args(["-u", "trivet", "-n", LINES, "--no-pager", "-o", "short-iso"]);
        let result = bounded(&mut command, &raw).and_then(|()| read(&raw));
        let removed = std::fs::remove_file(&raw);
        match result {
            Ok(text) => self.put("journal.txt", &text)?,
            Err(e) => self.lack("journal.txt", &format!("journalctl: {e}")),
        }
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn json(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.put(name, &text)
    }

    fn put(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.root.join(name))?;
        file.write_all(without_keys(text).as_bytes())?;
        self.parts.push(name.to_owned());
        Ok(())
    }

    fn lack(&mut self, name: &str, why: &str) {
        let why = why.strip_prefix("error: ").unwrap_or(why);
        self.missing.push(format!("{name}: {why}"));
    }
}

fn seconds() -> u64 {
    trivet_node::host::wall_ms() / 1000
}

fn about() -> String {
    let system = rustix::system::uname();
    let release = read(Path::new("/etc/os-release")).unwrap_or_default();
    let pve = std::fs::read_dir("/usr/share/doc/pve-manager").is_ok();
    format!(
        "trivet {}\nseconds since 1970: {}\nhost: {}\nkernel: {} {}\nProxmox VE: {}\n\n{release}",
        env!("CARGO_PKG_VERSION"),
        seconds(),
        system.nodename().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        if pve { "yes" } else { "no" },
    )
}

/// A text, up to [`MOST`] bytes of it.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Values of the configuration that may be, or hold, somebody's secret.
const SECRET: [&str; 6] = ["key", "notify", "token", "password", "passwd", "secret"];

/// A line `name = value` whose name is one of those, and the lines of a value that goes on, lose
/// the value; comments may hold anything and go, too.
fn without_secrets(toml: &str) -> String {
    let mut out = String::new();
    let mut inside: Option<&str> = None;
    for line in toml.lines() {
        if let Some(end) = inside {
            if line.contains(end) {
                inside = None;
            }
            continue;
        }
        let bare = line.trim_start();
        if bare.starts_with('#') {
            continue;
        }
        let (name, value) = bare.split_once('=').unwrap_or((bare, ""));
        let name = name.trim().trim_matches(['"', '\'']).to_lowercase();
        if SECRET.iter().any(|s| name.contains(s)) && !value.is_empty() {
            let _ = writeln!(out, "# {name}: left out");
            let opened = ["\"\"\"", "'''"].into_iter();
            let mut opened = opened.filter(|q| value.matches(q).count() % 2 == 1);
            inside = opened.next();
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Public keys, private ones, and passwords in addresses, wherever they stand.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ");
        if inside || begins {
            if begins {
                out.push_str("(a key or certificate: left out)\n");
            }
            inside = !line.contains("-----END ");
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find(KEY) {
            let (before, key) = rest.split_at(at);
            out.push_str(before);
            out.push_str("(key)");
            let key = key.get(KEY.len()..);
            let is_key = |c: char| c.is_ascii_alphanumeric() || "+/=-_".contains(c);
            rest = key.unwrap_or_default().trim_start_matches(is_key);
        }
        out.push_str(rest);
    }
    out
}

/// Names and sizes beneath a directory.
fn listing(dir: &Path) -> io::Result<String> {
    let mut out = String::from("bytes, bytes on disk, changed (seconds since 1970), name\n");
    let mut left = vec![dir.to_path_buf()];
    let mut names = 0;
    let began = Instant::now();
    // What the pool itself says is an error; what vanishes beneath while we look is not.
    std::fs::read_dir(dir)?;
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(m) = path.symlink_metadata() else {
                continue;
            };
            let shown = path.strip_prefix(dir).unwrap_or(&path).display();
            let _ = writeln!(
                out,
                "{} {} {} {shown}",
                m.len(),
                m.blocks() * 512,
                m.mtime()
            );
            if m.is_dir() {
                left.push(path);
            }
            names += 1;
            if names >= NAMES || began.elapsed() > PATIENCE {
                out.push_str("... and more\n");
                return Ok(out);
            }
        }
    }
    Ok(out)
}

/// The figures of a daemon, as Prometheus would ask.
fn metrics(at: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    write!(
        socket,
        "GET /metrics HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    socket.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command with its output in a file, within [`PATIENCE`].
fn bounded(command: &mut Command, into: &Path) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(into)?;
    let errors = file.try_clone()?;
    let command = command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let mut child = command.spawn()?;
    match end_within(&mut child, PATIENCE)? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_left_out_and_the_rest_stays() {
        let toml = "cluster = \"x\"\n# the password is 123\nnotify = \"curl -H 'Token: 123'\"\n\
                    [[node]]\nname = \"a\"\nkey = \"trivet1:AAAA+/=\"\n\
                    my_password = \"\"\"\n123\n\"\"\"\naddresses = [\"127.0.0.1:1\"]\n";
        let text = without_secrets(toml);
        assert!(!text.contains("123") && !text.contains("AAAA"), "{text}");
        for stays in ["cluster = \"x\"", "name = \"a\"", "addresses"] {
            assert!(text.contains(stays), "{stays}: {text}");
        }
    }

    #[test]
    fn keys_are_left_out_of_any_text() {
        let text =
            "a trivet1:ab+/= b\n-----BEGIN PRIVATE KEY-----\nMC4\n-----END PRIVATE KEY-----\nc\n";
        let clean = without_keys(text);
        assert_eq!(clean, "a (key) b\n(a key or certificate: left out)\nc\n");
        let one = "\"trivet1:xyz\",trivet1:";
        assert_eq!(without_keys(one), "\"(key)\",(key)");
    }

    #[test]
    fn a_command_that_hangs_or_fails_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        bounded(Command::new("echo").arg("said"), &log).unwrap();
        assert_eq!(read(&log).unwrap(), "said\n");
        assert!(bounded(&mut Command::new("false"), &log).is_err());
        assert!(bounded(&mut Command::new("no-such-program"), &log).is_err());
    }
}
