//! The network of a service address, made for real: as root, in namespaces of the test's own.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use trivet_protocol::VolumeId;

use super::ServiceNet;
use crate::config::ServiceConfig;

fn run(line: &str) {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {out:?}");
}

/// Runs `f` as a host of its own with a bridge `br0`, 10.99.0.1.
fn on_a_host(test: &str, f: impl FnOnce() + Send + 'static) {
    let host = thread::spawn(move || {
        match unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) => return false,
            done => done.unwrap(),
        }
        run("mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/netns");
        run("ip link add br0 type bridge && ip addr add 10.99.0.1/24 dev br0");
        run("ip link set br0 up && ip link set lo up");
        f();
        true
    });
    if !host.join().unwrap() {
        trivet_faultfs::skipped(test, "needs root").unwrap();
    }
}

fn net() -> ServiceNet {
    let config: ServiceConfig =
        toml::from_str("address = \"10.99.0.10/24\"\nbridge = \"br0\"").unwrap();
    ServiceNet::new("v", VolumeId::from_bytes([7; 16]), &config)
}

/// The TCP sockets inside, of whatever state.
fn sockets(net: &ServiceNet) -> Vec<String> {
    let table = net.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
    let table = table.unwrap().unwrap();
    table.lines().skip(1).map(str::to_owned).collect()
}

/// A connection whose last words found no address stayed in the namespace, without an owner, for
/// minutes. When the address was back and a client had the same port again, as clients of ports
/// below 1024 have, this socket took the answer to the tickle, no reset was sent, and the client
/// waited for a minute.
#[test]
fn nothing_of_an_earlier_reign_answers_for_a_client() {
    on_a_host("a reign's sockets", || {
        let net = net();
        net.prepare().unwrap();
        let listener = net.enter(|| TcpListener::bind((net.address(), 2049)));
        let listener = listener.unwrap().unwrap();
        net.show(Vec::new(), 2049).unwrap();
        let client = TcpStream::connect((net.address(), 2049)).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        net.hide().unwrap();
        served.write_all(b"an answer").unwrap();
        drop((served, listener));
        let left = sockets(&net);
        assert_eq!(left.len(), 1, "nothing to be looked for: {left:?}");
        net.prepare().unwrap();
        assert_eq!(sockets(&net), [""; 0]);
        net.show(Vec::new(), 2049).unwrap();
        let again = net.enter(|| TcpListener::bind((net.address(), 2049)));
        let again = again.unwrap().unwrap();
        TcpStream::connect((net.address(), 2049)).unwrap();
        again.accept().unwrap();
        drop(client);
    });
}
