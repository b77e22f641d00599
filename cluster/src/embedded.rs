//! Three replicas and the active upstairs in one process, for evaluation and tests.
//!
//! Three hosts on 127.0.0.1 with ports of their own, one pool each (`DIR/a`, `DIR/b`, `DIR/c`),
//! and the upstairs connected to them as to any other. It protects against a bad sector or a
//! damaged directory, and against nothing else: all three share a machine.
//!
//! A crash leaves three regions and the promise of their last reign: the next opening waits until
//! that has run out (at most the lease and its margin, 2.05 s by default) and goes on with
//! everything that was flushed. [`Embedded::close`] hands the promise back, so that the next
//! opening need not wait.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trivet_downstairs::pool::Pool;
use trivet_downstairs::server::{Listen, Served};
use trivet_protocol::{MemberKind, NullRecorder, Recorder};
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::upstairs::{Limits, Status};
use trivet_transport::Security;

use crate::attach::{Attach, Reach, attach};
use crate::create::create;
use crate::error::{ClusterError, Problem, Result};
use crate::host::Host;
use crate::volume_file::{FILE, VolumeFile};

/// Names of the three, also of their pools' directories.
const NODES: [&str; 3] = ["a", "b", "c"];

/// How to open.
pub struct Options {
    /// Takes figures of all parts.
    pub recorder: Arc<dyn Recorder>,
    /// Bounds of the upstairs.
    pub limits: Limits,
    /// How long the activation may take, the wait for an old lease included.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            recorder: Arc::new(NullRecorder),
            limits: Limits::default(),
            patience: Duration::from_secs(10),
        }
    }
}

/// See the module's head.
pub struct Embedded {
    volume: Arc<ReplicatedVolume>,
    hosts: Vec<Host>,
    problems: Vec<Problem>,
}

impl Embedded {
    /// Opens the volume in `dir` and becomes its active node; makes one of `bytes` (rounded up to
    /// whole blocks) if there is none. The size of an existing one stays what it is.
    ///
    /// A replica whose region is gone is not made anew: the volume goes on with the other two and
    /// [`Embedded::problems`] says what to do.
    ///
    /// # Errors
    /// Fewer than two replicas are usable, another process uses the directory, or a disk fails.
    pub fn open_or_create(dir: &Path, bytes: u64, options: Options) -> Result<Embedded> {
        let file = dir.join(FILE);
        if VolumeFile::load(&file)?.is_none() {
            std::fs::create_dir_all(dir).map_err(ClusterError::io("create", dir))?;
            let pools = NODES.map(|n| (n.to_owned(), PathBuf::from(n)));
            create(&file, VolumeFile::new(bytes, pools)?)?;
        }
        Self::open(dir, options)
    }

    /// Opens the volume in `dir`, which must exist.
    ///
    /// # Errors
    /// As [`Embedded::open_or_create`].
    pub fn open(dir: &Path, options: Options) -> Result<Embedded> {
        let path = dir.join(FILE);
        let file = VolumeFile::load(&path)?.ok_or_else(|| ClusterError::VolumeFile {
            path: path.clone(),
            why: "there is no such file".into(),
        })?;
        let (mut hosts, mut problems, mut reach) = (Vec::new(), Vec::new(), Vec::new());
        let mut local = None;
        for place in &file.member {
            let dir = VolumeFile::pool(place, &path);
            let pool = match Pool::open(&dir) {
                Ok(pool) => pool,
                Err(e) => {
                    let why = e.to_string();
                    problems.push(Problem::Unusable { dir, why });
                    continue;
                }
            };
            let region = pool.region_dir(file.volume, place.id);
            let file_of_it = match place.kind {
                MemberKind::Replica => trivet_downstairs::region::FILE,
                MemberKind::Witness => trivet_downstairs::witness::FILE,
            };
            if !region.join(file_of_it).exists() {
                problems.push(Problem::Lost {
                    member: place.id,
                    node: place.node.clone(),
                    dir: region,
                });
                continue;
            }
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let host = Host::start(Listen::plain(any, options.recorder.clone()), &[dir])?;
            let served = host.served();
            problems.extend_from_slice(host.problems());
            let ours = |s: &&Arc<Served>| s.volume() == file.volume && s.member() == place.id;
            if let Some(served) = served.iter().find(ours) {
                if local.is_none() && place.kind == MemberKind::Replica {
                    local = Some((reach.len(), served.clone()));
                }
                reach.push(Reach {
                    node: place.node.clone(),
                    addresses: vec![host.address()],
                });
            }
            hosts.push(host);
        }
        for problem in &problems {
            tracing::error!(volume = %file.volume, "{problem}");
        }
        if reach.len() <= file.member.len() / 2 {
            let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
            return Err(ClusterError::TooFew {
                volume: file.volume,
                usable: reach.len(),
                all: file.member.len(),
                problems: told.join("; "),
            });
        }
        let volume = attach(Attach {
            volume: file.volume,
            node: "embedded".into(),
            hosts: reach,
            security: Security::Plain,
            local,
            recorder: options.recorder,
            limits: options.limits,
            patience: options.patience,
            wait_for_lease: true,
            accept_data_loss: false,
        })?;
        Ok(Embedded {
            volume,
            hosts,
            problems,
        })
    }

    /// The volume. It works until [`Embedded::close`]; a copy that is kept longer answers with
    /// errors.
    pub fn volume(&self) -> Arc<ReplicatedVolume> {
        self.volume.clone()
    }

    /// How the volume is.
    pub fn status(&self) -> Status {
        self.volume.status()
    }

    /// Replicas that cannot be used, and what to do about each.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Waits until every log is moved to the extent files, as far as it is committed.
    pub fn settle(&self) {
        self.hosts.iter().for_each(Host::settle);
    }

    /// Flushes, hands the volume back and closes the regions: the next opening is immediate.
    ///
    /// # Errors
    /// The last flush failed, or a disk did; everything is closed as far as it can be.
    pub fn close(self) -> Result<()> {
        let mut first = self.volume.hand_back().map_err(ClusterError::HandBack);
        drop(self.volume);
        for host in self.hosts {
            first = first.and(host.close());
        }
        first
    }
}
