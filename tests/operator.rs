//! What an operator does to a cluster, by the commands and with real processes: four nodes on
//! loopback addresses, an NFS client that goes on writing, and a check of all that it wrote.
//! No step waits for a fixed time: each waits for what it needs, and fails after [`PATIENCE`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "common/wait.rs"]
mod wait;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use trivet_nfs::client::nfs::{NfsClient, Url};

const TRIVET: &str = env!("CARGO_BIN_EXE_trivet");
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait::within(PATIENCE, what, done);
}

/// Ports that nobody has now.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    held.map(|l| l.local_addr().unwrap().port())
}

/// What makes a cluster: its nodes, and who decides which of them is active.
#[derive(Clone, Copy)]
struct Shape {
    nodes: &'static [&'static str],
    driver: &'static str,
}

/// One cluster at a time: there is one port 111 for all of them.
static ONE: Mutex<()> = Mutex::new(());

struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<String>,
    running: Vec<Option<Child>>,
    metrics: Vec<u16>,
    nfs: u16,
    _one: MutexGuard<'static, ()>,
}

impl Cluster {
    fn start(shape: Shape) -> Cluster {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let ports: [u16; 9] = free_ports();
        let mut init = Command::new(TRIVET);
        init.args(["init", "--allow", "127.0.0.0/8", "--driver", shape.driver]);
        init.arg("--out").arg(dir.path());
        for (name, port) in shape.nodes.iter().zip(ports) {
            init.arg("--node").arg(format!("{name}=127.0.0.1:{port}"));
        }
        good(&init.output().unwrap());
        let mut cluster = Cluster {
            nodes: shape.nodes.iter().map(|n| (*n).to_owned()).collect(),
            running: shape.nodes.iter().map(|_| None).collect(),
            metrics: ports[4..8].to_vec(),
            nfs: ports[8],
            _one: one,
            dir,
        };
        cluster.edit(|text| {
            let mut text = text.replace("port = 2049", &format!("port = {}", ports[8]));
            for (i, name) in shape.nodes.iter().enumerate() {
                let pool = cluster_pool(shape.nodes, i, &text);
                text = pool.replacen(
                    &format!("name = \"{name}\"\n"),
                    &format!(
                        "name = \"{name}\"\nmetrics = \"127.0.0.1:{}\"\n",
                        ports[4 + i]
                    ),
                    1,
                );
            }
            text
        });
        for i in 0..cluster.nodes.len() {
            let pool = cluster.pool(i);
            good(&cluster.trivet(&["pool", "create", pool.to_str().unwrap()]));
            cluster.run(i);
        }
        wait_for("all nodes hear each other", || {
            let seen = cluster.status();
            seen.is_some_and(|s| {
                let nodes = s["nodes"].as_array().unwrap().iter();
                nodes.clone().count() == cluster.nodes.len()
                    && nodes.clone().all(|n| n["trouble"].is_null())
            })
        });
        cluster
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("trivet.toml")
    }

