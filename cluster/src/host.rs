//! One host: opens the regions and witnesses of its pools and serves them on one port.
//!
//! One that cannot be opened is reported and left out; the others are served. A region or witness
//! belongs to one process at a time (a lock on its directory, which the kernel lets go when the
//! process ends, however it ends). One that is made ready later is served after [`Host::rescan`]. A
//! crash leaves regions that open again by replaying their logs. Bounded by the server's limits and
//! one log replay at a time.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use trivet_downstairs::pool::{Found, FoundWitness, Pool};
use trivet_downstairs::replica::Replica;
use trivet_downstairs::server::{Listen, Served, Server, boot_time, chosen};
use trivet_downstairs::{Store, Witness};
use trivet_protocol::{MemberId, Record, Recorder, VolumeId};

use crate::create::make_first_member;
use crate::error::{ClusterError, Problem, Result};
use crate::join::{Joining, make_ready};

/// See the module's head. Dropping it without [`Host::close`] is like a crash that loses nothing.
pub struct Host {
    server: Server,
    pools: Vec<PathBuf>,
    served: RwLock<Vec<Arc<Served>>>,
    problems: Vec<Problem>,
    recorder: Arc<dyn Recorder>,
}

impl Host {
    /// Opens every region and witness in `pools` and serves them as `listen` says.
    ///
    /// # Errors
    /// A pool is not there (is its disk mounted?), or the address cannot be listened on.
    pub fn start(listen: Listen, pools: &[PathBuf]) -> Result<Host> {
        let recorder = listen.recorder.clone();
        for pool in pools {
            let pool = Pool::open(pool).map_err(ClusterError::store)?;
            if let Err(error) = pool.clear_discarded() {
                // Space lost till the next start, and nothing else.
                tracing::warn!(%error, "what was thrown away is still there");
            }
        }
        let (served, problems) = open_all(pools, &[], &recorder)?;
        let server = Server::start(listen)?;
        for member in &served {
            server.add(member.clone()).map_err(ClusterError::Thread)?;
        }
        Ok(Host {
            server,
            pools: pools.to_vec(),
            served: RwLock::new(served),
            problems,
            recorder: recorder.clone(),
        })
    }

    /// Opens and serves what was made in the pools since. Returns how many, and what could not be
    /// opened.
    ///
    /// # Errors
    /// A pool is not there any more, or a thread cannot be started.
    pub fn rescan(&self) -> Result<(usize, Vec<Problem>)> {
        self.scan(&self.pools)
    }

    fn scan(&self, pools: &[PathBuf]) -> Result<(usize, Vec<Problem>)> {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<MemberId> = served.iter().map(|s| s.member()).collect();
        let (new, problems) = open_all(pools, &known, &self.recorder)?;
        let count = new.len();
        for member in new {
            self.server
                .add(member.clone())
                .map_err(ClusterError::Thread)?;
            served.push(member);
        }
        Ok((count, problems))
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

    /// The member of a volume that it serves, if it has one; of several the one that counts today.
    pub fn member_of(&self, volume: VolumeId) -> Option<Arc<Served>> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let of_volume: Vec<_> = served
            .iter()
            .filter(|s| s.volume() == volume)
            .cloned()
            .collect();
        chosen(&of_volume, None)
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
        self.serve_made(pool, member)
    }

    /// Makes a member that is to come into a volume that exists ready in the pool at `pool`, and
    /// serves it. If it is there already, that is as good.
    ///
    /// # Errors
    /// As [`make_ready`].
    pub fn make_ready(&self, pool: &Path, joining: &Joining) -> Result<()> {
        make_ready(pool, joining)?;
        self.serve_made(pool, joining.member)
    }

    /// Throws a member away, for good: it is served no longer and its directory goes. True if it
    /// was here. Whether nobody needs it any more is the caller's to know.
    ///
    /// # Errors
    /// A pool is not there, or its disk fails.
    pub fn discard(&self, volume: VolumeId, member: MemberId) -> Result<bool> {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let here = served.iter().position(|s| s.member() == member);
        if let Some(at) = here {
            let gone = served.remove(at);
            self.server.remove(&gone);
            if let Err(error) = gone.close() {
                tracing::info!(%volume, %member, %error, "a region that goes was not closed");
            }
        }
        drop(served);
        let mut found = false;
        for pool in &self.pools {
            let pool = Pool::open(pool).map_err(ClusterError::store)?;
            found |= pool.discard(volume, member).map_err(ClusterError::store)?;
        }
        Ok(found)
    }

    fn serve_made(&self, pool: &Path, member: MemberId) -> Result<()> {
        let (_, problems) = self.scan(std::slice::from_ref(&pool.to_path_buf()))?;
        if self.served().iter().any(|s| s.member() == member) {
            return Ok(());
        }
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        Err(ClusterError::VolumeFile {
            path: pool.to_path_buf(),
            why: format!(
                "the new member {member} cannot be served: {}",
                told.join("; ")
            ),
        })
    }

    /// What was there at the start and could not be opened.
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
        let served = self.served();
        drop(self.server);
        let mut first = Ok(());
        for region in &served {
            let path = PathBuf::from(region.volume().to_string());
            let closed = region.close().map_err(ClusterError::region(&path));
            first = first.and(closed);
        }
        first
    }
}

/// Everything in these pools but what is `known`.
fn open_all(
    pools: &[PathBuf],
    known: &[MemberId],
    recorder: &Arc<dyn Recorder>,
) -> Result<(Vec<Arc<Served>>, Vec<Problem>)> {
    let (mut served, mut problems) = (Vec::new(), Vec::new());
    let mut note = |dir: PathBuf, opened: trivet_downstairs::Result<Arc<Served>>| match opened {
        Ok(member) => served.push(member),
        Err(e) => {
            let why = e.to_string();
            tracing::error!(dir = %dir.display(), why, "left out");
            problems.push(Problem::Unusable { dir, why });
        }
    };
    for dir in pools {
        let pool = Pool::open(dir).map_err(ClusterError::store)?;
        for found in pool.regions().map_err(ClusterError::store)? {
            if !matches!(&found.region, Ok(r) if known.contains(&r.member)) {
                note(found.dir.clone(), open(&pool, found, recorder));
            }
        }
        for found in pool.witnesses().map_err(ClusterError::store)? {
            if !matches!(&found.witness, Ok(w) if known.contains(&w.member)) {
                note(found.dir.clone(), open_witness(&pool, found, recorder));
            }
        }
    }
    Ok((served, problems))
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

fn open_witness(
    pool: &Pool,
    found: FoundWitness,
    recorder: &Arc<dyn Recorder>,
) -> trivet_downstairs::Result<Arc<Served>> {
    let who = found.witness?;
    let disk = pool.region(who.volume, who.member, recorder.clone())?;
    let (witness, state) = Witness::open(&*disk, Some((who.volume, who.member)))?;
    tracing::info!(dir = %found.dir.display(), opens = witness.opens(), "witness opened");
    // The directory stays locked as long as the witness is served.
    let witness = witness.holding(disk);
    let replica = Replica::witness(witness, state, boot_time(), recorder.clone());
    Ok(Served::new(replica, recorder.clone()))
}
