//! Members that come and go while a volume is written, over real sockets: hosts in this process,
//! each with a pool of its own. No step waits for a fixed time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trivet_cluster::{Attach, Host, Joining, Reach, VolumeFile, attach, create, make_ready};
use trivet_downstairs::pool::Pool;
use trivet_downstairs::server::Listen;
use trivet_protocol::{
    BLOCK_BYTES, Batch, Block, MemberId, MemberKind, NullRecorder, Record, Recorder,
};
use trivet_replica::Volume;
use trivet_replica::driver::{NewMember, ReplicatedVolume};
use trivet_replica::upstairs::{Limits, Status};
use trivet_transport::Security;

const PATIENCE: Duration = Duration::from_secs(40);
const BLOCKS: u64 = 4096;

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} for: {what}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn recorder() -> Arc<dyn Recorder> {
    Arc::new(NullRecorder)
}

fn listen(at: SocketAddr) -> Listen {
    Listen::plain(at, recorder())
}

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

struct Cluster {
    dir: tempfile::TempDir,
    file: VolumeFile,
    hosts: Vec<Host>,
}

impl Cluster {
    fn new(witness: bool) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let bytes = BLOCKS * BLOCK_BYTES as u64;
        let names = ["a", "b", "c"].map(|n| (n.to_owned(), PathBuf::from(n)));
        let file = match witness {
            false => VolumeFile::new(bytes, names).unwrap(),
            true => {
                let [a, b, c] = names;
                VolumeFile::new(bytes, [a, b])
                    .unwrap()
                    .with_witness(c.0, c.1)
            }
        };
        let file = create(&dir.path().join("volume.toml"), file).unwrap();
        let hosts =
            ["a", "b", "c"].map(|n| Host::start(listen(any()), &[dir.path().join(n)]).unwrap());
        Cluster {
            dir,
            file,
            hosts: hosts.into(),
        }
    }

    fn pool(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn attach(&self, hosts: Vec<Reach>) -> Arc<ReplicatedVolume> {
        attach(Attach {
            volume: self.file.volume,
            node: "test".into(),
            hosts,
            security: Security::Plain,
            local: None,
            recorder: recorder(),
            limits: Limits::default(),
            patience: PATIENCE,
            wait_for_lease: true,
            accept_data_loss: false,
        })
        .unwrap()
    }

    fn reach(&self) -> Vec<Reach> {
        let names = ["a", "b", "c", "d", "e"].iter();
        let of = |(n, h): (&&str, &Host)| Reach {
            node: (*n).to_owned(),
            addresses: vec![h.address()],
        };
        names.zip(&self.hosts).map(of).collect()
    }

    /// A host on another node, with an empty pool.
    fn one_more(&mut self, name: &str) {
        Pool::create(&self.pool(name)).unwrap();
        let host = Host::start(listen(any()), &[self.pool(name)]).unwrap();
        self.hosts.push(host);
    }

    /// A new member made ready on a host and served there.
    fn ready(
        &self,
        volume: &ReplicatedVolume,
        (i, name): (usize, &str),
        kind: MemberKind,
    ) -> NewMember {
        let joining = Joining::new(kind, record(volume));
        make_ready(&self.pool(name), &joining).unwrap();
        make_ready(&self.pool(name), &joining).expect("again, as after a crash");
        let (count, problems) = self.hosts[i].rescan().unwrap();
        assert_eq!((count, problems), (1, vec![]));
        NewMember {
            id: joining.member,
            node: name.to_owned(),
            addresses: vec![self.hosts[i].address()],
        }
    }
}

fn record(volume: &ReplicatedVolume) -> Record {
    volume.with(|u, _| u.record().cloned()).unwrap()
}

fn write(volume: &ReplicatedVolume, tag: u8, blocks: impl Iterator<Item = u64>) {
    for block in blocks {
        let data = vec![tag; BLOCK_BYTES].into();
        volume.submit(Batch::write(Block(block), data)).unwrap();
    }
    volume.flush_all().unwrap();
}