    fn edit(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let pools = self.dir.path().join("pools");
        std::fs::create_dir_all(&pools).unwrap();
        let text = change(text).replace("POOLS", pools.to_str().unwrap());
        // Daemons look at it at any moment: all of it or nothing.
        let new = self.dir.path().join("new.toml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.config()).unwrap();
    }

    fn pool(&self, i: usize) -> PathBuf {
        self.dir.path().join("pools").join(&self.nodes[i])
    }

    /// Entries of a pool besides its identity: volumes.
    fn kept(&self, i: usize) -> usize {
        std::fs::read_dir(self.pool(i)).unwrap().count() - 1
    }

    fn run(&mut self, i: usize) {
        let log = File::create(self.dir.path().join(format!("{}.log", self.nodes[i]))).unwrap();
        let child = self
            .command(i)
            .args(["-v", "serve", "--node", &self.nodes[i], "--state"])
            .arg(self.dir.path().join(format!("state-{}", self.nodes[i])))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running[i] = Some(child);
    }

    /// To the daemon's parent and the daemon, which is in a group of its own.
    fn signal(&self, i: usize, signal: Signal) {
        let parent = self.running[i].as_ref().unwrap().id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().map(|c| c.parse().unwrap());
        for pid in [parent as i32].into_iter().chain(children) {
            // One that has ended already is as good.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    /// The daemon and its parent at once, as when power is lost.
    fn kill(&mut self, i: usize) {
        self.signal(i, Signal::KILL);
        self.running[i].take().unwrap().wait().unwrap();
    }

    fn command(&self, i: usize) -> Command {
        let mut command = Command::new(TRIVET);
        command
            .env("TRIVET_CONFIG", self.config())
            .env(
                "TRIVET_KEY",
                self.dir.path().join(format!("{}.key", self.nodes[i])),
            )
            .stdin(Stdio::null());
        command
    }

    fn trivet(&self, args: &[&str]) -> Output {
        self.command(0).args(args).output().unwrap()
    }

    /// One that must do what it is told.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.trivet(args);
        good(&out);
        String::from_utf8(out.stdout).unwrap()
    }

    /// One that must refuse, with this code and these words.
    fn refused(&self, args: &[&str], code: i32, says: &str) {
        let out = self.trivet(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
        assert!(text.contains("; ") || text.is_empty(), "no remedy: {text}");
    }

    fn status(&self) -> Option<serde_json::Value> {
        let out = self.trivet(&["status", "-o", "json"]);
        serde_json::from_slice(&out.stdout).ok()
    }

    /// The nodes of the members, sorted.
    fn members(&self) -> Vec<String> {
        let out = self.ok(&["replica", "list", "vms", "-o", "json"]);
        let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
        let node = |r: &serde_json::Value| r[1]["node"].as_str().unwrap().to_owned();
        let mut nodes: Vec<String> = rows.as_array().unwrap().iter().map(node).collect();
        nodes.sort();
        nodes
    }

    fn client(&self) -> NfsClient {
        let at = self.nfs;
        let url = format!("nfs://127.0.0.1/vms?nfsport={at}&mountport={at}");
        let url: Url = url.parse().unwrap();
        let mut client = None;
        wait_for("the export can be mounted", || {
            client = NfsClient::mount(&url, true).ok();
            client.is_some()
        });
        client.unwrap()
    }

    /// What a node answers over HTTP: status and body.
    fn get(&self, i: usize, path: &str) -> (u16, String) {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.metrics[i]));
        let mut to = TcpStream::connect(at).unwrap();
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            to,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        to.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The value of one sample on a node's page.
    fn sample(&self, i: usize, name: &str) -> Option<f64> {
        let (status, body) = self.get(i, "/metrics");
        assert_eq!(status, 200);
        let line = body.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().parse().ok()
    }
}

fn cluster_pool(nodes: &[&str], i: usize, text: &str) -> String {
    text.replacen(
        "main = \"/var/lib/trivet/pool\"",
        &format!("main = \"POOLS/{}\"", nodes[i]),
        1,
    )
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for i in 0..self.running.len() {
            if self.running[i].is_some() {
                self.signal(i, Signal::TERM);
                // One that stands still ends when it goes on.
                self.signal(i, Signal::CONT);
                let _ = self.running[i].take().unwrap().wait();
            }
            if std::thread::panicking() {
                let log = self.dir.path().join(format!("{}.log", self.nodes[i]));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                eprintln!("--- {} (last first)\n{}", self.nodes[i], tail.join("\n"));
            }
        }
    }
}

fn good(out: &Output) {
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// A file that is written on, durably, and read back in full.
struct Written {
    fh: Vec<u8>,
    chunks: u64,
}

const CHUNK: usize = 256 << 10;

impl Written {
    fn new(client: &mut NfsClient) -> Written {
        let root = client.root.clone();
        let fh = client.create(&root, b"data", None).unwrap();
        Written { fh, chunks: 0 }
    }

    fn content(n: u64) -> Vec<u8> {
        let word = |i: u64| (n * 0x9e37_79b9 + i).to_le_bytes();
        (0..CHUNK as u64 / 8).flat_map(word).collect()
    }

    fn more(&mut self, client: &mut NfsClient, chunks: u64) {
        for n in self.chunks..self.chunks + chunks {
            let data = Self::content(n);
            client.write(&self.fh, n * CHUNK as u64, &data, 2).unwrap();
        }
        self.chunks += chunks;
    }

    fn check(&self, client: &mut NfsClient) {
        for n in 0..self.chunks {
            let (data, _) = client
                .read(&self.fh, n * CHUNK as u64, CHUNK as u32)
                .unwrap();
            assert!(data[..] == Self::content(n)[..], "chunk {n}");
        }
    }
}

const FOUR: Shape = Shape {
    nodes: &["a", "b", "c", "d"],
    driver: "automatic",
};

#[test]
fn replicas_move_come_and_go_while_a_client_writes() {
    // Given a volume on three of four nodes, with a client.
    let cluster = Cluster::start(FOUR);
    cluster.refused(&["wait", "vms", "--timeout", "1"], 1, "not served");
    cluster.ok(&[
        "volume", "create", "vms", "--size", "1G", "--nodes", "a,b,c",
    ]);
    cluster.ok(&["wait", "vms", "--for", "redundant", "--timeout", "60"]);
    let mut client = cluster.client();
    let mut file = Written::new(&mut client);
    file.more(&mut client, 40);

    // What makes no sense is refused, with what to do instead, and changes nothing.
    for (args, says) in [
        (&["replica", "add", "vms", "d"][..], "replica move"),
        (&["replica", "add", "vms", "x"], "there are: a, b, c, d"),
        (&["replica", "move", "vms", "d"], "--from NODE"),
        (
            &["replica", "move", "vms", "d:x", "--from", "b"],
            "it has: main",
        ),
        (&["replica", "remove", "vms", "d"], "on: a, b, c"),
        (&["replica", "remove", "vms", "b"], "--yes"),
        (&["replica", "remove", "nothing", "b"], "no volume"),
        (&["evict", "d", "--yes"], "drain d"),
        (&["volume", "delete", "vms", "--yes"], "trivet demote vms"),
    ] {
        cluster.refused(args, 1, says);
    }
    let said = cluster.ok(&["replica", "move", "vms", "d", "--from", "b", "--dry-run"]);
    assert!(said.starts_with("would: "), "{said}");
    assert_eq!(cluster.members(), ["a", "b", "c"]);

    // When one moves, slowly, and all is written on. (Jobs under way once paid for what they copied
    // only as far as there was allowance: a low rate bounded nothing, and the move was over.)
    cluster.ok(&["resync", "vms", "--rate", "512K"]);
    cluster.ok(&["replica", "move", "vms", "d", "--from", "b", "--yes"]);
    let text = String::from_utf8(cluster.trivet(&["status"]).stdout).unwrap();
    assert!(text.contains("to be replaced"), "{text}");
    cluster.refused(
        &["replica", "remove", "vms", "c", "--yes"],
        1,
        "being replaced",
    );
    file.more(&mut client, 20);
    cluster.ok(&["resync", "vms", "--rate", "1G"]);
    let again = [
        "replica", "move", "vms", "d", "--from", "b", "--yes", "--wait",
    ];
    wait_for("it has moved", || cluster.members() == ["a", "c", "d"]);

    // Then what the old one kept is gone, and everything is there.
    wait_for("the old region is thrown away", || cluster.kept(1) == 0);
    file.check(&mut client);
    cluster.ok(&["wait", "vms", "--for", "redundant"]);
    cluster.refused(&again, 1, "no member of it is on b");

    // It grows, and does not shrink, while in use.
    cluster.ok(&["volume", "resize", "vms", "+1G"]);
    cluster.refused(&["volume", "resize", "vms", "1G"], 2, "does not shrink");
    let volumes = cluster.ok(&["volume", "list", "-o", "json"]);
    let volumes: serde_json::Value = serde_json::from_str(&volumes).unwrap();
    assert_eq!(volumes[0]["bytes"], 2u64 << 30);
    file.more(&mut client, 4);
    file.check(&mut client);

    // In use it is not deleted; stopped, it is, everywhere.
    cluster.refused(&["volume", "delete", "vms", "--yes"], 1, "in use");
    cluster.ok(&["demote", "vms", "--yes"]);
    cluster.ok(&["wait", "vms", "--for", "stopped"]);
    cluster.refused(&["volume", "delete", "vms"], 1, "--yes");
    cluster.ok(&["volume", "delete", "vms", "--yes"]);
    assert!((0..4).all(|i| cluster.kept(i) == 0));
    // What each keeps is known a moment later; until then there is nothing to do, and it is done.
    let again = ["volume", "delete", "vms", "--yes"];
    wait_for("it is known to be gone", || {
        !cluster.trivet(&again).status.success()
    });
    cluster.refused(&again, 1, "no node keeps");
}

/// Changes a byte in each of the first few blocks that hold something, in the extent files of a
/// node, while its daemon has them open.
fn rot(pool: &std::path::Path) -> u64 {
    use std::os::unix::fs::FileExt;
    let dirs = |of: &std::path::Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(of).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.is_dir()).collect()
    };
    let region = &dirs(&dirs(pool)[0])[0];
    let mut rotten = 0;
    for entry in std::fs::read_dir(region.join("e")).unwrap() {
        let path = entry.unwrap().path();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let content = std::fs::read(&path).unwrap();
        // Behind the metadata, which is less than a MiB.
        for at in (1 << 20..content.len()).step_by(4096) {
            if rotten < 5 && content[at] != 0 {
                file.write_all_at(&[!content[at]], at as u64).unwrap();
                rotten += 1;
            }
        }
    }
    rotten
}

