//! A node that only exports hosts no member, and all the same is heard by the others and takes
//! their commands: a cluster manager on a host promotes the exporter in a container.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "common/daemon.rs"]
mod daemon;

use std::process::Stdio;
use std::time::{Duration, Instant};

use daemon::{Served, address, done, trivet};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_exporter_is_heard_and_takes_commands_from_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let init = |driver: &str| {
        let mut c = trivet(dir);
        c.arg("init")
            .args(["--node", &format!("a={}", address(84))])
            .args(["--exporter", &format!("e={}", address(85))])
            .args(["--driver", driver, "--allow", "127.0.0.1"])
            .args(["--out".as_ref(), dir.as_os_str()])
            .args(["--pool".as_ref(), dir.join("pool").as_os_str()]);
        c
    };
    // Who decides is not the node itself.
    let refused = init("automatic").output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("--driver external"), "{said}");
    done(&mut init("external"));
    let text = std::fs::read_to_string(dir.join("trivet.toml")).unwrap();
    let (host, exporter) = text.split_once("name = \"e\"").unwrap();
    assert!(host.contains(r#"roles = ["replica"]"#), "{text}");
    assert!(exporter.contains(r#"roles = ["exporter"]"#), "{text}");
    done(trivet(dir).args(["pool", "create"]).arg(dir.join("pool")));
    let serve = |name: &str| {
        let child = trivet(dir)
            .args(["serve", "--no-supervisor", "--node", name, "--key"])
            .arg(dir.join(format!("{name}.key")))
            .arg("--state")
            .arg(dir.join(format!("state-{name}")))
            .stdout(Stdio::null())
            .spawn();
        Served(child.unwrap())
    };
    let _both = [serve("a"), serve("e")];

    // It answers a host: not active, which is code 7 and no "cannot be reached".
    let began = Instant::now();
    loop {
        let out = trivet(dir)
            .args(["driver", "monitor", "vms", "--node", "e"])
            .output()
            .unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        if said.contains("vms is not active on e") {
            assert_eq!(out.status.code(), Some(7));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{said}");
    }
    // And is seen by the other node.
    loop {
        let out = trivet(dir).args(["status", "-o", "json"]).output().unwrap();
        let seen: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
        if nodes.len() == 2 && nodes.iter().all(|n| n["trouble"].is_null()) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{seen:#}");
    }
}
