//! A server without members, and keys for those who connect to it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use trivet_downstairs::server::{Listen, Server};
use trivet_protocol::NullRecorder;
use trivet_transport::call::CallHandler;
use trivet_transport::{Entry, Identity, PeerSet, Peers, Role, Security};

/// Long enough on any machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Starts one on a free port of loopback.
pub fn serve(security: Security, calls: Option<Arc<dyn CallHandler>>) -> Server {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listen = Listen {
        security,
        calls,
        ..Listen::plain(any, Arc::new(NullRecorder))
    };
    Server::start(listen).unwrap()
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
