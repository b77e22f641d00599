//! Connections between nodes: authenticated, ordered byte streams, and calls over them.
//!
//! - [`key`]: an [`Identity`] is an Ed25519 key in a file; its public form is `trivet1:BASE64`;
//! - [`peers`]: who may connect: names, roles and public keys, replaceable while running;
//! - [`Security`]: plain (loopback only) or TLS 1.3 with those keys pinned on both sides;
//! - [`Connection`]: a reading and a writing half, the same for both;
//! - [`call`]: requests and answers for whatever runs on a node, on the same port.
//!
//! A stranger gets no further than the handshake: nothing that it sends reaches a decoder of
//! Trivet's own. There is no authority and no expiry, so no clock can lock a cluster out.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration, path::Path};
//! # use bytes::Bytes;
//! use trivet_transport::{Expect, Identity, Peer, PeerSet, Peers, Security};
//! use trivet_transport::call::{CallHandler, Client};
//!
//! struct Node;
//! impl CallHandler for Node {
//!     fn call(&self, peer: &Peer, request: Bytes) -> Bytes {
//!         Bytes::from(format!("{} sent {} bytes", peer.name, request.len()))
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Plain, for loopback; or with keys:
//! let identity = Identity::load(Path::new("node.key"))?;
//! let peers = Peers::new(PeerSet::load(Path::new("peers.toml"))?);
//! let security = Security::tls(identity, peers.clone())?;
//!
//! // Serving: `trivet_downstairs::server::Server::start(Listen { address, security, calls:
//! // Some(Arc::new(Node)), .. })`. Calling:
//! let limit = Duration::from_secs(2);
//! let expect = Expect::Node("pve2".into());
//! let mut client = Client::connect("10.0.0.2:7100".parse()?, &security, &expect, limit)?;
//! let answer = client.call(Bytes::from_static(b"status"), limit)?;
//! # drop(answer);
//!
//! // The configuration changed: connections of keys that were taken out end here.
//! peers.replace(PeerSet::load(Path::new("peers.toml"))?);
//! # Ok(()) }
//! ```
//!
//! Bounds: a handshake and every wait have a total time; per connection, 64 KiB of text and as
//! much of ciphertext on their way out, and 64 KiB of ciphertext on its way in.

mod base64;
pub mod call;
mod conn;
mod error;
pub mod key;
pub mod peers;
mod security;
mod tls;

pub use conn::{Connection, Reader, Writer};
pub use error::{Result, TransportError};
pub use key::{Identity, PublicKey};
pub use peers::{Entry, Peer, PeerSet, Peers, Role};
pub use security::{Expect, Security};
