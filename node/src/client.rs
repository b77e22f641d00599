//! Asking a node something, from wherever.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use trivet_transport::call::Client;
use trivet_transport::{Expect, Security};

use crate::config::Config;
use crate::error::{NodeError, Result};
use crate::messages::{Answer, Ask};

/// A connection takes at most this long.
const CONNECT: Duration = Duration::from_secs(1);

/// Asks the node of this name, at the first of its addresses that can be connected to, which is
/// returned with the answer.
///
/// # Errors
/// It is not in the configuration, cannot be reached, or does not answer in time.
pub fn ask(
    config: &Config,
    security: &Security,
    node: &str,
    ask: &Ask,
    patience: Duration,
) -> Result<(Answer, SocketAddr)> {
    let Some(at) = config.node(node) else {
        let all: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        return Err(NodeError::NoSuchNode(node.to_owned(), all.join(", ")));
    };
    let mut last = None;
    for address in &at.addresses {
        let unreachable = |why: String| NodeError::Unreachable {
            node: node.to_owned(),
            address: address.to_string(),
            why,
        };
        // By name alone: an exporter hosts no member, and is asked all the same.
        let expect = Expect::Named(node.to_owned());
        let mut client = match Client::connect(*address, security, &expect, CONNECT) {
            Ok(client) => client,
            Err(e) => {
                last = Some(unreachable(e.to_string()));
                continue;
            }
        };
        let raw = serde_json::to_vec(ask).map_err(|e| unreachable(e.to_string()))?;
        let raw = client
            .call(Bytes::from(raw), patience)
            .map_err(|e| unreachable(e.to_string()))?;
        let answer = serde_json::from_slice(&raw).map_err(|e| unreachable(e.to_string()))?;
        return Ok((answer, *address));
    }
    Err(last.unwrap_or_else(|| NodeError::NoSuchNode(node.to_owned(), "no address".into())))
}