#[test]
fn a_scrub_finds_what_rots_while_a_client_writes() {
    let cluster = Cluster::start(FOUR);
    cluster.ok(&[
        "volume", "create", "vms", "--size", "1G", "--nodes", "a,b,c",
    ]);
    cluster.ok(&["wait", "vms", "--for", "redundant", "--timeout", "60"]);
    cluster.refused(&["scrub", "nothing"], 1, "no volume");
    cluster.refused(&["scrub", "vms", "--rate", "0"], 2, "never end");
    cluster.refused(&["scrub", "vms", "--stop"], 1, "no scrub of it goes on");
    let mut client = cluster.client();
    let mut file = Written::new(&mut client);
    // More than half of what a log holds, so that some of it is in the extent files.
    file.more(&mut client, 300);
    wait_for("all are in sync", || {
        let text = String::from_utf8(cluster.trivet(&["status"]).stdout).unwrap();
        text.matches("in sync").count() == 3
    });
    let said = cluster.ok(&["scrub", "vms", "--rate", "1G"]);
    assert!(said.contains("all copies are good and alike"), "{said}");

    // What rots on a disk is found, repaired, and told; the client goes on.
    assert_eq!(rot(&cluster.pool(1)), 5);
    cluster.ok(&["scrub", "vms", "--rate", "1M", "--detach"]);
    let text = String::from_utf8(cluster.trivet(&["status"]).stdout).unwrap();
    assert!(text.contains("% of the volume"), "{text}");
    file.more(&mut client, 10);
    let said = cluster.ok(&["scrub", "vms", "--rate", "1G"]);
    assert!(said.contains("had a bad copy, all repaired"), "{said}");
    assert!(said.contains("or cannot be read, on b"), "{said}");
    let said = cluster.ok(&["scrub", "vms", "--rate", "1G", "-o", "json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["wrong_blocks"], 0, "{said}");
    assert!(said["looked"].as_u64() > Some(1 << 20), "{said}");
    file.check(&mut client);
    let events = cluster.ok(&["event", "list"]);
    assert!(
        events.contains("blocks had a bad copy, all repaired"),
        "{events}"
    );
    let wrong = "trivet_scrub_wrong_blocks{volume=\"vms\"}";
    wait_for("the page tells", || {
        (0..3).any(|i| cluster.sample(i, wrong) == Some(0.0))
    });

    // One that takes long is ended.
    cluster.ok(&["scrub", "vms", "--rate", "4K", "--detach"]);
    let said = cluster.ok(&["scrub", "vms", "--stop"]);
    assert!(said.contains("stopped"), "{said}");
    cluster.refused(&["scrub", "vms", "--stop"], 1, "no scrub of it goes on");
}

#[test]
fn a_dead_node_is_given_up_and_taken_back() {
    let mut cluster = Cluster::start(FOUR);
    cluster.ok(&[
        "volume", "create", "vms", "--size", "1G", "--nodes", "a,b,c",
    ]);
    cluster.ok(&["wait", "vms", "--for", "redundant"]);
    let mut client = cluster.client();
    let mut file = Written::new(&mut client);
    file.more(&mut client, 20);
    let active = (0..3).find(|i| {
        let role = "trivet_volume_role{volume=\"vms\",role=\"active\"}";
        cluster.sample(*i, role) == Some(1.0)
    });
    let active = active.expect("one is active");
    let dead = (0..3).find(|i| *i != active).unwrap();
    let name = cluster.nodes[dead].clone();

    // Seen from outside: a member less.
    let in_sync = "trivet_volume_in_sync_members{volume=\"vms\"}";
    assert_eq!(cluster.sample(active, in_sync), Some(3.0));
    let tolerated = "trivet_volume_failures_tolerated{volume=\"vms\"}";
    assert_eq!(cluster.sample(active, tolerated), Some(1.0));
    assert_eq!(cluster.get(active, "/healthz").0, 200);
    assert_eq!(cluster.get(active, "/").0, 404);
    let flushes = "trivet_replica_flush_seconds_count";
    assert!(cluster.sample(active, flushes).unwrap() > 0.0);
    let writes = "trivet_nfs_write_seconds_count";
    assert!(cluster.sample(active, writes).unwrap() >= 20.0);
    let calls = "trivet_nfs_calls_total{volume=\"vms\"}";
    wait_for("its calls are counted", || {
        cluster.sample(active, calls).unwrap() >= 20.0
    });
    assert!(
        cluster
            .sample(active, "trivet_pool_free_bytes{pool=\"main\"}")
            .unwrap()
            > 0.0
    );
    cluster.kill(dead);
    wait_for("its loss is seen", || {
        cluster.sample(active, tolerated) == Some(0.0)
    });
    let heard = format!("trivet_node_heard{{node=\"{name}\"}}");
    wait_for("it is not heard", || {
        cluster.sample(active, &heard) == Some(0.0)
    });

    // Given up, its replica finds a new home; the client notices nothing.
    let said = cluster.ok(&["evict", &name, "--dry-run"]);
    assert!(said.contains("another node gets"), "{said}");
    cluster.ok(&["evict", &name, "--yes", "--wait", "--timeout", "60"]);
    cluster.ok(&["wait", "vms", "--for", "redundant"]);
    assert!(cluster.members().contains(&"d".to_owned()));
    assert!(!cluster.members().contains(&name));
    file.more(&mut client, 4);
    file.check(&mut client);

    // Back, it gives up what it had, and is given nothing until it is restored.
    cluster.run(dead);
    wait_for("its old region is thrown away", || cluster.kept(dead) == 0);
    let back = [
        "replica", "move", "vms", &name, "--from", "d", "--yes", "--wait",
    ];
    cluster.refused(&back, 1, "given up");
    cluster.ok(&["restore", &name]);
    wait_for("it may keep replicas again", || {
        cluster.trivet(&back).status.success()
    });
    assert_eq!(cluster.members(), ["a", "b", "c"]);
    file.check(&mut client);
}

#[test]
fn a_node_that_is_silent_for_too_long_is_given_up_if_another_can_take_its_place() {
    let mut cluster = Cluster::start(FOUR);
    cluster.edit(|t| t.replacen("[[node]]", "evict_after = 3\n[[node]]", 1));
    cluster.ok(&[
        "volume", "create", "vms", "--size", "1G", "--nodes", "b,c,d",
    ]);
    cluster.ok(&["promote", "vms", "--node", "b", "--yes"]);
    cluster.ok(&["wait", "vms", "--for", "redundant"]);
    cluster.kill(2);
    wait_for("the spare has its replica", || {
        cluster.members() == ["a", "b", "d"]
    });
    cluster.ok(&["wait", "vms", "--for", "redundant"]);
    // Nobody can take the place of the next one: it stays what it is.
    cluster.kill(3);
    wait_for("it is seen to be away for longer than that", || {
        let seen = cluster.status().unwrap();
        let d = &seen["nodes"][3];
        d["age_ms"].as_u64().unwrap() > 5000 && !d["trouble"].is_null()
    });
    assert_eq!(cluster.members(), ["a", "b", "d"]);
    cluster.run(3);
    cluster.ok(&["wait", "vms", "--for", "redundant"]);

    // One that has just died does not serve, though the others have heard nothing else yet.
    cluster.kill(1);
    cluster.refused(&["wait", "vms", "--timeout", "0"], 1, "not served");
}

#[test]
fn a_cluster_manager_gets_exact_codes() {
    let mut cluster = Cluster::start(Shape {
        nodes: &["a", "b", "c"],
        driver: "external",
    });
    cluster.ok(&["volume", "create", "vms", "--size", "1G"]);
    let code = |args: &[&str]| {
        let out = cluster.trivet(&[&["driver"], args].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        println!("{args:?}: {:?} {said}", out.status.code());
        out.status.code().unwrap()
    };
    assert_eq!(code(&["monitor", "vms", "--node", "a"]), 7);
    assert_eq!(
        code(&["stop", "vms", "--node", "a"]),
        0,
        "as good as stopped"
    );
    assert_eq!(code(&["start", "vms", "--node", "a"]), 0);
    assert_eq!(code(&["start", "vms", "--node", "a"]), 0, "again");
    assert_eq!(code(&["monitor", "vms", "--node", "a"]), 0);
    assert_eq!(code(&["monitor", "vms", "--node", "b"]), 7);
    let late = &["start", "vms", "--node", "b", "--timeout", "1"];
    assert_eq!(code(late), 1, "it is active elsewhere");
    assert_eq!(code(&["stop", "vms", "--node", "b"]), 0);
    assert_eq!(code(&["monitor", "vms", "--node", "a"]), 0, "not that one");
    assert_eq!(code(&["stop", "vms", "--node", "a"]), 0);
    assert_eq!(code(&["monitor", "vms", "--node", "a"]), 7);
    assert_eq!(code(&["start", "vms", "--node", "b"]), 0);
    // Wrong questions.
    assert_eq!(code(&["start", "nothing", "--node", "a"]), 6);
    assert_eq!(code(&["start", "vms", "--node", "x"]), 6);
    assert_eq!(code(&["start"]), 2);
    // A node that stands still cannot be asked: its members' promises tell.
    cluster.signal(1, Signal::STOP);
    assert_eq!(code(&["monitor", "vms", "--node", "b"]), 7);
    assert_eq!(
        code(&["stop", "vms", "--node", "b"]),
        0,
        "its lease ran out"
    );
    // Nobody else has claimed it: going on, it may have it again, until it is stopped for good.
    cluster.signal(1, Signal::CONT);
    assert_eq!(code(&["stop", "vms", "--node", "b"]), 0);
    wait_for("the one that stood still stands by", || {
        let role = "trivet_volume_role{volume=\"vms\",role=\"standby\"}";
        cluster.sample(1, role) == Some(1.0)
    });
    assert_eq!(code(&["start", "vms", "--node", "c"]), 0);
    assert_eq!(code(&["monitor", "vms", "--node", "b"]), 7);

    // Two that decide are one too many.
    cluster.edit(|t| t.replace("\"external\"", "\"manual\""));
    assert_eq!(code(&["start", "vms", "--node", "a"]), 6);
    assert_eq!(code(&["monitor", "vms", "--node", "c"]), 6);
    cluster.kill(0);
    cluster.kill(1);
    cluster.kill(2);
    assert_eq!(cluster.trivet(&["status"]).status.code(), Some(3));
    let late = ["wait", "vms", "--timeout", "1"];
    assert_eq!(cluster.trivet(&late).status.code(), Some(3));
}

#[test]
fn yaml_and_json_say_the_same() {
    let cluster = Cluster::start(Shape {
        nodes: &["a", "b", "c"],
        driver: "manual",
    });
    let text = String::from_utf8(cluster.trivet(&["st", "-o", "yaml"]).stdout).unwrap();
    assert!(text.starts_with("---\nby: a\nnodes:\n  - "), "{text}");
    let rows: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["v", "l", "-o", "json"])).unwrap();
    assert_eq!(rows[0]["state"], "not made");
    let text = cluster.ok(&["v", "l", "-o", "yaml"]);
    assert!(text.contains("state: \"not made\""), "{text}");
    assert!(Path::new(&cluster.config()).exists());
}
