//! Who gets in at a server's port, and who does not: strangers, peers under a wrong name or in a
//! wrong role, junk, and crowds. Whatever they do, those who belong are served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Keys, SOON, serve, serve_counting};
use trivet_downstairs::server::{Listen, Server};
use trivet_protocol::frame::{Frame, HEADER_BYTES, Header, Kind, VERSION, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter, ReadError};
use trivet_protocol::message::{self, Refusal, Reply, Request};
use trivet_protocol::{Generation, NullRecorder, VolumeId};
use trivet_transport::call::{CallError, CallHandler, Client};
use trivet_transport::{Expect, Peer, PeerSet, Peers, Role, Security, TransportError};

struct Name;

impl CallHandler for Name {
    fn call(&self, peer: &Peer, _: Bytes) -> Bytes {
        Bytes::from(peer.name.clone())
    }
}

fn node(name: &str) -> Expect {
    Expect::Node(name.into())
}

/// Whether the server knows `who` as such, right now.
fn served(server: &Server, who: &Security) -> Result<Bytes, CallError> {
    Client::connect(server.address(), who, &Expect::Listed, SOON)?.call(Bytes::new(), SOON)
}

#[test]
fn a_key_that_is_not_listed_gets_no_further_than_the_handshake() {
    let keys = Keys::new(&[("n", Role::Node), ("m", Role::Node), ("x", Role::Node)]);
    let known = PeerSet::new(keys.entries[..2].to_vec()).unwrap();
    let security = keys.tls_with("n", Peers::new(known.clone()));
    let (server, counts) = serve_counting(security, Some(Arc::new(Name)));
    // It knows the server, and is not known: the server ends it, and says why.
    let told = served(&server, &keys.tls("x")).unwrap_err().to_string();
    assert!(told.contains("refused this node's key"), "{told}");
    counts.wait_for("transport.refused", 1);
    // It is known, and does not know the server: it ends it itself.
    let others = PeerSet::new(keys.entries[1..].to_vec()).unwrap();
    let told = served(&server, &keys.tls_with("m", Peers::new(others)));
    match told {
        Err(CallError::Transport(TransportError::Stranger { key, .. })) => {
            assert_eq!(key, keys.entries[0].key);
        }
        other => panic!("{other:?}"),
    }
    counts.wait_for("transport.refused", 2);
    assert_eq!(served(&server, &keys.tls("m")).unwrap(), "m");
}

#[test]
fn whoever_connects_makes_sure_whom_it_reached() {
    let keys = Keys::new(&[("n", Role::Node), ("m", Role::Node), ("e", Role::Exporter)]);
    let server = serve(keys.tls("n"), None);
    let exporter = serve(keys.tls("e"), None);
    let me = keys.tls("m");
    let reach = |server: &Server, expect| me.connect(server.address(), &expect, SOON).map(drop);
    reach(&server, node("n")).unwrap();
    let told = reach(&server, node("m")).unwrap_err();
    assert!(matches!(told, TransportError::WrongPeer { .. }), "{told}");
    let told = reach(&server, node("nobody")).unwrap_err();
    assert!(matches!(told, TransportError::WrongPeer { .. }), "{told}");
    // An exporter keeps no members, whatever it says; it may be called.
    let told = reach(&exporter, node("e")).unwrap_err();
    assert!(matches!(told, TransportError::NotANode { .. }), "{told}");
    reach(&exporter, Expect::Named("e".into())).unwrap();
}

fn frame(kind: Kind, meta: Bytes) -> Frame {
    Frame {
        header: Header::new(kind, Generation::NONE, 7),
        meta,
        data: Vec::new(),
    }
}

fn hello() -> Bytes {
    message::encode(&Request::Hello {
        volume: VolumeId::from_bytes([1; 16]),
        member: None,
        node: "x".into(),
    })
}

/// What a server answers to this first frame, in a version.
fn answer(
    server: &Server,
    who: &Security,
    first: &Frame,
    versions: Versions,
) -> Result<Frame, ReadError> {
    let connection = who
        .connect(server.address(), &Expect::Listed, SOON)
        .unwrap();
    let (reader, writer) = connection.split();
    let mut out = FrameWriter::opening(versions);
    out.push(first, None);
    out.write_with(|parts| writer.write(parts)).unwrap();
    FrameReader::with_versions(reader, versions).next_frame()
}

