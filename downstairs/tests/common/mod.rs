//! A server without members, and keys for those who connect to it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use trivet_downstairs::server::{Listen, Server};
use trivet_protocol::Recorder;
use trivet_transport::call::CallHandler;
use trivet_transport::{Entry, Identity, PeerSet, Peers, Role, Security};

/// Long enough on any machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Starts one on a free port of loopback.
pub fn serve(security: Security, calls: Option<Arc<dyn CallHandler>>) -> Server {
    serve_counting(security, calls).0
}

/// The same, and what it counts.
pub fn serve_counting(
    security: Security,
    calls: Option<Arc<dyn CallHandler>>,
) -> (Server, Arc<Counts>) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let counts = Arc::new(Counts::default());
    let listen = Listen {
        security,
        calls,
        ..Listen::plain(any, counts.clone())
    };
    (Server::start(listen).unwrap(), counts)
}

/// Counters, to be waited for.
#[derive(Default)]
pub struct Counts {
    counters: Mutex<HashMap<&'static str, u64>>,
    more: Condvar,
}

impl Counts {
    pub fn wait_for(&self, name: &str, n: u64) {
        let counters = self.counters.lock().unwrap();
        let few = |c: &mut HashMap<&str, u64>| c.get(name).is_none_or(|have| *have < n);
        let (_seen, out) = self.more.wait_timeout_while(counters, SOON, few).unwrap();
        assert!(!out.timed_out(), "waited for {n} of {name}");
    }
}

impl Recorder for Counts {
    fn count(&self, name: &'static str, n: u64) {
        *self.counters.lock().unwrap().entry(name).or_default() += n;
        self.more.notify_all();
    }

    fn gauge(&self, _: &'static str, _: u64) {}

    fn time(&self, _: &'static str, _: u64) {}
}

/// Several keys, and the list in which all of them are.
pub struct Keys {
    pub entries: Vec<Entry>,
    identities: HashMap<String, Identity>,
}

impl Keys {
    pub fn new(who: &[(&str, Role)]) -> Keys {
        let mut keys = Keys {
            entries: Vec::new(),
            identities: HashMap::new(),
        };
        for (name, role) in who {
            let identity = Identity::generate().unwrap();
            keys.entries.push(Entry {
                name: (*name).into(),
                role: *role,
                key: identity.public(),
            });
            keys.identities.insert((*name).into(), identity);
        }
        keys
    }

    /// The list of all of them.
    pub fn list(&self) -> PeerSet {
        PeerSet::new(self.entries.clone()).unwrap()
    }

    /// Connects and listens as `name`, and knows all of them.
    pub fn tls(&self, name: &str) -> Security {
        self.tls_with(name, Peers::new(self.list()))
    }

    /// Connects and listens as `name`, and knows these.
    pub fn tls_with(&self, name: &str, peers: Peers) -> Security {
        Security::tls(self.identities[name].clone(), peers).unwrap()
    }
}
