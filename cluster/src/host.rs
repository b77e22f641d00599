//! One host: opens the regions of its pools and serves them on one port.
//!
//! A region that cannot be opened is reported and left out; the others are served. A pool belongs
//! to one process at a time (a lock on `POOL/lock`, which the kernel lets go when the process
//! ends, however it ends). A crash leaves regions that open again by replaying their logs.
//! Bounded by the server's limits and one log replay at a time.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use trivet_downstairs::disk::RealDisk;
use trivet_downstairs::replica::Replica;
use trivet_downstairs::server::{Served, Server, boot_time};
use trivet_downstairs::{Store, region};
use trivet_protocol::{Recorder, VolumeId};

use crate::error::{ClusterError, Problem, Result};

/// Where a pool keeps its region of a volume.
pub fn region_dir(pool: &Path, volume: VolumeId) -> PathBuf {
    pool.join(volume.to_string())
}

/// A pool held by this process.
pub(crate) struct PoolLock {
    _file: File,
}

pub(crate) fn lock_pool(pool: &Path) -> Result<PoolLock> {
    let path = pool.join("lock");
    let file = File::create(&path).map_err(ClusterError::io("create", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(PoolLock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ClusterError::PoolBusy {
            path: pool.to_path_buf(),
        }),
        Err(e) => Err(ClusterError::io("lock", &path)(e.into())),
    }
}

/// The regions in a pool; none where there is no such directory.
pub(crate) fn regions(pool: &Path) -> Result<Vec<(PathBuf, VolumeId)>> {
    let listing = match std::fs::read_dir(pool) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ClusterError::io("list", pool)(e)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let dir = entry.map_err(ClusterError::io("list", pool))?.path();
        let name = dir.file_name().and_then(|n| n.to_str());
        // Named after its volume; whatever else lies in a pool is none of ours.
        let volume = name.and_then(|n| {
            let quoted = serde_json::Value::String(n.to_owned());
            serde_json::from_value::<VolumeId>(quoted).ok()
        });
        if let Some(volume) = volume
            && dir.join(region::FILE).exists()
        {
            found.push((dir, volume));
        }
    }
    found.sort();
    Ok(found)
}

/// See the module's head. Dropping it without [`Host::close`] is like a crash that loses nothing.
pub struct Host {
    server: Server,
    served: Vec<Arc<Served>>,
    problems: Vec<Problem>,
    _locks: Vec<PoolLock>,
}

impl Host {
    /// Opens every region in `pools` and serves them on `listen` (port 0: any).
    ///
    /// # Errors
    /// A pool is missing or in use, or the address cannot be listened on.
    pub fn start(
        listen: SocketAddr,
        pools: &[PathBuf],
        recorder: &Arc<dyn Recorder>,
    ) -> Result<Host> {
        let (mut locks, mut served, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for pool in pools {
            locks.push(lock_pool(pool)?);
            for (dir, volume) in regions(pool)? {
                match open(&dir, recorder) {
                    Ok(region) => served.push(region),
                    Err(why) => {
                        tracing::error!(%volume, dir = %dir.display(), why, "region left out");
                        problems.push(Problem::Unusable { dir, why });
                    }
                }
            }
        }
        let server = Server::start(listen).map_err(|source| ClusterError::Listen {
            address: listen,
            source,
        })?;
        for region in &served {
            server.add(region.clone()).map_err(ClusterError::Thread)?;
        }
        Ok(Host {
            server,
            served,
            problems,
            _locks: locks,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What it serves.
    pub fn served(&self) -> &[Arc<Served>] {
        &self.served
    }

    /// Regions that are there and could not be opened.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Waits until every log is moved to the extent files, as far as it is committed.
    pub fn settle(&self) {
        self.served.iter().for_each(|s| s.settle());
    }

    /// Ends all connections and closes the regions in order.
    ///
    /// # Errors
    /// A disk failed: the first one; all regions are closed as far as they can be.
    pub fn close(self) -> Result<()> {
        drop(self.server);
        let mut first = Ok(());
        for region in &self.served {
            let path = PathBuf::from(region.volume().to_string());
            let closed = region.close().map_err(ClusterError::region(&path));
            first = first.and(closed);
        }
        first
    }
}

fn open(dir: &Path, recorder: &Arc<dyn Recorder>) -> Result<Arc<Served>, String> {
    let disk = Arc::new(RealDisk::new(dir, recorder.clone()));
    let text = |e: trivet_downstairs::StoreError| e.to_string();
    let (store, report) = Store::open(disk, None, recorder.clone()).map_err(text)?;
    tracing::info!(
        dir = %dir.display(),
        opens = report.opens,
        records = report.records,
        log_bytes = report.bytes,
        rewritten = report.rewritten,
        tail = ?report.tail,
        "region opened"
    );
    let replica = Replica::region(store, boot_time(), recorder.clone()).map_err(text)?;
    Ok(Served::new(replica, recorder.clone()))
}
