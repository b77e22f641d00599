//! An upstairs to members anywhere, activated.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use trivet_downstairs::server::Served;
use trivet_protocol::frame::Versions;
use trivet_protocol::{Block, Checksum, Generation, MemberId, Recorder, Seq, VolumeId};
use trivet_replica::driver::{LocalReplica, ReplicatedVolume, Start};
use trivet_replica::upstairs::{ActivateOptions, Config, Limits, LinkId, Notice};
use trivet_transport::Security;

use crate::error::{ClusterError, Result};

/// Where a member's host is reached.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Name of the node.
    pub node: String,
    /// Its addresses in the order of preference, the replication network first.
    pub addresses: Vec<SocketAddr>,
}

/// What [`attach()`] needs.
pub struct Attach {
    /// The volume.
    pub volume: VolumeId,
    /// This node's name, told to members and shown to whoever is refused.
    pub node: String,
    /// The hosts that serve its members.
    pub hosts: Vec<Reach>,
    /// How connections are protected; under TLS each host must be the node that it is called.
    pub security: Security,
    /// The replica in this process and its place in `hosts`.
    pub local: Option<(usize, Arc<Served>)>,
    /// Takes figures.
    pub recorder: Arc<dyn Recorder>,
    /// Bounds.
    pub limits: Limits,
    /// How long an activation may take; another's lease is waited for within it.
    pub patience: Duration,
    /// Wait for another holder's lease to run out, instead of refusing at once.
    pub wait_for_lease: bool,
    /// Serve although replicas that may hold acknowledged data cannot be heard.
    pub accept_data_loss: bool,
}

/// A replica that this process serves, for its own upstairs to read from.
pub struct Local(pub Arc<Served>);

impl LocalReplica for Local {
    fn member(&self) -> MemberId {
        self.0.member()
    }

    fn read_local(
        &self,
        generation: Generation,
        seen: Seq,
        block: Block,
        count: u32,
    ) -> Option<(bytes::Bytes, Vec<Checksum>)> {
        self.0.read_local(generation, seen, block, count)
    }
}

/// Connects and activates; notices go to the log.
///
/// # Errors
/// [`ClusterError::Activate`] says who holds the volume, or whom it needs.
pub fn attach(a: Attach) -> Result<Arc<ReplicatedVolume>> {
    let local = a.local.as_ref().map(|(i, _)| LinkId::from_index(*i));
    let (nodes, addresses) = a.hosts.into_iter().map(|h| (h.node, h.addresses)).unzip();
    let (volume, notices) = ReplicatedVolume::start(Start {
        config: Config {
            volume: a.volume,
            node: a.node,
            links: nodes,
            local,
            limits: a.limits,
        },
        addresses,
        security: a.security,
        versions: Versions::default(),
        local: a
            .local
            .map(|(_, s)| Arc::new(Local(s)) as Arc<dyn LocalReplica>),
        recorder: a.recorder,
    })
    .map_err(ClusterError::Thread)?;
    let id = a.volume;
    // Ends with the volume, which holds the sending side.
    thread::Builder::new()
        .name("notices".into())
        .spawn(move || notices.iter().for_each(|n| log(id, &n)))
        .map_err(ClusterError::Thread)?;
    volume.activate(ActivateOptions {
        claim: u128::from_le_bytes(VolumeId::random().bytes()),
        wait_for_lease: a.wait_for_lease,
        patience: a.patience,
        accept_data_loss: a.accept_data_loss,
    })?;
    Ok(Arc::new(volume))
}

fn log(volume: VolumeId, notice: &Notice) {
    match notice {
        Notice::Activated { .. }
        | Notice::JoinedSet { .. }
        | Notice::Repaired { .. }
        | Notice::ResyncStarted { .. }
        | Notice::ResyncDone { .. }
        | Notice::ScrubStarted
        | Notice::ScrubDone { wrong: 0, .. }
        | Notice::LeaseBack => tracing::info!(%volume, ?notice, "volume"),
        _ => tracing::warn!(%volume, ?notice, "volume"),
    }
}
