//! Volumes to measure: three replica processes with the upstairs here, or all in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trivet_bench::{BenchError, Subject, meter};
use trivet_cluster::process::Downstairs;
use trivet_cluster::volume_file::{self, VolumeFile};
use trivet_cluster::{Attach, ClusterError, Embedded, KeyFiles, Options, Reach, attach, create};
use trivet_protocol::{BLOCK_BYTES, NullRecorder, VolumeId};
use trivet_replica::Volume;
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::upstairs::Limits;
use trivet_transport::{Role, Security};

/// A replica that lags is waited for at most this long before disk bytes are counted.
const QUIET: Duration = Duration::from_secs(10);
/// Copies on the one disk that is measured.
const REPLICAS: f64 = 3.0;

pub(super) fn bench_error(e: ClusterError) -> BenchError {
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

/// Three `trivet downstairs run` on loopback, a pool each.
pub struct Replicas {
    volume: VolumeId,
    security: Security,
    seats: Vec<Seat>,
}

/// Where a replica runs, and whether it does now.
struct Seat {
    node: String,
    pool: [PathBuf; 1],
    keys: Option<KeyFiles>,
    address: SocketAddr,
    process: Option<Downstairs>,
}

impl Seat {
    fn start(&mut self) -> Result<(), ClusterError> {
        let binary = std::env::current_exe().map_err(|e| ClusterError::Process {
            what: "this program".into(),
            why: e.to_string(),
        })?;
        let started = Downstairs::start(&binary, self.address, &self.pool, self.keys.as_ref())?;
        self.address = started.address();
        self.process = Some(started);
        Ok(())
    }
}

impl Replicas {
    /// Makes a volume of `blocks` blocks in `dir` and starts its replicas.
    ///
    /// # Errors
    /// A region cannot be made, or a process does not start.
    pub fn start(dir: &Path, blocks: u64, tls: bool) -> Result<Replicas, ClusterError> {
        let file = dir.join(volume_file::FILE);
        let pools = ["a", "b", "c"].map(|n| (n.to_owned(), PathBuf::from(n)));
        let volume = VolumeFile::new(blocks * BLOCK_BYTES as u64, pools)?;
        let volume = create(&file, volume)?;
        let who = [("a", Role::Node), ("b", Role::Node), ("c", Role::Node)];
        let mut keys = match tls {
            true => KeyFiles::make(dir, &[&who[..], &[("bench", Role::Exporter)]].concat())?,
            false => Vec::new(),
        };
        let security = match keys.pop() {
            Some(own) => own.security()?,
            None => Security::Plain,
        };
        let mut keys = keys.into_iter();
        let mut seats = Vec::new();
        for place in &volume.member {
            let mut seat = Seat {
                node: place.node.clone(),
                pool: [VolumeFile::pool(place, &file)],
                keys: keys.next(),
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                process: None,
            };
            seat.start()?;
            seats.push(seat);
        }
        Ok(Replicas {
            volume: volume.volume,
            security,
            seats,
        })
    }

    /// An upstairs in this process, activated; another's lease is waited for.
    ///
    /// # Errors
    /// The volume cannot be activated within 10 s.
    pub fn attach(&self) -> Result<Arc<ReplicatedVolume>, ClusterError> {
        let reach = |seat: &Seat| Reach {
            node: seat.node.clone(),
            addresses: vec![seat.address],
        };
        attach(Attach {
            volume: self.volume,
            node: "bench".into(),
            hosts: self.seats.iter().map(reach).collect(),
            security: self.security.clone(),
            local: None,
            recorder: Arc::new(NullRecorder),
            limits: Limits::default(),
            patience: Duration::from_secs(10),
            wait_for_lease: true,
            accept_data_loss: false,
        })
    }

    /// The processes that run, in the order of the nodes.
    pub fn running(&mut self) -> impl Iterator<Item = &mut Downstairs> {
        self.seats.iter_mut().filter_map(|s| s.process.as_mut())
    }

    /// One of the three, if it runs.
    pub fn replica(&self, i: usize) -> Option<&Downstairs> {
        self.seats.get(i)?.process.as_ref()
    }

    /// Kills one of the three, as a crash would.
    pub fn kill(&mut self, i: usize) {
        if let Some(seat) = self.seats.get_mut(i) {
            // Dropping it kills it and waits until it is gone.
            seat.process = None;
        }
    }

    /// Starts one of the three again, at its address, and waits until it serves.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, i: usize) -> Result<(), ClusterError> {
        match self.seats.get_mut(i) {
            Some(seat) => seat.start(),
            None => Ok(()),
        }
    }

    /// Ends them in order.
    ///
    /// # Errors
    /// A region could not be closed.
    pub fn stop(self) -> Result<(), ClusterError> {
        let mut first = Ok(());
        for process in self.seats.into_iter().filter_map(|s| s.process) {
            first = first.and(process.stop());
        }
        first
    }
}

/// [`Replicas`] and the upstairs in here.
pub struct Processes {
    dir: PathBuf,
    volume: Arc<ReplicatedVolume>,
    tls: bool,
    replicas: Mutex<Replicas>,
}

impl Processes {
    /// Makes a volume of `blocks` blocks in `dir` and starts everything.
    ///
    /// # Errors
    /// A process does not start, or the volume cannot be activated.
    pub fn start(dir: &Path, blocks: u64, tls: bool) -> Result<Processes, ClusterError> {
        let replicas = Replicas::start(dir, blocks, tls)?;
        Ok(Processes {
            dir: dir.to_path_buf(),
            volume: replicas.attach()?,
            tls,
            replicas: Mutex::new(replicas),
        })
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// A region could not be closed.
    pub fn close(self) -> Result<(), ClusterError> {
        self.volume.hand_back().map_err(ClusterError::HandBack)?;
        let replicas = self.replicas.into_inner();
        replicas.unwrap_or_else(PoisonError::into_inner).stop()
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
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        for replica in replicas.running() {
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
