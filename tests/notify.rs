//! What a service manager hears of `trivet serve`, from the daemon behind its supervisor: that it
//! runs before it is ready, that it is ready, that it runs, that it ends; and the same of the
//! daemon that takes the place of one that was killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "common/daemon.rs"]
mod daemon;

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use daemon::{Served, address, done, trivet};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn hear(socket: &UnixDatagram) -> String {
    let mut line = [0; 512];
    let n = socket.recv(&mut line).expect("the manager hears something");
    String::from_utf8(line[..n].to_vec()).unwrap()
}

/// Everything up to the line that starts so.
fn hear_until(socket: &UnixDatagram, start: &str) -> Vec<String> {
    let mut heard = vec![hear(socket)];
    while !heard.last().unwrap().starts_with(start) {
        heard.push(hear(socket));
        assert!(heard.len() < 1000, "{start} never comes: {heard:?}");
    }
    heard
}

fn daemon_of(supervisor: u32) -> Pid {
    let list = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = std::fs::read_to_string(list).unwrap();
    let child = children.split_whitespace().next().unwrap();
    Pid::from_raw(child.parse().unwrap()).unwrap()
}

#[test]
fn the_manager_hears_of_start_life_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let address = address(83);
    done(
        trivet(dir)
            .args([
                "init",
                "--node",
                &format!("a={address}"),
                "--allow",
                "127.0.0.1",
            ])
            .args(["--out".as_ref(), dir.as_os_str()])
            .args(["--pool".as_ref(), dir.join("pool").as_os_str()]),
    );
    done(trivet(dir).args(["pool", "create"]).arg(dir.join("pool")));
    let path = dir.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let child = trivet(dir)
        .args(["serve", "--node", "a", "--state"])
        .arg(dir.join("state"))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut served = Served(child);

    let first = hear_until(&manager, "READY=1");
    assert_eq!(first[0], "WATCHDOG=1", "it lives before it is ready");
    let ready = first.last().unwrap();
    assert!(ready.contains("STATUS=ready: node a on 127.83."), "{ready}");
    assert_eq!(hear(&manager), "WATCHDOG=1", "and from then on");

    kill_process(daemon_of(served.0.id()), Signal::KILL).unwrap();
    hear_until(&manager, "READY=1");

    let supervisor = Pid::from_raw(served.0.id().cast_signed()).unwrap();
    kill_process(supervisor, Signal::TERM).unwrap();
    hear_until(&manager, "STOPPING=1");
    assert!(served.0.wait().unwrap().success());
}
