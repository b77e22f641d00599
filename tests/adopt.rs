//! What was tried with `trivet up` comes along: `trivet init --adopt` makes its volume one of a
//! cluster, and its replicas move to other nodes while a client writes. Real daemons, each with its
//! own key, on loopback addresses.

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

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use daemon::{Served, address, done, trivet};
use rustix::process::{Pid, Signal, kill_process};
use trivet_nfs::client::nfs::{NfsClient, Url};

const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 64 << 10;

fn client(port: u16, export: &str) -> NfsClient {
    let url = format!("nfs://127.0.0.1{export}?nfsport={port}&mountport={port}");
    let url: Url = url.parse().unwrap();
    let mut client = None;
    wait::within(PATIENCE, "the export can be mounted", || {
        client = NfsClient::mount(&url, true).ok();
        client.is_some()
    });
    client.unwrap()
}

fn content(n: u64) -> Vec<u8> {
    let word = |i: u64| (n * 0x9e37_79b9 + i).to_le_bytes();
    (0..CHUNK as u64 / 8).flat_map(word).collect()
}

/// Durably.
fn write(client: &mut NfsClient, fh: &[u8], chunks: std::ops::Range<u64>) {
    for n in chunks {
        client.write(fh, n * CHUNK as u64, &content(n), 2).unwrap();
    }
}

fn check(client: &mut NfsClient, fh: &[u8], chunks: u64) {
    for n in 0..chunks {
        let (data, _) = client.read(fh, n * CHUNK as u64, CHUNK as u32).unwrap();
        assert!(data[..] == content(n)[..], "chunk {n}");
    }
}

fn end(mut served: Served) {
    let pid = Pid::from_child(&served.0);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(served.0.wait().unwrap().success());
}

fn members(dir: &Path) -> Vec<String> {
    let list = ["replica", "list", "vms", "-o", "json"];
    let out = trivet(dir).args(list).output().unwrap();
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let node = |r: &serde_json::Value| r[1]["node"].as_str().unwrap().to_owned();
    let rows = rows.as_array().cloned().unwrap_or_default();
    let mut nodes: Vec<String> = rows.iter().map(node).collect();
    nodes.sort();
    nodes
}

#[test]
fn what_trivet_up_made_becomes_a_cluster_and_moves_to_its_hosts_in_use() {
    // Given what somebody tried on one machine.
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().canonicalize().unwrap();
    let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let [before, after] = held.map(|l| l.local_addr().unwrap().port());
    let data = dir.join("data");
    let up = || {
        let mut up = trivet(&dir);
        up.args([
            "up",
            "--size",
            "1G",
            "--nfs",
            &format!("127.0.0.1:{before}"),
        ]);
        up.arg("--dir").arg(&data).stdout(Stdio::null());
        up
    };
    let running = Served(up().spawn().unwrap());
    let mut at = client(before, "/trivet");
    let root = at.root.clone();
    let fh = at.create(&root, b"disk", None).unwrap();
    write(&mut at, &fh, 0..50);

    // While it runs it is not taken; nor is what is none.
    let out = dir.join("cluster");
    let adopt = |from: &Path, out: &Path| {
        let mut init = trivet(&dir);
        init.args(["init", "--driver", "automatic", "--allow", "127.0.0.0/8"]);
        for (n, name) in ["pve1", "pve2", "pve3"].iter().enumerate() {
            init.arg("--node")
                .arg(format!("{name}={}", address(90 + n)));
        }
        init.arg("--out").arg(out).arg("--adopt").arg(from);
        init
    };
    let refused = |from: &Path, says: &str| {
        let tried = adopt(from, &out).output().unwrap();
        let said = String::from_utf8(tried.stderr).unwrap();
        assert!(!tried.status.success() && said.contains(says), "{said}");
        assert!(!out.join("trivet.toml").exists());
    };
    refused(&data, "`trivet up` must have ended");
    refused(&dir, "no volume.toml");
    check(&mut at, &fh, 50);
    drop(at);
    end(running);

    // When it has ended, it is; and `trivet up` has it no more.
    done(&mut adopt(&data, &out));
    assert!(!up().output().unwrap().status.success());
    refused_again(&dir, &adopt(&data, &dir.join("other")).output().unwrap());
    let file = out.join("trivet.toml");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text = text.replace("port = 2049", &format!("port = {after}"));
    for name in ["pve2", "pve3"] {
        let pool = out.join(format!("pool-{name}"));
        text = text.replacen("/var/lib/trivet/pool", pool.to_str().unwrap(), 1);
        done(trivet(&out).args(["pool", "create"]).arg(pool));
    }
    std::fs::write(&file, text).unwrap();
    std::fs::copy(out.join("pve1.key"), out.join("a.key")).unwrap();
    let serve = |name: &str| {
        let child = trivet(&out)
            .args(["serve", "--no-supervisor", "--node", name, "--key"])
            .arg(out.join(format!("{name}.key")))
            .arg("--state")
            .arg(out.join(format!("state-{name}")))
            .stdout(Stdio::null())
            .spawn();
        Served(child.unwrap())
    };
    let _hosts = ["pve1", "pve2", "pve3"].map(serve);
    let lodgers = ["pve1-b", "pve1-c"].map(serve);
    done(trivet(&out).args(["wait", "vms", "--for", "redundant", "--timeout", "60"]));
    assert_eq!(members(&out), ["pve1", "pve1-b", "pve1-c"]);
    let mut at = client(after, "/vms");
    let root = at.root.clone();
    let (fh, _) = at.lookup(&root, b"disk").unwrap();
    check(&mut at, &fh, 50);

    // Then its replicas move, and the client writes on all the while.
    let mut chunks = 50;
    for (host, lodger) in [("pve2", "pve1-b"), ("pve3", "pve1-c")] {
        let mut moves = trivet(&out)
            .args(["replica", "move", "vms", host, "--from", lodger, "--yes"])
            .args(["--wait", "--timeout", "60"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut moved = None;
        wait::within(PATIENCE, "the replica has moved", || {
            write(&mut at, &fh, chunks..chunks + 1);
            chunks += 1;
            moved = moves.try_wait().unwrap();
            moved.is_some()
        });
        assert!(moved.unwrap().success());
    }
    assert_eq!(members(&out), ["pve1", "pve2", "pve3"]);
    lodgers.into_iter().for_each(end);
    let text = std::fs::read_to_string(&file).unwrap();
    let mut config: toml::Table = toml::from_str(&text).unwrap();
    let nodes = config["node"].as_array_mut().unwrap();
    nodes.retain(|n| !n["name"].as_str().unwrap().starts_with("pve1-"));
    let new = out.join("new.toml");
    std::fs::write(&new, toml::to_string(&config).unwrap()).unwrap();
    std::fs::rename(new, &file).unwrap();
    wait::within(PATIENCE, "three nodes, and all of it in sync", || {
        let status = trivet(&out).arg("status").output().unwrap();
        let said = String::from_utf8(status.stdout).unwrap();
        status.status.success() && !said.contains("pve1-")
    });
    write(&mut at, &fh, chunks..chunks + 5);
    check(&mut at, &fh, chunks + 5);
    println!("{} chunks of {CHUNK} bytes, written throughout", chunks + 5);
}

fn refused_again(dir: &Path, tried: &std::process::Output) {
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(said.contains("taken over before"), "{said}");
    assert!(!dir.join("other/trivet.toml").exists());
}
