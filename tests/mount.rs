//! Active by use: `trivet mount`, also as mount(8) starts it, makes a node active, and unmounting
//! ends that. Three daemons, each with its own key, on loopback addresses.

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

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use daemon::{Served, address, done, trivet};

const PATIENCE: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["a", "b", "c"];

struct Cluster {
    dir: PathBuf,
    running: Vec<Served>,
}

impl Cluster {
    /// Three nodes that hear each other, and the volume `vms`, without an export.
    fn start(dir: &Path) -> Cluster {
        let mut init = trivet(dir);
        init.args(["init", "--driver", "manual", "--allow", "127.0.0.1"]);
        for (i, node) in NODES.iter().enumerate() {
            init.arg("--node")
                .arg(format!("{node}={}", address(86 + i)));
        }
        done(init.arg("--out").arg(dir));
        let file = dir.join("trivet.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let (mut text, _) = text.split_once("[[volume.export]]").unwrap();
        let mut with_pools = String::new();
        for node in NODES {
            let (before, after) = text.split_once("/var/lib/trivet/pool").unwrap();
            with_pools.push_str(before);
            with_pools.push_str(dir.join(format!("pool-{node}")).to_str().unwrap());
            text = after;
        }
        std::fs::write(&file, with_pools + text).unwrap();
        let running = NODES.map(|node| {
            done(
                trivet(dir)
                    .args(["pool", "create"])
                    .arg(dir.join(format!("pool-{node}"))),
            );
            let child = at(dir, node)
                .args(["serve", "--no-supervisor", "--node", node, "--state"])
                .arg(dir.join(format!("state-{node}")))
                .stdout(Stdio::null())
                .spawn();
            Served(child.unwrap())
        });
        let cluster = Cluster {
            dir: dir.to_owned(),
            running: running.into(),
        };
        wait::within(PATIENCE, "the volume is made", || {
            let made = trivet(dir)
                .args(["volume", "create", "vms", "--size", "1G"])
                .output();
            made.unwrap().status.success()
        });
        cluster
    }

    /// On this node, with its key.
    fn on(&self, node: &str, args: &[&str]) -> Output {
        at(&self.dir, node).args(args).output().unwrap()
    }

    fn good(&self, node: &str, args: &[&str]) -> String {
        let out = self.on(node, args);
        assert!(out.status.success(), "{node} {args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn refused(&self, node: &str, args: &[&str], says: &str) {
        let out = self.on(node, args);
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(
            !out.status.success() && said.contains(says),
            "{node} {args:?}: {said}"
        );
        assert!(said.contains("; "), "no remedy: {said}");
    }

    /// The active node, if one is.
    fn active(&self) -> Option<String> {
        let seen = self.on("a", &["status", "-o", "json"]).stdout;
        let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
        let mut nodes = seen["nodes"].as_array().unwrap().iter();
        let active = nodes.find(|n| {
            let volumes = n["report"]["volumes"].as_array();
            volumes.is_some_and(|v| v[0]["role"]["standing"] == "active")
        });
        active.map(|n| n["node"].as_str().unwrap().to_owned())
    }

    fn until_active_on(&self, node: Option<&str>) {
        wait::within(PATIENCE, &format!("active on {node:?}"), || {
            self.active().as_deref() == node
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.running.clear();
        for node in NODES {
            // What a test that failed has left mounted.
            let dir = self.dir.join(format!("mnt {node}"));
            let _ = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn at(dir: &Path, node: &str) -> Command {
    let mut command = trivet(dir);
    command.env("TRIVET_KEY", dir.join(format!("{node}.key")));
    command
}

fn is_mounted(dir: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", dir.display()))
}

/// A file with this content, synced.
fn put(path: &Path, content: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_node_is_active_for_as_long_as_it_has_the_volume_mounted() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        let test = "a_node_is_active_for_as_long_as_it_has_the_volume_mounted";
        return trivet_faultfs::skipped(test, "needs root and /dev/fuse").unwrap();
    }
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().canonicalize().unwrap();
    let cluster = Cluster::start(&dir);
    let mnt = NODES.map(|n| dir.join(format!("mnt {n}")));
    mnt.iter().for_each(|d| std::fs::create_dir(d).unwrap());
    let [a, b, _] = mnt.each_ref().map(|d| d.to_str().unwrap());
    let mount = |dir| ["mount", "vms", dir];
    let umount = |dir| ["umount", dir];

    // Where one mounts it, it is active, and elsewhere it is refused by that one's name.
    let said = cluster.good("a", &mount(a));
    assert!(said.contains("until it is unmounted"), "{said}");
    assert_eq!(cluster.active().as_deref(), Some("a"));
    assert!(is_mounted(&dir.join("mnt\\040a")));
    put(&mnt[0].join("letter"), "from a");
    wait::within(PATIENCE, "b has heard of it", || {
        let said = String::from_utf8(cluster.on("b", &mount(b)).stderr).unwrap();
        said.contains("vms is active on a")
    });
    cluster.refused("a", &mount(b), "mounted on");
    // Nobody mounts on a host but that host.
    let there = ["mount", "vms", a, "--node", "a"];
    cluster.refused("b", &there, "may not mount on a");

    // In use it is not unmounted, and stays.
    let open = File::open(mnt[0].join("letter")).unwrap();
    cluster.refused("a", &umount(a), "busy");
    assert_eq!(cluster.active().as_deref(), Some("a"));
    drop(open);
    cluster.good("a", &umount(a));
    assert_eq!(cluster.active(), None, "the command waits for the end");
    assert!(!is_mounted(&dir.join("mnt\\040a")));

    // As mount(8) starts it; with what it is not to allow.
    let helper = dir.join("mount.trivet");
    symlink(env!("CARGO_BIN_EXE_trivet"), &helper).unwrap();
    let mut call = Command::new(&helper);
    call.env("TRIVET_LOG", "error").args(["vms", b, "-n", "-o"]);
    let (config, key) = (dir.join("trivet.toml"), dir.join("b.key"));
    let options = format!(
        "rw,noexec,_netdev,x-systemd.requires=trivet.service,config={},key={}",
        config.display(),
        key.display()
    );
    call.arg(options);
    wait::within(PATIENCE, "b has heard that it is free", || {
        let out = call.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() || said.contains("active on a"),
            "{said}"
        );
        assert!(matches!(out.status.code(), Some(0 | 32)), "{out:?}");
        out.status.success()
    });
    assert_eq!(
        std::fs::read_to_string(mnt[1].join("letter")).unwrap(),
        "from a"
    );
    std::fs::copy("/bin/true", mnt[1].join("program")).unwrap();
    let ran = Command::new(mnt[1].join("program")).status();
    assert!(ran.is_err(), "noexec, and yet it runs");
    let out = Command::new(&helper).args(["vms"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");

    // And as umount(8) does by itself, with nobody to wait: the daemon notices.
    let plain = Command::new("umount")
        .arg("--internal-only")
        .arg(b)
        .status()
        .unwrap();
    assert!(plain.success());
    cluster.until_active_on(None);

    // What was active by command is mounted and unmounted, and stays active.
    cluster.good("a", &["promote", "vms", "--node", "a", "--yes"]);
    let said = cluster.good("a", &mount(a));
    assert!(said.contains("stays so"), "{said}");
    assert_eq!(
        std::fs::read_to_string(mnt[0].join("letter")).unwrap(),
        "from a"
    );
    assert!(Command::new("umount").arg(a).status().unwrap().success());
    assert!(!is_mounted(&dir.join("mnt\\040a")));
    // Whatever comes in its place is none of the daemon's. (The end of the old mount once unmounted
    // what was there since, a new one of the volume, too.)
    let other = Command::new("mount")
        .args(["-t", "tmpfs", "none", a])
        .status();
    assert!(other.unwrap().success());
    wait::within(PATIENCE, "the daemon has noticed", || {
        let out = cluster.on("a", &mount(b));
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(said.is_empty() || said.contains("mounted on"), "{said}");
        out.status.success()
    });
    cluster.good("a", &umount("vms"));
    assert!(is_mounted(&dir.join("mnt\\040a")));
    assert!(Command::new("umount").arg(a).status().unwrap().success());
    assert_eq!(cluster.active().as_deref(), Some("a"));

    // Where others decide, a mount does not.
    cluster.good("a", &["demote", "vms", "--yes"]);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("\"manual\"", "\"external\"");
    std::fs::write(dir.join("new"), text).unwrap();
    std::fs::rename(dir.join("new"), &config).unwrap();
    wait::within(PATIENCE, "the daemon has read it", || {
        let said = String::from_utf8(cluster.on("a", &mount(a)).stderr).unwrap();
        if said.is_empty() {
            cluster.good("a", &umount(a));
        }
        said.contains("a cluster manager decides")
    });
    assert_eq!(cluster.active(), None);
}