fn refusal(frame: &Frame) -> Refusal {
    match message::decode(&frame.meta).unwrap() {
        Reply::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_operator_may_call_and_nothing_else() {
    let keys = Keys::new(&[
        ("n", Role::Node),
        ("ann", Role::Operator),
        ("e", Role::Exporter),
    ]);
    let server = serve(keys.tls("n"), Some(Arc::new(Name)));
    let hello = frame(Kind::Request, hello());
    let ask = |who| refusal(&answer(&server, &keys.tls(who), &hello, Versions::default()).unwrap());
    let told = ask("ann").to_string();
    assert!(told.contains("ann, an operator, may call"), "{told}");
    // An exporter gets as far as being told that there is no such volume.
    let told = ask("e");
    assert!(matches!(told, Refusal::NotHere(_)), "{told}");
    assert_eq!(served(&server, &keys.tls("ann")).unwrap(), "ann");
}

#[test]
fn a_peer_that_is_taken_out_of_the_list_is_disconnected_on_both_sides() {
    let keys = Keys::new(&[("n", Role::Node), ("m", Role::Node), ("o", Role::Node)]);
    let peers = Peers::new(keys.list());
    let server = serve(keys.tls_with("n", peers.clone()), Some(Arc::new(Name)));
    let mine = Peers::new(keys.list());
    let me = keys.tls_with("m", mine.clone());
    let client = |who: &Security| Client::connect(server.address(), who, &node("n"), SOON).unwrap();
    let call = |client: &mut Client| client.call(Bytes::new(), SOON);
    let (mut m, mut o) = (client(&me), client(&keys.tls("o")));
    assert_eq!(call(&mut m).unwrap(), "m");
    assert_eq!(call(&mut o).unwrap(), "o");
    // Given both connected, when one is taken out where they are served.
    let without_m = [keys.entries[0].clone(), keys.entries[2].clone()];
    peers.replace(PeerSet::new(without_m).unwrap());
    let told = call(&mut m).unwrap_err();
    assert!(matches!(told, CallError::Lost { .. }), "{told}");
    assert!(served(&server, &me).is_err());
    assert_eq!(call(&mut o).unwrap(), "o", "nobody else noticed");
    // When it is back, it is served again.
    peers.replace(keys.list());
    let mut m = client(&me);
    assert_eq!(call(&mut m).unwrap(), "m");
    // When the node is taken out on the side that connects, that side ends it.
    mine.replace(PeerSet::new(keys.entries[1..].to_vec()).unwrap());
    let told = call(&mut m).unwrap_err();
    assert!(matches!(told, CallError::Lost { .. }), "{told}");
    // A new role or name counts as another peer.
    let mut renamed = keys.entries.clone();
    renamed[2].role = Role::Operator;
    peers.replace(PeerSet::new(renamed).unwrap());
    assert!(call(&mut o).is_err());
    assert_eq!(served(&server, &keys.tls("o")).unwrap(), "o");
}

/// Something of no meaning, the same for a seed.
fn junk(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut byte = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn junk_on_the_port_ends_its_own_connection_and_nothing_else() {
    let keys = Keys::new(&[("n", Role::Node)]);
    for security in [Security::Plain, keys.tls("n")] {
        let server = serve(security.clone(), Some(Arc::new(Name)));
        // Lengths that lie, as a frame and as TLS see them.
        let mut huge = frame(Kind::Call, Bytes::new()).encode_header(VERSION, 0);
        huge[8..12].fill(0xff);
        let first = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            vec![0; 300],
            vec![0xff; 100_000],
            huge.to_vec(),
            [&[0x16, 3, 1, 0xff, 0xff][..], &junk(1, 70_000)].concat(),
            [
                &[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff][..],
                &junk(2, 70_000),
            ]
            .concat(),
            [&[0x17, 3, 3, 0x40, 0][..], &junk(3, 0x4000)].concat(),
        ];
        let random = (10..40).map(|seed| junk(seed, 1 + 40 * seed as usize));
        for (n, bytes) in first.into_iter().chain(random).enumerate() {
            let mut socket = TcpStream::connect(server.address()).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            // It may well close before it has taken all of that.
            let _ = socket.write_all(&bytes);
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let end = socket.read_to_end(&mut Vec::new());
            let waited = end
                .as_ref()
                .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!waited, "junk {n} is still connected");
        }
        assert!(served(&server, &security).is_ok());
    }
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out() {
    let keys = Keys::new(&[("n", Role::Node), ("m", Role::Node)]);
    let server = serve(keys.tls("n"), Some(Arc::new(Name)));
    let mut inside = Client::connect(server.address(), &keys.tls("m"), &node("n"), SOON).unwrap();
    assert_eq!(inside.call(Bytes::new(), SOON).unwrap(), "m");
    let mut idle = Vec::new();
    for i in 0..1000 {
        match TcpStream::connect(server.address()) {
            Ok(socket) => idle.push(socket),
            // This process may not have that many descriptors: then it was a crowd anyway.
            Err(e) => {
                assert!(i > 400, "{e}");
                idle.truncate(i - 200);
                break;
            }
        }
    }
    assert_eq!(served(&server, &keys.tls("m")).unwrap(), "m");
    assert_eq!(
        inside.call(Bytes::new(), SOON).unwrap(),
        "m",
        "who is in stays in"
    );
    drop(server);
    drop(idle);
}

/// Sends `bytes` one at a time, so that the last goes out long after the time for all of them;
/// returns how many were taken before the other side ended it.
fn trickle(address: SocketAddr, bytes: &[u8], all_in: Duration) -> usize {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    let pause = all_in / bytes.len() as u32;
    socket.set_read_timeout(Some(pause)).unwrap();
    for (n, byte) in bytes.iter().enumerate() {
        if socket.write_all(&[*byte]).is_err() {
            return n;
        }
        // The pause between two bytes, unless the connection ends.
        match socket.read(&mut [0; 4096]) {
            Ok(0) => return n,
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return n,
            _ => {}
        }
    }
    bytes.len()
}

#[test]
fn the_time_until_the_first_frame_is_a_total() {
    // A byte now and then used to gain 5 s each time.
    let keys = Keys::new(&[("n", Role::Node)]);
    let plain = serve(Security::Plain, None);
    let tls = serve(keys.tls("n"), None);
    let hello = frame(Kind::Request, hello());
    let header = hello.encode_header(VERSION, hello.body_crc());
    assert_eq!(header.len(), HEADER_BYTES);
    // The beginning of a TLS handshake that promises 512 bytes.
    let shake = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &junk(4, 93)].concat();
    let all_in = Duration::from_secs(20);
    std::thread::scope(|s| {
        let a = s.spawn(|| trickle(plain.address(), &header, all_in));
        let b = s.spawn(|| trickle(tls.address(), &shake, all_in));
        assert!(a.join().unwrap() < header.len());
        assert!(b.join().unwrap() < shake.len());
    });
}

#[test]
fn without_keys_only_loopback_is_spoken_and_the_error_says_what_to_do() {
    let anywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let told = match Server::start(Listen::plain(anywhere, Arc::new(NullRecorder))) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("it listens"),
    };
    assert!(
        told.contains("trivet key new") && told.contains("--peers"),
        "{told}"
    );
    // An address of the documentation's: nothing is even tried.
    let away = SocketAddr::from(([192, 0, 2, 1], 7100));
    let told = Security::Plain
        .connect(away, &Expect::Listed, SOON)
        .map(drop);
    assert!(
        matches!(told, Err(TransportError::PlainRefused { .. })),
        "{told:?}"
    );
    // Loopback in IPv6's clothes is loopback.
    assert!(
        Security::Plain
            .check("[::ffff:127.0.0.1]:1".parse().unwrap())
            .is_ok()
    );
    assert!(Security::Plain.check("[::1]:1".parse().unwrap()).is_ok());
}

