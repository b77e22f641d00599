//! One host: opens the regions of its pools and serves them on one port.
//!
//! A region that cannot be opened is reported and left out; the others are served. A region
//! belongs to one process at a time (the pool's lock, which the kernel lets go when the process
//! ends, however it ends). A crash leaves regions that open again by replaying their logs.
//! Bounded by the server's limits and one log replay at a time.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use trivet_downstairs::disk::RealDisk;
use trivet_downstairs::pool::{Found, Pool};
use trivet_downstairs::replica::Replica;
use trivet_downstairs::server::{Listen, Served, Server, boot_time};
use trivet_downstairs::{Region, Store};
use trivet_protocol::{MemberId, Record, Recorder, VolumeId};

use crate::create::make_first_member;
use crate::error::{ClusterError, Problem, Result};

/// See the module's head. Dropping it without [`Host::close`] is like a crash that loses nothing.
pub struct Host {
    server: Server,
    served: RwLock<Vec<Arc<Served>>>,
    recorder: Arc<dyn Recorder>,
    problems: Vec<Problem>,
}

impl Host {
    /// Opens every region in `pools` and serves them as `listen` says.
    ///
    /// # Errors
    /// A pool is not there (is its disk mounted?), or the address cannot be listened on.
    pub fn start(listen: Listen, pools: &[PathBuf]) -> Result<Host> {
        let recorder = &listen.recorder.clone();
        let (mut served, mut problems) = (Vec::new(), Vec::new());
        for dir in pools {
            let pool = Pool::open(dir).map_err(ClusterError::store)?;
            for found in pool.regions().map_err(ClusterError::store)? {
                let dir = found.dir.clone();
                match open(&pool, found, recorder) {
                    Ok(region) => served.push(region),
                    Err(e) => {
                        let why = e.to_string();
                        tracing::error!(dir = %dir.display(), why, "region left out");
                        problems.push(Problem::Unusable { dir, why });
                    }
                }
            }
        }
        let server = Server::start(listen)?;
        for region in &served {
            server.add(region.clone()).map_err(ClusterError::Thread)?;
        }
        Ok(Host {
            server,
            served: RwLock::new(served),
            recorder: recorder.clone(),
            problems,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What it serves.
    pub fn served(&self) -> Vec<Arc<Served>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.clone()
    }

    /// The member of a volume that it serves, if it has one.
    pub fn member_of(&self, volume: VolumeId) -> Option<Arc<Served>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.iter().find(|s| s.volume() == volume).cloned()
    }

    /// Makes a member of a new volume, from its first record, in the pool at `pool`, and serves
    /// it. If it is there already, that is as good: a creation that was cut short is finished so.
    ///
    /// # Errors
    /// Another member of that volume is here, the record does not list this one or is not a first
    /// one, or the disk fails.
    pub fn make_member(&self, pool: &Path, record: &Record, member: MemberId) -> Result<()> {
        let volume = record.volume;
        if let Some(here) = self.member_of(volume) {
            return match here.member() == member {
                true => Ok(()),
                false => Err(ClusterError::OtherMember {
                    volume,
                    member: here.member(),
                }),
            };
        }
        make_first_member(pool, record, member)?;
        let pool = Pool::open(pool).map_err(ClusterError::store)?;
        let dir = pool.region_dir(volume, member);
        let region = Region::load(&RealDisk::read_only(&dir));
        let made = open(&pool, Found { dir, region }, &self.recorder)?;
        self.server
            .add(made.clone())
            .map_err(ClusterError::Thread)?;
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        served.push(made);
        Ok(())
    }

    /// Regions that are there and could not be opened.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Waits until every log is moved to the extent files, as far as it is committed.
    pub fn settle(&self) {
        self.served().iter().for_each(|s| s.settle());
    }

    /// Ends all connections and closes the regions in order.
    ///
    /// # Errors
    /// A disk failed: the first one; all regions are closed as far as they can be.
    pub fn close(self) -> Result<()> {
        drop(self.server);
        let mut first = Ok(());
        for region in &self
            .served
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            let path = PathBuf::from(region.volume().to_string());
            let closed = region.close().map_err(ClusterError::region(&path));
            first = first.and(closed);
        }
        first
    }
}

fn open(
    pool: &Pool,
    found: Found,
    recorder: &Arc<dyn Recorder>,
) -> trivet_downstairs::Result<Arc<Served>> {
    let region = found.region?;
    let disk = pool.region(region.volume, region.member, recorder.clone())?;
    let expected = Some((region.volume, region.member));
    let (store, report) = Store::open(disk, expected, recorder.clone())?;
    tracing::info!(
        dir = %found.dir.display(),
        opens = report.opens,
        records = report.records,
        log_bytes = report.bytes,
        rewritten = report.rewritten,
        tail = ?report.tail,
        "region opened"
    );
    let replica = Replica::region(store, boot_time(), recorder.clone())?;
    Ok(Served::new(replica, recorder.clone()))
}
