//! `trivet limits`: every bound that is a constant (invariant 10), from the constants themselves.
//!
//! `docs/limits.md` is this table; a test compares the two and, run with `UPDATE_DOCS=1`, writes
//! it.

use serde::Serialize;
use trivet_downstairs::{door, server};
use trivet_protocol::limits as protocol;
use trivet_transport::{call, peers};

use crate::error::CliError;
use crate::output::{self, Format, Table};

#[derive(Debug, Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    unit: &'static str,
    bounds: &'static str,
}

#[derive(Debug, Serialize)]
struct Limits {
    limits: Vec<Limit>,
}

fn all() -> Limits {
    let limit = |name, value, unit, bounds| Limit {
        name,
        value,
        unit,
        bounds,
    };
    let limits = vec![
        limit(
            "volume.block",
            trivet_protocol::BLOCK_BYTES as u64,
            "bytes",
            "the unit of a volume",
        ),
        limit(
            "volume.blocks",
            protocol::MAX_VOLUME_BLOCKS,
            "blocks",
            "size of a volume",
        ),
        limit(
            "batch.blocks",
            protocol::MAX_BATCH_BLOCKS as u64,
            "blocks",
            "data in one atomic batch",
        ),
        limit(
            "batch.operations",
            protocol::MAX_BATCH_OPS as u64,
            "operations",
            "operations in one atomic batch",
        ),
        limit(
            "scrub.blocks",
            u64::from(protocol::MAX_SCRUB_BLOCKS),
            "blocks",
            "one range that a scrub looks at",
        ),
        limit(
            "read.blocks",
            u64::from(protocol::MAX_READ_BLOCKS),
            "blocks",
            "one read request",
        ),
        limit(
            "frame.meta",
            protocol::MAX_FRAME_META as u64,
            "bytes",
            "control part of a frame between nodes",
        ),
        limit(
            "frame.data",
            protocol::MAX_FRAME_DATA as u64,
            "bytes",
            "data part of a frame between nodes",
        ),
        limit(
            "call.request",
            protocol::MAX_CALL as u64,
            "bytes",
            "a call's request",
        ),
        limit(
            "call.answer",
            protocol::MAX_ANSWER as u64,
            "bytes",
            "a call's answer",
        ),
        limit(
            "call.idle",
            call::IDLE.as_secs(),
            "seconds",
            "a connection without a call",
        ),
        limit(
            "connections",
            door::MAX_CONNECTIONS as u64,
            "connections",
            "connections to one server that got in",
        ),
        limit(
            "connections.waiting",
            door::MAX_WAITING as u64,
            "connections",
            "connections on their way in; one more, and the oldest is closed",
        ),
        limit(
            "connections.hello",
            door::HELLO.as_secs(),
            "seconds",
            "from connecting to the first frame, the handshake included",
        ),
        limit("peers", peers::MAX_PEERS as u64, "peers", "a list of peers"),
        limit(
            "generation",
            protocol::MAX_GENERATION,
            "-",
            "a generation's number",
        ),
        limit(
            "history.place",
            protocol::MAX_SEQ,
            "operations",
            "a place in a volume's history",
        ),
        limit(
            "fetch",
            u64::from(protocol::MAX_FETCH_BYTES),
            "bytes",
            "entries given in answer to one question",
        ),
        limit(
            "links",
            trivet_replica::upstairs::MAX_LINKS as u64,
            "links",
            "from one upstairs to members",
        ),
        limit(
            "reads.threads",
            server::READERS as u64,
            "threads",
            "that wait for a replica's disk in place of readers beside it",
        ),
        limit(
            "reads.patience",
            server::READ_PATIENCE.as_millis() as u64,
            "milliseconds",
            "until such a reader asks another replica",
        ),
        limit(
            "volume.members",
            protocol::MAX_MEMBERS as u64,
            "members",
            "replicas and witnesses of a volume",
        ),
        limit(
            "volume.in_sync",
            protocol::MAX_IN_SYNC as u64,
            "replicas",
            "the in-sync set",
        ),
        limit(
            "node.name",
            protocol::MAX_NAME as u64,
            "bytes",
            "a node's name",
        ),
        limit(
            "lease.shortest",
            *protocol::LEASE_RANGE_MS.start(),
            "milliseconds",
            "lease length in a record",
        ),
        limit(
            "lease.longest",
            *protocol::LEASE_RANGE_MS.end(),
            "milliseconds",
            "lease length in a record",
        ),
    ];
    let of_fs = trivet_fs::limits::LIMITS;
    let of_fs = of_fs
        .iter()
        .map(|l| limit(l.name, l.value, l.unit, l.bounds));
    let limits = limits.into_iter().chain(of_fs).collect();
    Limits { limits }
}

/// Prints them.
pub fn run(format: Format) -> Result<(), CliError> {
    output::print(format, &all(), |all| {
        let mut table = Table::new(&["name", "value", "unit", "bounds"]);
        for l in &all.limits {
            table.row([l.name, &l.value.to_string(), l.unit, l.bounds]);
        }
        table.render()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let mut text = String::from(
            "# Limits\n\nBounds that are constants; `trivet limits` prints the same table. \
             At a limit the producer waits or is refused.\n\n\
             | name | value | unit | bounds |\n|---|--:|---|---|\n",
        );
        for l in all().limits {
            let row = format!("| {} | {} | {} | {} |\n", l.name, l.value, l.unit, l.bounds);
            text.push_str(&row);
        }
        text
    }

    #[test]
    fn the_page_in_docs_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/limits.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let have = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            have,
            page(),
            "docs/limits.md is stale; run UPDATE_DOCS=1 cargo test -p trivet"
        );
    }
}
