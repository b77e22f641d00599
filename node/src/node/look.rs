//! What a node reports of its members and pools, taken from them as they are now.

use std::path::PathBuf;

use trivet_downstairs::pool::Pool;
use trivet_downstairs::replica::Replica;
use trivet_downstairs::server::boot_time;
use trivet_protocol::MemberKind;
use trivet_protocol::message::DataState;
use trivet_replica::upstairs::Limits;

use crate::config::{Config, VolumeConfig};
use crate::messages::{MemberReport, PoolReport};

/// A member.
pub(super) fn member(r: &Replica) -> MemberReport {
    let now = boot_time();
    let (member, store) = (r.member(), r.store());
    let state = member.state();
    let unusable = match r.data_state() {
        DataState::None | DataState::Whole(_) => None,
        DataState::Mixed(_) => Some("it is being brought up to date".to_owned()),
        DataState::Damaged => Some("it is damaged".to_owned()),
    };
    MemberReport {
        id: state.member,
        kind: store.map_or(MemberKind::Witness, |_| MemberKind::Replica),
        promise: state.promise.number,
        holder: state.holder.clone(),
        lease_left_ms: member.lease_left(now).0,
        held_for_ms: member.held_for(now).0,
        removed: state.removed,
        record: state.record.clone(),
        durable: store.map(|s| s.durable().seq).unwrap_or_default(),
        unusable,
    }
}

/// Room in a node's pools; one whose disk is not there has none to show.
pub(super) fn pools(config: &Config, node: &str) -> Vec<PoolReport> {
    let pools = config.node(node).map(|n| &n.pools);
    let report = |(name, dir): (&String, &PathBuf)| {
        let space = Pool::open(dir).and_then(|p| p.space()).ok()?;
        Some(PoolReport {
            name: name.clone(),
            free: space.free,
            size: space.total,
        })
    };
    pools.into_iter().flatten().filter_map(report).collect()
}

/// What bounds the upstairs of a volume.
pub(super) fn limits(volume: &VolumeConfig) -> Limits {
    let usual = Limits::default();
    Limits {
        resync_rate: volume
            .resync_mib
            .map_or(usual.resync_rate, |m| m.saturating_mul(1 << 20)),
        ..usual
    }
}
