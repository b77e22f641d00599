//! Volumes to measure: three replica processes with the upstairs here, or all in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trivet_bench::{BenchError, Subject, meter};
use trivet_cluster::process::Downstairs;
use trivet_cluster::volume_file::{self, VolumeFile};
use trivet_cluster::{Attach, ClusterError, Embedded, KeyFiles, Options, Reach, attach, create};
use trivet_protocol::{BLOCK_BYTES, NullRecorder};
use trivet_replica::Volume;
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::upstairs::Limits;
use trivet_transport::{Role, Security};

/// A replica that lags is waited for at most this long before disk bytes are counted.
const QUIET: Duration = Duration::from_secs(10);
/// Copies on the one disk that is measured.
const REPLICAS: f64 = 3.0;

fn bench_error(e: ClusterError) -> BenchError {
    BenchError::Io {
        doing: "run the volume".into(),
        source: std::io::Error::other(e),
    }
}

fn disk_bytes(dir: &Path) -> Result<Option<f64>, BenchError> {
    // What the page cache still holds would be counted with whatever is measured next.
    sync(dir)?;
    Ok(meter::device_bytes(dir)?.map(|b| b as f64 / REPLICAS))
}

/// Flushes and waits until the replicas know that all of it is committed: only that can be moved
/// from their logs.
fn quiesce(volume: &ReplicatedVolume) -> Result<(), BenchError> {
    volume.flush_all()?;
    let began = Instant::now();
    while !volume.with(|u, _| u.commit_is_told()) && began.elapsed() < QUIET {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

fn sync(dir: &Path) -> Result<(), BenchError> {
    let synced = std::fs::File::open(dir).and_then(|d| Ok(rustix::fs::syncfs(d)?));
    synced.map_err(|source| BenchError::Io {
        doing: format!("sync the disk of {}", dir.display()),
        source,
    })
}

/// Three `trivet downstairs run` on loopback with pools of their own, the upstairs in here.
pub struct Processes {
    dir: PathBuf,
    volume: Arc<ReplicatedVolume>,
    tls: bool,
    replicas: Mutex<Vec<Downstairs>>,
}

impl Processes {
    /// Makes a volume of `blocks` blocks in `dir` and starts everything.
    ///
    /// # Errors
    /// A process does not start, or the volume cannot be activated.
    pub fn start(dir: &Path, blocks: u64, tls: bool) -> Result<Processes, ClusterError> {
        let file = dir.join(volume_file::FILE);
        let pools = ["a", "b", "c"].map(|n| (n.to_owned(), PathBuf::from(n)));
        let volume = VolumeFile::new(blocks * BLOCK_BYTES as u64, pools)?;
        let volume = create(&file, volume)?;
        let binary = std::env::current_exe().map_err(|e| ClusterError::Process {
            what: "this program".into(),
            why: e.to_string(),
        })?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (mut replicas, mut hosts) = (Vec::new(), Vec::new());
        let who = [("a", Role::Node), ("b", Role::Node), ("c", Role::Node)];
        let keys = match tls {
            true => KeyFiles::make(dir, &[&who[..], &[("bench", Role::Exporter)]].concat())?,
            false => Vec::new(),
        };
        let security = match keys.last() {
            Some(own) => own.security()?,
            None => Security::Plain,
        };
        for (i, place) in volume.member.iter().enumerate() {
            let pools = [VolumeFile::pool(place, &file)];
            let replica = Downstairs::start(&binary, any, &pools, keys.get(i))?;
            hosts.push(Reach {
                node: place.node.clone(),
                addresses: vec![replica.address()],
            });
            replicas.push(replica);
        }
        let volume = attach(Attach {
            volume: volume.volume,
            node: "bench".into(),
            hosts,
            security,
            local: None,
            recorder: Arc::new(NullRecorder),
            limits: Limits::default(),
            patience: Duration::from_secs(10),
            wait_for_lease: true,
            accept_data_loss: false,
        })?;
        Ok(Processes {
            dir: dir.to_path_buf(),
            volume,
            tls,
            replicas: Mutex::new(replicas),
        })
    }

    fn replicas(&self) -> std::sync::MutexGuard<'_, Vec<Downstairs>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// A region could not be closed.
    pub fn close(self) -> Result<(), ClusterError> {
        self.volume.hand_back().map_err(ClusterError::HandBack)?;
        let mut first = Ok(());
        for replica in self.replicas().drain(..) {
            first = first.and(replica.stop());
        }
        first
    }
}

impl Subject for Processes {
    fn describe(&self) -> String {
        let tls = if self.tls { ", TLS between them" } else { "" };
        format!("three replica processes on loopback, the upstairs in a fourth{tls}")
    }

    fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    fn disk_bytes(&self) -> Result<Option<f64>, BenchError> {
        disk_bytes(&self.dir)
    }

    fn settle(&self) -> Result<(), BenchError> {
        quiesce(&self.volume)?;
        for replica in self.replicas().iter_mut() {
            replica.settle().map_err(bench_error)?;
        }
        sync(&self.dir)
    }
}

/// Three replicas and the upstairs in this process.
pub struct InProcess {
    dir: PathBuf,
    embedded: Embedded,
    volume: Arc<ReplicatedVolume>,
}

impl InProcess {
    /// Makes a volume of `blocks` blocks in `dir` and opens it.
    ///
    /// # Errors
    /// It cannot be made or activated.
    pub fn start(dir: &Path, blocks: u64) -> Result<InProcess, ClusterError> {
        let bytes = blocks * BLOCK_BYTES as u64;
        let embedded = Embedded::open_or_create(dir, bytes, Options::default())?;
        Ok(InProcess {
            dir: dir.to_path_buf(),
            volume: embedded.volume(),
            embedded,
        })
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// A region could not be closed.
    pub fn close(self) -> Result<(), ClusterError> {
        drop(self.volume);
        self.embedded.close()
    }
}

impl Subject for InProcess {
    fn describe(&self) -> String {
        "three replicas and the upstairs in one process".into()
    }

    fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    fn disk_bytes(&self) -> Result<Option<f64>, BenchError> {
        disk_bytes(&self.dir)
    }

    fn settle(&self) -> Result<(), BenchError> {
        quiesce(&self.volume)?;
        self.embedded.settle();
        sync(&self.dir)
    }
}