fn check(volume: &ReplicatedVolume, tag: u8, blocks: impl Iterator<Item = u64>) {
    let mut out = vec![0; BLOCK_BYTES];
    for block in blocks {
        volume.read(Block(block), &mut out).unwrap();
        assert!(out.iter().all(|b| *b == tag), "block {block}: {}", out[0]);
    }
}

fn in_sync(status: &Status, id: MemberId) -> bool {
    status.members.iter().any(|m| m.id == id && m.in_sync)
}

fn close(cluster: Cluster, volume: Arc<ReplicatedVolume>) {
    volume.hand_back().unwrap();
    drop(volume);
    for host in cluster.hosts {
        host.close().unwrap();
    }
}

#[test]
fn two_and_a_witness_go_on_with_one_copy_and_say_so() {
    let mut c = Cluster::new(true);
    let volume = c.attach(c.reach());
    assert_eq!(record(&volume).min_copies, 1);
    write(&volume, 1, 0..100);
    let b = c.hosts.remove(1);
    b.close().unwrap();
    write(&volume, 2, 50..100);
    let status = volume.status();
    assert_eq!(status.members.iter().filter(|m| m.in_sync).count(), 1);
    let warned = status.warnings.join("; ");
    assert!(warned.contains("one copy"), "{warned:?}");
    check(&volume, 1, 0..50);
    check(&volume, 2, 50..100);
    close(c, volume);
}

#[test]
fn a_dead_replica_is_replaced_and_the_new_one_holds_everything() {
    let mut c = Cluster::new(false);
    let volume = c.attach(c.reach());
    write(&volume, 1, 0..300);
    let dead = c.file.member[2].id;
    c.hosts.remove(2).close().unwrap();
    write(&volume, 2, 100..200);
    c.one_more("d");
    let new = c.ready(&volume, (2, "d"), MemberKind::Replica);
    volume.replace_member(dead, &new).unwrap();
    wait_for("the new one in the set, the old one gone", || {
        let r = record(&volume);
        in_sync(&volume.status(), new.id) && r.member(dead).is_none() && r.members.len() == 3
    });
    write(&volume, 3, 0..10);
    // The new one and one other are enough, and hold all of it.
    c.hosts.remove(1).close().unwrap();
    check(&volume, 3, 0..10);
    check(&volume, 1, 10..100);
    check(&volume, 2, 100..200);
    close(c, volume);
}

#[test]
fn a_replica_is_added_and_one_removed_which_never_votes_again() {
    let mut c = Cluster::new(false);
    let volume = c.attach(c.reach());
    write(&volume, 1, 0..200);
    let gone = c.file.member[0].id;
    volume.remove_member(gone).unwrap();
    assert_eq!(record(&volume).members.len(), 2);
    let told = c.hosts[0].served()[0].with(|r| r.member().state().removed);
    assert!(told, "it stored that it was removed");
    c.one_more("d");
    let new = c.ready(&volume, (3, "d"), MemberKind::Replica);
    volume.add_replica(&new).unwrap();
    let e = volume.add_replica(&new).unwrap_err();
    assert!(e.to_string().contains("member already"), "{e}");
    wait_for("the new one in the set", || {
        in_sync(&volume.status(), new.id)
    });
    check(&volume, 1, 0..200);
    // Removing one more would leave two of the least number of two; a third removal is refused.
    volume.remove_member(c.file.member[1].id).unwrap();
    let e = volume.remove_member(new.id).unwrap_err();
    assert!(e.to_string().contains("policy"), "{e}");
    // The next active node finds the members as they are now, wherever it looks for them.
    volume.hand_back().unwrap();
    drop(volume);
    let again = c.attach(c.reach());
    check(&again, 1, 0..200);
    assert!(record(&again).member(gone).is_none());
    close(c, again);
}

