//! `trivet doctor` and `trivet support-bundle` beside a real daemon, and without one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/wait.rs"]
mod wait;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Served, address, done, trivet};
use serde_json::Value;
use wait::within;

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "Token-of-the-alarm";

/// A cluster of one node in a directory, at an address of loopback that no other test has.
fn cluster(dir: &Path, number: usize) {
    let address = address(number);
    done(
        trivet(dir)
            .args(["init", "--node", &format!("a={address}")])
            .args(["--allow", "127.0.0.1"])
            .args(["--out".as_ref(), dir.as_os_str()])
            .args(["--pool".as_ref(), dir.join("pool").as_os_str()]),
    );
    let file = dir.join("trivet.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = format!("notify = \"curl -H 'X: {SECRET}' http://127.0.0.1:1\"\n{text}");
    let text = text.replace(
        "roles = ",
        &format!("metrics = \"{address}:7180\"\nroles = "),
    );
    std::fs::write(&file, text).unwrap();
    done(trivet(dir).args(["pool", "create"]).arg(dir.join("pool")));
}

fn serve(dir: &Path) -> Served {
    let child = trivet(dir)
        .args(["serve", "--no-supervisor", "--node", "a", "--state"])
        .arg(dir.join("state"))
        .stdout(Stdio::null())
        .spawn();
    let served = Served(child.unwrap());
    within(PATIENCE, "the daemon answers", || {
        let out = trivet(dir).arg("status").output().unwrap();
        out.status.code() == Some(2)
    });
    served
}

/// Its findings and its exit code.
fn doctor(dir: &Path, more: &[&str]) -> (Value, Option<i32>) {
    let mut command = trivet(dir);
    let out = command.args(["doctor", "-o", "json"]).args(more).output();
    let out = out.unwrap();
    let said = serde_json::from_slice(&out.stdout);
    (
        said.unwrap_or_else(|e| panic!("{e}: {out:?}")),
        out.status.code(),
    )
}

/// Whether a finding of this level and check says this.
fn says(found: &Value, level: &str, check: &str, what: &str) -> bool {
    let all = found["findings"].as_array().unwrap();
    all.iter().any(|f| {
        let remedy = level == "ok" || f["remedy"].as_str().is_some_and(|r| !r.is_empty());
        f["level"] == level
            && f["check"] == check
            && f["what"].as_str().unwrap().contains(what)
            && remedy
    })
}

#[test]
fn a_doctor_is_of_use_with_and_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Nothing at all.
    let (found, code) = doctor(dir, &[]);
    assert_eq!(code, Some(2));
    assert!(says(
        &found,
        "bad",
        "config",
        "cannot read the configuration"
    ));

    cluster(dir, 96);
    let (found, code) = doctor(dir, &[]);
    assert_eq!(code, Some(2));
    assert!(
        says(&found, "ok", "config", "its owner's alone"),
        "{found:#}"
    );
    assert!(says(&found, "bad", "cluster", "node a does not answer"));
    assert!(says(&found, "ok", "ports", ":7100 is free"));
    assert_eq!(found["nodes"][0], "a", "found by its address");
    // The pool is looked at all the same, and nothing of that stays.
    let disk = |found: &Value| {
        ["ok", "warn", "bad"]
            .iter()
            .any(|l| says(found, l, "disk", "with fdatasync"))
    };
    assert!(disk(&found), "{found:#}");
    let names = std::fs::read_dir(dir.join("pool")).unwrap().count();
    assert_eq!(names, 1, "the id file alone");

    let served = serve(dir);
    let (found, code) = doctor(dir, &[]);
    assert!(says(&found, "ok", "cluster", "node a answers"), "{found:#}");
    assert!(says(&found, "ok", "version", env!("CARGO_PKG_VERSION")));
    assert!(says(
        &found,
        "ok",
        "clock",
        "node a has this machine's time"
    ));
    assert!(
        says(&found, "ok", "ports", ":7100 is trivet's"),
        "{found:#}"
    );
    assert!(says(&found, "ok", "network", "all nodes have MTU"));
    assert!(disk(&found), "{found:#}");
    let pid = format!("{} (a)", served.0.id());
    let process = ["ok", "warn"];
    assert!(process.iter().any(|l| says(&found, l, "process", &pid)));
    // No volume was made.
    assert!(says(&found, "bad", "volume", "vms is active nowhere"));
    assert_eq!(code, Some(2));
    assert_eq!(found["worst"], "bad");

    // A second opinion: another file than the one in force, and a key that others can read.
    let file = dir.join("trivet.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let other = dir.join("other.toml");
    std::fs::write(&other, text.replace("\"automatic\"", "\"external\"")).unwrap();
    let (found, _) = doctor(dir, &["--config", other.to_str().unwrap()]);
    assert!(
        says(&found, "bad", "config", "\"automatic\" in force on a"),
        "{found:#}"
    );
    let key = dir.join("a.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let (found, _) = doctor(dir, &[]);
    assert!(says(&found, "bad", "config", "can be read by others"));
    assert!(
        says(&found, "bad", "config", "no daemon can be asked"),
        "{found:#}"
    );

    let out = trivet(dir)
        .args(["doctor", "--node", "x"])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("names no node x"), "{text}");
    assert!(text.lines().any(|l| l.trim_start().starts_with("-> ")));
    assert!(out.stderr.is_empty(), "the exit code says the rest");
}

