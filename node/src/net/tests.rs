//! The network of a service address, made for real: as root, in namespaces of the test's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

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
        run("ip addr add fd99::1/64 dev br0 nodad");
        f();
        true
    });
    if !host.join().unwrap() {
        trivet_faultfs::skipped(test, "needs root").unwrap();
    }
}

fn net() -> ServiceNet {
    net_at("10.99.0.10/24")
}

fn net_at(address: &str) -> ServiceNet {
    let config = format!("address = \"{address}\"\nbridge = \"br0\"");
    let config: ServiceConfig = toml::from_str(&config).unwrap();
    ServiceNet::new("v", VolumeId::from_bytes([7; 16]), &config)
}

/// A server inside, bound before the address is there.
fn listen(net: &ServiceNet) -> TcpListener {
    let listener = net.enter(|| TcpListener::bind((net.address(), 2049)));
    listener.unwrap().unwrap()
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
        let listener = listen(&net);
        net.show(Vec::new(), 2049).unwrap();
        let client = TcpStream::connect((net.address(), 2049)).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        net.hide().unwrap();
        served.write_all(b"an answer").unwrap();
        drop((served, listener));
        // What another test's child has of it, between fork and exec, goes soon.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut left = sockets(&net);
        while left.len() != 1 {
            assert!(
                Instant::now() < deadline,
                "nothing to be looked for: {left:?}"
            );
            thread::yield_now();
            left = sockets(&net);
        }
        net.prepare().unwrap();
        assert_eq!(sockets(&net), [""; 0]);
        net.show(Vec::new(), 2049).unwrap();
        let again = listen(&net);
        TcpStream::connect((net.address(), 2049)).unwrap();
        again.accept().unwrap();
        drop(client);
    });
}

/// A client whose question was acknowledged by a server that then died sends nothing more, and
/// waits for a minute. Over IPv6 nobody told it.
#[test]
fn a_client_hears_of_a_takeover() {
    on_a_host("tickles", || {
        for address in ["10.99.0.10/24", "fd99::10/64"] {
            let net = net_at(address);
            net.prepare().unwrap();
            let listener = listen(&net);
            net.show(Vec::new(), 2049).unwrap();
            let mut client = TcpStream::connect((net.address(), 2049)).unwrap();
            let served = listener.accept().unwrap();
            net.hide().unwrap();
            drop((served, listener));
            // The next reign, here: of the connection it knows nothing but the client's address.
            net.prepare().unwrap();
            net.show(vec![client.local_addr().unwrap()], 2049).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let heard = client.read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(heard, Err(ErrorKind::ConnectionReset), "{address}");
            net.remove();
        }
    });
}

/// On a host that was starved, `ip addr flush` did not end in time when the lease had run out, so
/// the interface was taken away instead. The lease was held again, the address was given to an
/// interface that was not there, and the volume was active without anybody reaching it, for good.
#[test]
fn an_address_that_went_with_its_interface_comes_back() {
    on_a_host("an interface that comes back", || {
        let net = net();
        net.prepare().unwrap();
        let listener = listen(&net);
        net.show(Vec::new(), 2049).unwrap();
        let mut client = TcpStream::connect((net.address(), 2049)).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        run(&format!("ip link del {}", net.outside));
        assert!(net.show(Vec::new(), 0).is_err(), "nothing to be made again");
        let mut lease = || Some(Duration::from_secs(60));
        assert!(net.show_again(&mut lease).unwrap());
        served.write_all(b"an answer").unwrap();
        let mut answer = [0; 9];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"an answer");
        TcpStream::connect((net.address(), 2049)).unwrap();
    });
}

/// An address came back, seconds late, although the lease had run out again meanwhile.
#[test]
fn an_address_comes_back_only_while_the_lease_runs() {
    on_a_host("an address without a lease", || {
        let net = net();
        net.prepare().unwrap();
        let connects = || TcpStream::connect((net.address(), 2049)).map_err(|e| e.kind());
        let _listener = listen(&net);
        let address = || {
            let table = net.enter(|| std::fs::read_to_string("/proc/thread-self/net/fib_trie"));
            table.unwrap().unwrap().contains("10.99.0.10")
        };
        assert!(!net.show_again(&mut || None).unwrap(), "none before");
        assert!(!address());
        let mut asked = 0;
        let mut ends = || {
            asked += 1;
            (asked == 1).then_some(Duration::from_secs(60))
        };
        assert!(!net.show_again(&mut ends).unwrap(), "none afterwards");
        assert!(!address());
        // The bridge was made anew, and the interface is in none.
        run("ip link del br0 && ip link add br0 type bridge");
        run("ip addr add 10.99.0.1/24 dev br0 && ip link set br0 up");
        let mut lease = || Some(Duration::from_secs(60));
        assert!(net.show_again(&mut lease).unwrap());
        connects().unwrap();
    });
}
