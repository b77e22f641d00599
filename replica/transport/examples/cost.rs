//! What TLS costs between two ends on loopback in one process: handshakes, a stream, ping-pong of
//! a 4 KiB block, each beside the same without TLS, in processor time, which a busy machine
//! disturbs least. `cargo run --release -p trivet-transport --example cost`

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that fails says so by ending"
)]

use std::io::{IoSlice, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use trivet_transport::{
    Connection, Entry, Expect, Identity, PeerSet, Peers, Reader, Role, Security, Writer,
};

const SOON: Duration = Duration::from_secs(10);
const STREAM: usize = 512 << 20;
const PART: usize = 64 << 10;
const ROUNDS: u32 = 20_000;
const HANDSHAKES: u32 = 500;

/// Microseconds of all threads so far.
fn processor() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3
}

fn pair() -> (Security, Security) {
    let identity = || Identity::generate().unwrap();
    let (a, b) = (identity(), identity());
    let entry = |name: &str, identity: &Identity| Entry {
        name: name.into(),
        role: Role::Node,
        key: identity.public(),
    };
    let list = PeerSet::new([entry("a", &a), entry("b", &b)]).unwrap();
    let tls = |identity| Security::tls(identity, Peers::new(list.clone())).unwrap();
    (tls(a), tls(b))
}

fn connect(a: &Security, b: &Security) -> (Connection, Connection) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    thread::scope(|s| {
        let accepted = s.spawn(|| b.accept(listener.accept().unwrap().0, SOON).unwrap());
        let there = a.connect(address, &Expect::Listed, SOON).unwrap();
        (there, accepted.join().unwrap())
    })
}

fn send(writer: &Writer, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = writer.write(&[IoSlice::new(bytes)]).unwrap();
        bytes = &bytes[n..];
    }
}

fn stream(a: &Security, b: &Security) {
    let (there, here) = connect(a, b);
    let ((_reader, writer), (mut reader, _writer)) = (there.split(), here.split());
    let (began, cpu) = (Instant::now(), processor());
    thread::scope(|s| {
        s.spawn(|| {
            let part = vec![7; PART];
            (0..STREAM / PART).for_each(|_| send(&writer, &part));
        });
        let mut buffer = vec![0; 128 << 10];
        let mut left = STREAM;
        while left > 0 {
            left -= reader.read(&mut buffer).unwrap();
        }
    });
    let mib = (STREAM >> 20) as f64;
    println!(
        "  stream: {:.0} MiB/s, {:.0} us of processor per MiB",
        mib / began.elapsed().as_secs_f64(),
        (processor() - cpu) / mib
    );
}

fn answer(mut reader: Reader, writer: &Writer) {
    let (mut asked, block) = ([0; 120], vec![9; 4096 + 120]);
    for _ in 0..ROUNDS {
        reader.read_exact(&mut asked).unwrap();
        send(writer, &block);
    }
}

fn ping_pong(a: &Security, b: &Security) {
    let (there, here) = connect(a, b);
    let ((mut reader, writer), (r, w)) = (there.split(), here.split());
    let (began, cpu) = (Instant::now(), processor());
    thread::scope(|s| {
        s.spawn(|| answer(r, &w));
        let mut block = vec![0; 4096 + 120];
        for _ in 0..ROUNDS {
            send(&writer, &[5; 120]);
            reader.read_exact(&mut block).unwrap();
        }
    });
    println!(
        "  120 bytes there, 4 KiB back: {:.1} us each, {:.1} us of processor",
        began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS),
        (processor() - cpu) / f64::from(ROUNDS)
    );
}

fn main() {
    let (a, b) = pair();
    for (name, a, b) in [
        ("plain", &Security::Plain, &Security::Plain),
        ("TLS", &a, &b),
    ] {
        println!("{name}");
        let cpu = processor();
        (0..HANDSHAKES).for_each(|_| drop(connect(a, b)));
        let each = (processor() - cpu) / f64::from(HANDSHAKES);
        println!("  connecting: {each:.0} us of processor, both sides");
        for _ in 0..3 {
            stream(a, b);
            ping_pong(a, b);
        }
    }
}