#[test]
fn what_proxmox_has_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    cluster(dir, 97);
    let pve = dir.join("pve");
    std::fs::create_dir_all(pve.join("lxc")).unwrap();
    std::fs::write(pve.join("storage.cfg"), "dir: local\n\tpath /var/lib/vz\n").unwrap();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/lxc/101.conf");
    // A number that no host has.
    std::fs::copy(recipe, pve.join("lxc/999999999.conf")).unwrap();
    let (found, _) = doctor(dir, &["--proxmox", "--pve", pve.to_str().unwrap()]);
    assert!(says(
        &found,
        "warn",
        "proxmox",
        "no storage entry for volume vms"
    ));
    let bad = "this host has no /etc/trivet/ct-999999999.conf";
    assert!(says(&found, "bad", "proxmox", bad), "{found:#}");
    let (found, _) = doctor(dir, &["--proxmox", "--pve", dir.to_str().unwrap()]);
    assert!(says(&found, "bad", "proxmox", "cannot read"), "{found:#}");
}

/// Unpacks a bundle; all its files.
fn unpacked(dir: &Path, file: &Path) -> Vec<(PathBuf, String)> {
    let into = dir.join("unpacked");
    std::fs::create_dir(&into).unwrap();
    done(
        Command::new("tar")
            .arg("-xzf")
            .arg(file)
            .arg("-C")
            .arg(&into),
    );
    let top: Vec<_> = std::fs::read_dir(&into).unwrap().flatten().collect();
    assert_eq!(top.len(), 1, "one directory, with the host's name");
    let mut files = Vec::new();
    for f in std::fs::read_dir(top[0].path()).unwrap().flatten() {
        let text = std::fs::read_to_string(f.path()).unwrap();
        files.push((f.file_name().into(), text));
    }
    std::fs::remove_dir_all(&into).unwrap();
    files
}

#[test]
fn a_bundle_has_what_helps_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    cluster(dir, 98);
    let bundle = |name: &str| {
        let out = dir.join(name);
        done(trivet(dir).arg("support-bundle").arg("--out").arg(&out));
        let mode = std::fs::metadata(&out).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = unpacked(dir, &out);
        let key = std::fs::read_to_string(dir.join("a.key")).unwrap();
        for (name, text) in &files {
            for line in key.lines() {
                assert!(!text.contains(line), "{}: {line}", name.display());
            }
            assert!(!text.contains(SECRET), "{}", name.display());
        }
        files
    };
    let has = |files: &[(PathBuf, String)], name: &str, what: &str| {
        let found = files.iter().find(|(n, _)| n == Path::new(name));
        let (_, text) = found.unwrap_or_else(|| panic!("no {name}"));
        assert!(text.contains(what), "{name}: {text}");
    };
    let without = bundle("without.tar.gz");
    has(&without, "missing.txt", "status.json");
    has(&without, "trivet.toml", "cluster = ");
    has(&without, "doctor.json", "node a does not answer");
    has(&without, "pool-a-main.txt", "pool.toml");

    let _served = serve(dir);
    let with = bundle("with.tar.gz");
    has(&with, "status.json", "\"version\"");
    has(&with, "events-a.json", "[");
    has(&with, "metrics-a.txt", "trivet_pool_free_bytes");
    has(&with, "doctor.json", "node a answers");
    has(&with, "about.txt", "kernel: ");

    // What is there stays as it is, and nothing else does.
    let again = trivet(dir)
        .args(["support-bundle", "--out"])
        .arg(dir.join("with.tar.gz"))
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    let hidden = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with('.');
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().flatten().collect();
    assert!(!left.iter().any(hidden), "{left:?}");
}

#[test]
fn a_root_for_a_container_runs_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let make = || {
        let mut command = trivet(dir.path());
        command.args(["proxmox", "container-root"]).arg(&root);
        command
    };
    done(&mut make());
    done(&mut make());
    let run = Command::new("chroot")
        .arg(&root)
        .args(["/usr/bin/trivet", "limits"])
        .output();
    // Only root may; the command itself has asked the loader about everything else.
    if rustix::process::geteuid().is_root() {
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        let m = std::fs::metadata(root.join("usr/bin/trivet")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&m), 100_000);
    }
    std::fs::remove_file(root.join("etc/trivet-root")).unwrap();
    let out = make().output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("is not empty")
    );
}
