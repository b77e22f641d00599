//! `trivet volume create` in a cluster: each node makes its member, all from one first record.
//!
//! A creation cut short leaves members of the first record and nothing that was ever served; the
//! same command again finds that record on them and makes what is missing.

use std::time::Duration;

use serde::Serialize;
use trivet_node::config::{NodeConfig, Role, VolumeConfig};
use trivet_node::messages::{Ask, ClusterReport, MakeMember};
use trivet_protocol::limits::{DEFAULT_LEASE_MS, MAX_VOLUME_BLOCKS};
use trivet_protocol::{
    BLOCK_BYTES, MemberId, MemberInfo, MemberKind, Millis, Position, Record, RecordVersion,
};

use super::cluster::{Cluster, ClusterArgs};
use crate::error::CliError;
use crate::output::{self, Format};
use crate::size::Size;

/// Replicas of a volume, unless told otherwise.
const REPLICAS: usize = 3;
/// A node makes a region, with its log written in full, within this time.
const MAKE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Made {
    volume: String,
    id: String,
    bytes: u64,
    members: Vec<(String, String)>,
}

/// One member to be.
struct Place {
    node: String,
    kind: MemberKind,
}

/// Does it.
///
/// # Errors
/// The configuration does not name the volume, it is there already, or a node refuses.
pub fn create(
    args: &ClusterArgs,
    name: &str,
    size: Size,
    nodes: &[String],
    format: Format,
) -> Result<(), CliError> {
    let cluster = args.open()?;
    let volume = cluster.config.volume(name).ok_or_else(|| {
        CliError::failed(format_args!("the configuration names no volume {name}"))
            .hint("add a [[volume]] with this name and a new id, on all nodes; or give --pool")
    })?;
    let seen = cluster.report()?;
    let record = match begun(&seen, volume)? {
        Some(record) => record,
        None => first_record(volume, size, &places(&cluster, nodes)?)?,
    };
    for member in &record.members {
        let ask = Ask::MakeMember(MakeMember {
            record: record.clone(),
            member: member.id,
            pool: pool_of(&cluster, &member.node, nodes)?,
        });
        cluster.ask(&member.node, &ask, MAKE)?;
    }
    let made = Made {
        volume: name.to_owned(),
        id: record.volume.to_string(),
        bytes: record.blocks * BLOCK_BYTES as u64,
        members: record
            .members
            .iter()
            .map(|m| (m.node.clone(), m.id.to_string()))
            .collect(),
    };
    output::print(format, &made, |m| {
        let on: Vec<&str> = m.members.iter().map(|(n, _)| n.as_str()).collect();
        format!(
            "volume {} of {} GiB on {}; next: trivet promote {}\n",
            m.volume,
            m.bytes >> 30,
            on.join(", "),
            m.volume
        )
    })
}

/// The first record of a creation that was cut short.
fn begun(seen: &ClusterReport, volume: &VolumeConfig) -> Result<Option<Record>, CliError> {
    let reports = seen.nodes.iter().filter_map(|n| n.report.as_ref());
    let mut members = reports
        .flat_map(|r| &r.volumes)
        .filter(|v| v.id == volume.id)
        .flat_map(|v| &v.members);
    let Some(any) = members.next() else {
        return Ok(None);
    };
    if any.record.version != RecordVersion::default() {
        return Err(CliError::failed(format_args!(
            "volume {} exists already",
            volume.name
        )));
    }
    Ok(Some(any.record.clone()))
}

fn places(cluster: &Cluster, nodes: &[String]) -> Result<Vec<Place>, CliError> {
    let all = &cluster.config.nodes;
    let chosen: Vec<&NodeConfig> = match nodes.is_empty() {
        true => all
            .iter()
            .filter(|n| n.is(Role::Replica))
            .take(REPLICAS)
            .collect(),
        false => nodes
            .iter()
            .map(|given| {
                let name = given.split(':').next().unwrap_or_default();
                let node = cluster.config.node(name).filter(|n| n.is(Role::Replica));
                node.ok_or_else(|| {
                    CliError::usage(format_args!(
                        "no node {name} that keeps replicas is configured"
                    ))
                })
            })
            .collect::<Result<_, _>>()?,
    };
    let mut places: Vec<Place> = Vec::new();
    for n in &chosen {
        // Asked now, so that nothing is made if one is not clear.
        pool_of(cluster, &n.name, nodes)?;
        places.push(Place {
            node: n.name.clone(),
            kind: MemberKind::Replica,
        });
    }
    if chosen.len() == 2 {
        let witness = all.iter().find(|n| n.is(Role::Witness));
        let witness = witness.ok_or_else(|| {
            CliError::usage("two replicas without a third vote stop when either node dies")
                .hint("give a third host the role \"witness\" in the configuration")
        })?;
        places.push(Place {
            node: witness.name.clone(),
            kind: MemberKind::Witness,
        });
    }
    match chosen.len() {
        1..=3 => Ok(places),
        n => Err(
            CliError::usage(format_args!("{n} nodes were given for replicas"))
                .hint("three is usual; two need a witness; one protects against nothing"),
        ),
    }
}

/// The pool that was given for a node, or its only one.
fn pool_of(cluster: &Cluster, node: &str, nodes: &[String]) -> Result<String, CliError> {
    let given = nodes.iter().find_map(|n| {
        let (name, pool) = n.split_once(':')?;
        (name == node).then(|| pool.to_owned())
    });
    let pools = cluster.config.node(node).map(|n| &n.pools);
    let only = || {
        let mut names = pools?.keys();
        let first = names.next()?.clone();
        names.next().is_none().then_some(first)
    };
    given.or_else(only).ok_or_else(|| {
        CliError::usage(format_args!("node {node} has several pools, or none"))
            .hint("name one: --nodes NODE:POOL")
    })
}

fn first_record(volume: &VolumeConfig, size: Size, places: &[Place]) -> Result<Record, CliError> {
    let blocks = size.bytes().div_ceil(BLOCK_BYTES as u64);
    if blocks == 0 || blocks > MAX_VOLUME_BLOCKS {
        return Err(
            CliError::usage("that size is not possible").hint("1 block of 4 KiB to 2^38 blocks")
        );
    }
    let members: Vec<MemberInfo> = places
        .iter()
        .map(|p| MemberInfo {
            id: MemberId::random(),
            node: p.node.clone(),
            kind: p.kind,
            opens: 0,
            durable: Position::default(),
        })
        .collect();
    let replicas: Vec<MemberId> = members
        .iter()
        .filter(|m| m.kind == MemberKind::Replica)
        .map(|m| m.id)
        .collect();
    Ok(Record {
        version: RecordVersion::default(),
        volume: volume.id,
        blocks,
        // Two of three; with two and a witness, or one alone, a single copy goes on, loudly.
        min_copies: if replicas.len() == 3 { 2 } else { 1 },
        in_sync: replicas.into_iter().collect(),
        members,
        lease: Millis(DEFAULT_LEASE_MS),
        losses: 0,
    })
}