#[test]
fn a_witness_is_added_and_replaced_and_a_stranger_that_is_not_there_is_refused() {
    let mut c = Cluster::new(false);
    let volume = c.attach(c.reach());
    c.one_more("d");
    let witness = c.ready(&volume, (3, "d"), MemberKind::Witness);
    volume.add_witness(&witness).unwrap();
    write(&volume, 1, 0..50);
    let other = c.ready(&volume, (3, "d"), MemberKind::Witness);
    volume.replace_member(witness.id, &other).unwrap();
    wait_for("the witness replaced", || {
        record(&volume).member(witness.id).is_none()
    });
    assert!(record(&volume).member(other.id).is_some());
    write(&volume, 2, 0..50);
    check(&volume, 2, 0..50);
    close(c, volume);
}

/// The region was replaced on the same node, at the same address: the link expected the old one
/// for ever.
#[test]
fn a_region_replaced_where_the_old_one_was_is_accepted() {
    let mut c = Cluster::new(false);
    let volume = c.attach(c.reach());
    write(&volume, 1, 0..200);
    // The disk of c is gone; a new one is mounted in its place.
    let address = c.hosts[2].address();
    c.hosts.remove(2).close().unwrap();
    let old = c.file.member[2].id;
    std::fs::remove_dir_all(c.pool("c")).unwrap();
    Pool::create(&c.pool("c")).unwrap();
    let joining = Joining::new(MemberKind::Replica, record(&volume));
    make_ready(&c.pool("c"), &joining).unwrap();
    c.hosts
        .push(Host::start(listen(address), &[c.pool("c")]).unwrap());
    let new = NewMember {
        id: joining.member,
        node: "c".into(),
        addresses: vec![address],
    };
    volume.replace_member(old, &new).unwrap();
    wait_for("the new region in the set", || {
        in_sync(&volume.status(), new.id) && record(&volume).members.len() == 3
    });
    check(&volume, 1, 0..200);
    close(c, volume);
}

/// Two addresses of one node: the first one is dead at first.
#[test]
fn a_link_falls_back_and_returns_to_the_first_address_by_itself() {
    let c = Cluster::new(false);
    // Reserves a port where nobody listens yet.
    let first = std::net::TcpListener::bind(any()).unwrap();
    let front = first.local_addr().unwrap();
    drop(first);
    let mut reach = c.reach();
    reach[1].addresses.insert(0, front);
    let volume = c.attach(reach);
    write(&volume, 1, 0..20);
    let b = c.file.member[1].id;
    wait_for("b in sync by its second address", || {
        in_sync(&volume.status(), b)
    });
    // Now the replication network comes up: a forwarder stands for it.
    let seen = forwarder(front, c.hosts[1].address());
    wait_for("traffic on the first address", || {
        write(&volume, 2, 0..1);
        seen.load(std::sync::atomic::Ordering::Acquire) > 10_000
    });
    check(&volume, 1, 1..20);
    close(c, volume);
}

/// Passes bytes on and counts those that it passed towards `to`.
fn forwarder(at: SocketAddr, to: SocketAddr) -> Arc<std::sync::atomic::AtomicUsize> {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let listener = std::net::TcpListener::bind(at).unwrap();
    let count = passed.clone();
    let pump = |mut from: TcpStream, mut to: TcpStream, count: Option<Arc<_>>| {
        std::thread::spawn(move || {
            let mut buf = vec![0; 65536];
            while let Ok(n) = from.read(&mut buf) {
                if n == 0 || to.write_all(&buf[..n]).is_err() {
                    break;
                }
                let add = |c: &Arc<std::sync::atomic::AtomicUsize>| {
                    c.fetch_add(n, std::sync::atomic::Ordering::AcqRel)
                };
                count.as_ref().map(add);
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    };
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(to) else {
                continue;
            };
            pump(
                near.try_clone().unwrap(),
                far.try_clone().unwrap(),
                Some(count.clone()),
            );
            pump(far, near, None);
        }
    });
    passed
}

#[test]
fn what_was_made_ready_under_a_listed_identity_is_refused() {
    let c = Cluster::new(false);
    let volume = c.attach(c.reach());
    let joining = Joining {
        member: c.file.member[0].id,
        ..Joining::new(MemberKind::Replica, record(&volume))
    };
    assert!(make_ready(&c.pool("a"), &joining).is_err());
    assert!(make_ready(Path::new("/nonexistent"), &joining).is_err());
    close(c, volume);
}
