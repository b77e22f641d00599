//! Making a region or witness ready to come into a volume that exists, on the node where it is to
//! live.
//!
//! The one who adds it mints the identity ([`Joining::new`], beside the active node), sends this
//! description to the other node, which makes it ready ([`make_ready`]) and serves it
//! ([`crate::Host::rescan`]); then it is added
//! ([`trivet_replica::driver::ReplicatedVolume::add_replica`] and the like). Until that is settled
//! it is no member: it holds a copy of a record that does not list it, and counts for nothing.
//!
//! A crash in between leaves a directory that the same call finishes, or that can be thrown away.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trivet_downstairs::member::MemberState;
use trivet_downstairs::pool::Pool;
use trivet_downstairs::{Region, Store, Witness, region, witness};
use trivet_protocol::{MemberId, MemberKind, NullRecorder, Record};

use crate::error::{ClusterError, Result};

/// What a node needs to know to make a new member ready. Travels as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joining {
    /// Its identity, never used before.
    pub member: MemberId,
    /// Replica or witness.
    pub kind: MemberKind,
    /// The volume's present record.
    pub record: Record,
}

impl Joining {
    /// A new member of the volume with this record, under a new identity.
    pub fn new(kind: MemberKind, record: Record) -> Joining {
        Joining {
            member: MemberId::random(),
            kind,
            record,
        }
    }
}

/// Makes the new member ready in the pool at `pool`, which must exist. What is there already under
/// this identity is finished, not made again. Returns its directory.
///
/// # Errors
/// The description cannot be believed, the pool is not there (is its disk mounted?), or the disk
/// fails.
pub fn make_ready(pool: &Path, joining: &Joining) -> Result<PathBuf> {
    let pool = Pool::open(pool)?;
    let problem = joining.record.problem().or_else(|| {
        let listed = joining.record.member(joining.member).is_some();
        listed.then_some("it lists the new member already")
    });
    let dir = pool.region_dir(joining.record.volume, joining.member);
    if let Some(problem) = problem {
        let why = format!("the record given for it is not believed: {problem}");
        return Err(ClusterError::VolumeFile { path: dir, why });
    }
    make_member(&pool, joining.kind, joining.member, &joining.record)?;
    Ok(dir)
}

/// Makes a region or witness with its first state, or finishes one whose making was cut short.
pub(crate) fn make_member(
    pool: &Pool,
    kind: MemberKind,
    member: MemberId,
    record: &Record,
) -> Result<()> {
    let dir = pool.region_dir(record.volume, member);
    let wrong = || ClusterError::region(&dir);
    let recorder = Arc::new(NullRecorder);
    let disk = pool.make_region(record.volume, member, recorder.clone())?;
    let state = MemberState::new(member, record.clone());
    if kind == MemberKind::Witness {
        if dir.join(witness::FILE).exists() {
            return Ok(());
        }
        return Witness::create(&*disk, &state).map_err(wrong());
    }
    if !dir.join(region::FILE).exists() {
        let region = Region::new(record.volume, member, record.blocks);
        Store::create(&disk, &region).map_err(wrong())?;
    }
    let expected = Some((record.volume, member));
    let (mut store, _) = Store::open(disk, expected, recorder).map_err(wrong())?;
    if store.member_state().is_empty() {
        let raw = serde_json::to_vec(&state).map_err(|e| ClusterError::VolumeFile {
            path: dir.clone(),
            why: e.to_string(),
        })?;
        store.set_member_state(raw).map_err(wrong())?;
    }
    store.close().map_err(wrong())
}
