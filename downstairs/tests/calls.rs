//! Calls to a node, on the port of its members: what is asked arrives, and so does the answer,
//! within bounds; over plain connections and over TLS.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{Keys, SOON, serve};
use trivet_protocol::limits::{MAX_ANSWER, MAX_CALL};
use trivet_transport::call::{CallError, CallHandler, Client};
use trivet_transport::{Expect, Peer, Role, Security};

/// Answers with who asked and what; `size N` with N bytes.
struct Echo;

impl CallHandler for Echo {
    fn call(&self, peer: &Peer, request: Bytes) -> Bytes {
        match request.strip_prefix(b"size ") {
            Some(n) => {
                let n: usize = std::str::from_utf8(n).unwrap().parse().unwrap();
                (0..n).map(|i| i as u8).collect::<Vec<u8>>().into()
            }
            None => [format!("{peer}: ").as_bytes(), &request].concat().into(),
        }
    }
}

fn both(test: impl Fn(&Security, &Security, Expect)) {
    test(&Security::Plain, &Security::Plain, Expect::Listed);
    let keys = Keys::new(&[("n", Role::Node), ("ann", Role::Operator)]);
    test(&keys.tls("n"), &keys.tls("ann"), Expect::Node("n".into()));
}

#[test]
fn several_calls_are_answered_one_after_the_other() {
    both(|server, client, expect| {
        let server = serve(server.clone(), Some(Arc::new(Echo)));
        let mut client = Client::connect(server.address(), client, &expect, SOON).unwrap();
        let who = match client.peer().role {
            Role::Local => "local, local",
            _ => "ann, an operator",
        };
        for asked in ["one", "", "three"] {
            let answer = client.call(asked.into(), SOON).unwrap();
            assert_eq!(answer, format!("{who}: {asked}"));
        }
    });
}

#[test]
fn answers_of_every_size_arrive_and_too_long_ones_are_refused() {
    both(|server, client, expect| {
        let server = serve(server.clone(), Some(Arc::new(Echo)));
        let mut client = Client::connect(server.address(), client, &expect, SOON).unwrap();
        for size in [0, 1, 2 << 20, (2 << 20) + 1, MAX_ANSWER - 1, MAX_ANSWER] {
            let answer = client.call(format!("size {size}").into(), SOON).unwrap();
            assert_eq!(answer.len(), size);
            assert!(answer.iter().enumerate().all(|(i, b)| *b == i as u8));
        }
        let most = Bytes::from(vec![b'x'; MAX_CALL]);
        assert!(client.call(most.clone(), SOON).unwrap().ends_with(&most));
        let more = Bytes::from(vec![b'x'; MAX_CALL + 1]);
        let told = client.call(more, SOON);
        assert!(matches!(told, Err(CallError::TooLong { .. })), "{told:?}");
        let told = client.call(format!("size {}", MAX_ANSWER + 1).into(), SOON);
        assert!(matches!(told, Err(CallError::Refused { .. })), "{told:?}");
        // Neither harmed the connection.
        assert_eq!(client.call("size 3".into(), SOON).unwrap().len(), 3);
    });
}

#[test]
fn a_node_without_a_handler_says_so() {
    let server = serve(Security::Plain, None);
    let plain = Security::Plain;
    let mut client = Client::connect(server.address(), &plain, &Expect::Listed, SOON).unwrap();
    let told = client.call("x".into(), SOON).unwrap_err().to_string();
    assert!(told.contains("answers no calls"), "{told}");
}

/// Answers when it is told to.
struct Slow(Mutex<mpsc::Receiver<()>>);

impl CallHandler for Slow {
    fn call(&self, _: &Peer, _: Bytes) -> Bytes {
        self.0.lock().unwrap().recv().ok();
        Bytes::from_static(b"late")
    }
}

#[test]
fn a_call_that_takes_too_long_ends_its_connection_and_no_other() {
    both(|server, client, expect| {
        let (go, wait) = mpsc::channel();
        let server = serve(server.clone(), Some(Arc::new(Slow(Mutex::new(wait)))));
        let connect = || Client::connect(server.address(), client, &expect, SOON).unwrap();
        let mut first = connect();
        let told = first.call("x".into(), Duration::from_millis(50));
        assert!(matches!(told, Err(CallError::Timeout { .. })), "{told:?}");
        // An answer that comes late is never taken for that of a later call.
        let told = first.call("y".into(), SOON);
        assert!(matches!(told, Err(CallError::Over { .. })), "{told:?}");
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(connect().call("z".into(), SOON).unwrap(), "late");
    });
}

#[test]
fn a_server_that_ends_during_a_call_is_told_from_one_that_is_late() {
    let (go, wait) = mpsc::channel();
    let server = serve(Security::Plain, Some(Arc::new(Slow(Mutex::new(wait)))));
    let plain = Security::Plain;
    let mut client = Client::connect(server.address(), &plain, &Expect::Listed, SOON).unwrap();
    let ending = std::thread::spawn(move || drop(server));
    let told = client.call("x".into(), SOON);
    assert!(matches!(told, Err(CallError::Lost { .. })), "{told:?}");
    drop(go);
    ending.join().unwrap();
}
