//! A volume between builds that differ by one version, each on either side: both find the version
//! that they share, and everything works. And a volume of several hosts over TLS whose list of
//! peers changes under it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trivet_cluster::{Host, KeyFiles, VolumeFile, create};
use trivet_downstairs::server::Listen;
use trivet_protocol::frame::{VERSION, Versions};
use trivet_protocol::{BLOCK_BYTES, NullRecorder, VolumeId};
use trivet_replica::Volume;
use trivet_replica::driver::{ReplicatedVolume, Start};
use trivet_replica::upstairs::{ActivateError, ActivateOptions, Config, Limits, Notice};
use trivet_replica::volume::{Batch, Block};
use trivet_transport::{PeerSet, Peers, Role, Security};

const SOON: Duration = Duration::from_secs(20);
const NODES: [&str; 3] = ["a", "b", "c"];

fn listen(security: Security, versions: Versions) -> Listen {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Listen {
        security,
        versions,
        ..Listen::plain(any, Arc::new(NullRecorder))
    }
}

/// Three hosts of a new volume in `dir`, host `i` listening as `how(i)` says.
fn hosts(dir: &std::path::Path, how: impl Fn(usize) -> Listen) -> (VolumeId, Vec<Host>) {
    let path = dir.join("volume.toml");
    let pools = NODES.map(|n| (n.to_owned(), PathBuf::from(n)));
    let file = VolumeFile::new(256 * BLOCK_BYTES as u64, pools).unwrap();
    let file = create(&path, file).unwrap();
    let host = |i: usize| Host::start(how(i), &[dir.join(NODES[i])]).unwrap();
    (file.volume, (0..3).map(host).collect())
}

fn start(
    volume: VolumeId,
    hosts: &[Host],
    security: Security,
    versions: Versions,
) -> (ReplicatedVolume, mpsc::Receiver<Notice>) {
    ReplicatedVolume::start(Start {
        config: Config {
            volume,
            node: "test".into(),
            links: NODES.map(str::to_owned).to_vec(),
            local: None,
            limits: Limits::default(),
        },
        addresses: hosts.iter().map(|h| vec![h.address()]).collect(),
        security,
        versions,
        local: None,
        recorder: Arc::new(NullRecorder),
    })
    .unwrap()
}

fn options(patience: Duration) -> ActivateOptions {
    ActivateOptions {
        claim: u128::from_le_bytes(VolumeId::random().bytes()),
        wait_for_lease: true,
        patience,
        accept_data_loss: false,
    }
}

fn write_and_read(volume: &ReplicatedVolume, fill: u8) {
    let block = Bytes::from(vec![fill; BLOCK_BYTES]);
    volume
        .submit(Batch::write(Block(fill.into()), block.clone()))
        .unwrap();
    volume.flush_all().unwrap();
    let mut back = vec![0; BLOCK_BYTES];
    volume.read(Block(fill.into()), &mut back).unwrap();
    assert!(back == block);
}

#[test]
fn builds_that_differ_by_one_version_work_together_in_both_directions() {
    let this = Versions {
        oldest: VERSION,
        newest: VERSION,
    };
    let next = Versions {
        newest: VERSION + 1,
        ..this
    };
    for (above, below) in [(this, next), (next, this), (next, next)] {
        let dir = tempfile::tempdir().unwrap();
        let (id, hosts) = hosts(dir.path(), |_| listen(Security::Plain, below));
        let (volume, _notices) = start(id, &hosts, Security::Plain, above);
        volume.activate(options(SOON)).unwrap();
        write_and_read(&volume, 7);
        assert!(volume.status().members.iter().all(|m| m.in_sync));
        volume.hand_back().unwrap();
        drop(volume);
        hosts.into_iter().for_each(|h| h.close().unwrap());
    }
}

#[test]
fn builds_without_a_common_version_refuse_each_other_by_name() {
    let this = Versions::default();
    let far = Versions {
        oldest: VERSION + 1,
        newest: VERSION + 1,
    };
    let dir = tempfile::tempdir().unwrap();
    let (id, hosts) = hosts(dir.path(), |_| listen(Security::Plain, far));
    let (volume, _notices) = start(id, &hosts, Security::Plain, this);
    let told = volume
        .activate(options(Duration::from_millis(500)))
        .unwrap_err();
    assert!(matches!(told, ActivateError::Unsafe { .. }), "{told}");
}

#[test]
fn a_volume_goes_on_while_a_node_is_taken_out_of_the_list_and_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = NODES.map(|n| (n, Role::Node));
    let who = [&nodes[..], &[("test", Role::Exporter)]].concat();
    let keys = KeyFiles::make(dir.path(), &who).unwrap();
    let (id, hosts) = hosts(dir.path(), |i| {
        listen(keys[i].security().unwrap(), Versions::default())
    });
    let everybody = PeerSet::load(&keys[3].peers).unwrap();
    let peers = Peers::new(everybody.clone());
    let own = trivet_transport::Identity::load(&keys[3].key).unwrap();
    let security = Security::tls(own, peers.clone()).unwrap();
    let (volume, _notices) = start(id, &hosts, security, Versions::default());
    volume.activate(options(SOON)).unwrap();
    write_and_read(&volume, 1);
    let up = |node: &str| {
        volume
            .status()
            .members
            .iter()
            .any(|m| m.node == node && m.up)
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < SOON, "waited for: {what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    };
    // When c is taken out, its connection ends, and the others go on.
    let entry = |p: &trivet_transport::Peer| trivet_transport::Entry {
        name: p.name.clone(),
        role: p.role,
        key: p.key.unwrap(),
    };
    let without = everybody.iter().filter(|p| p.name != "c").map(entry);
    peers.replace(PeerSet::new(without).unwrap());
    wait("c is down", &|| !up("c"));
    write_and_read(&volume, 2);
    assert!(!up("c"), "it does not come back by itself");
    // When it is put back, it comes back.
    peers.replace(everybody);
    wait("c is up", &|| up("c"));
    write_and_read(&volume, 3);
    volume.hand_back().unwrap();
}