#[test]
fn one_side_with_keys_and_one_without_are_told_so() {
    let keys = Keys::new(&[("n", Role::Node)]);
    let tls = serve(keys.tls("n"), None);
    let told = served(&tls, &Security::Plain).unwrap_err().to_string();
    assert!(told.contains("speaks TLS only"), "{told}");
    let plain = serve(Security::Plain, None);
    let told = served(&plain, &keys.tls("n")).unwrap_err().to_string();
    assert!(told.contains("runs without a key"), "{told}");
}

#[test]
fn versions_from_the_future_and_of_the_past_are_told_by_name() {
    let server = serve(Security::Plain, Some(Arc::new(Name)));
    let only = |oldest, newest| Versions { oldest, newest };
    let hello = frame(Kind::Request, hello());
    let ask = |versions| answer(&server, &Security::Plain, &hello, versions);
    // A build one newer, that still understands this one: in both versions something is said.
    let told = refusal(&ask(only(VERSION, VERSION + 1)).unwrap());
    assert!(matches!(told, Refusal::NotHere(_)), "{told}");
    // Builds with no version in common: each side names both.
    for versions in [
        only(VERSION + 1, VERSION + 2),
        only(VERSION - 1, VERSION - 1),
    ] {
        let told = ask(versions).unwrap_err();
        assert!(told.is_refusal(), "{told}");
        let named = format!(
            "version {VERSION}, this side {} to {}",
            versions.oldest, versions.newest
        );
        assert!(told.to_string().contains(&named), "{told}");
    }
}
