//! What runs on the active node: upstairs, file system, NFS export, FUSE mount, service address.
//!
//! Start: claim, recover, listen, then the address. End in order: the reverse, the last thing
//! flushed and the lease handed back. End because the volume was lost: the address first, at
//! once, then the rest, without a word to anybody (invariant 2).
//!
//! A crash leaves the members' promise, which runs out, and the network, which the next start
//! puts right.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use trivet_fs::fuse::{FuseOptions, Mounted, Without, mount};
use trivet_fs::{Fs, MkfsOptions, Settings, mkfs};
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::{Opened, PoolLimits};
use trivet_nfs::{Discovery, NfsConfig, NfsServer, Watch};
use trivet_protocol::Recorder;
use trivet_replica::Volume;
use trivet_replica::driver::ReplicatedVolume;
use trivet_replica::volume::{BLOCK_BYTES, Block};

use crate::config::VolumeConfig;
use crate::error::{NodeError, Result};
use crate::guard::Guard;
use crate::messages::{ActiveMember, ActiveReport, MountWithout, NfsCounts};
use crate::net::ServiceNet;
use crate::timeline::Timeline;

/// See the module's head.
pub struct Stack {
    // In the order in which they end.
    net: Option<ServiceNet>,
    nfs: Option<NfsServer>,
    mounted: Option<Mounted>,
    fs: Arc<Fs>,
    volume: Arc<ReplicatedVolume>,
}

/// What a stack has from its node.
pub struct Around {
    /// What outlives the process.
    pub guard: Arc<Guard>,
    /// Takes figures.
    pub recorder: Arc<dyn Recorder>,
}

/// Mounts the file system of a volume; makes one on a volume that holds nothing.
///
/// # Errors
/// The volume cannot be read, or holds something else.
pub fn open_fs(volume: &Arc<dyn Volume>) -> Result<Arc<Fs>> {
    let mut first = [0; BLOCK_BYTES];
    volume
        .read(Block(0), &mut first)
        .map_err(trivet_fs::FsError::from)?;
    if first.iter().all(|b| *b == 0) {
        mkfs(volume.as_ref(), &MkfsOptions::default())?;
    }
    Ok(Fs::mount(Arc::clone(volume), Settings::default())?)
}

fn nfs_counts(nfs: &NfsServer) -> NfsCounts {
    let c = nfs.pool().counters();
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    NfsCounts {
        calls: get(&c.messages),
        refused: get(&c.refused),
        ended_bad: get(&c.ended_bad),
        stalls: get(&c.stalls),
        silent: nfs.silent(),
    }
}

impl Stack {
    /// Puts everything on a volume that is active here. `clients` were connected to the former
    /// active node.
    ///
    /// # Errors
    /// What does not start. All is undone then, and the volume handed back.
    pub fn start(
        config: &VolumeConfig,
        volume: Arc<ReplicatedVolume>,
        clients: Vec<SocketAddr>,
        around: Around,
        timeline: &mut Timeline,
    ) -> Result<Stack> {
        let shared: Arc<dyn Volume> = volume.clone();
        let fs = match open_fs(&shared) {
            Ok(fs) => fs,
            Err(e) => {
                around.guard.ended(&config.name);
                // Whoever tries next need not wait for a lease.
                let _ = volume.hand_back();
                return Err(e);
            }
        };
        timeline.mark("file system open");
        let mut stack = Stack {
            net: None,
            nfs: None,
            mounted: None,
            fs,
            volume,
        };
        let guard = Arc::clone(&around.guard);
        match stack.open_doors(config, clients, around, timeline) {
            Ok(()) => Ok(stack),
            Err(e) => {
                let (_, ended) = stack.end(|| guard.ended(&config.name));
                if let Err(error) = ended {
                    tracing::warn!(%error, "undoing a promotion");
                }
                Err(e)
            }
        }
    }

    fn open_doors(
        &mut self,
        config: &VolumeConfig,
        clients: Vec<SocketAddr>,
        around: Around,
        timeline: &mut Timeline,
    ) -> Result<()> {
        if let Some(dir) = &config.mount {
            // Fails where a dead mount is in the way, which `mount` then clears.
            let _ = std::fs::create_dir_all(dir);
            let options = FuseOptions {
                name: config.name.clone(),
                ..FuseOptions::default()
            };
            self.show_in(dir, &options)?;
            timeline.mark("mounted");
        }
        if !config.exports.is_empty() {
            let net = config
                .service
                .as_ref()
                .map(|s| ServiceNet::new(&config.name, config.id, s));
            self.serve(config, net.as_ref(), around)?;
            timeline.mark("NFS listens");
            if let Some(net) = net {
                // Kept first: what has come half way goes again.
                self.net = Some(net.clone());
                net.show(clients, config.port)?;
                timeline.mark("address up");
            }
        }
        Ok(())
    }

    fn show_in(&mut self, dir: &Path, options: &FuseOptions) -> Result<()> {
        // One that somebody has unmounted goes first: its end would end the new one's notices.
        drop(self.mounted.take());
        let mounted = mount(Arc::clone(&self.fs) as _, dir, options);
        self.mounted = Some(mounted.map_err(|source| NodeError::Mount {
            path: dir.to_owned(),
            source,
        })?);
        Ok(())
    }

    /// Mounts it, while it runs, on a directory that must be there.
    ///
    /// # Errors
    /// It is mounted already, the directory cannot be used, or the kernel refuses.
    pub fn mount(&mut self, volume: &str, dir: &Path, without: &[MountWithout]) -> Result<()> {
        // Two mounts would be two doors with one number: the file system tells one of them only
        // of what came through the other.
        if let Some(here) = self.mounted() {
            return Err(NodeError::Refused {
                volume: volume.to_owned(),
                why: format!(
                    "it is mounted on {} here already; unmount it there, or use a bind mount",
                    here.display()
                ),
            });
        }
        let options = FuseOptions {
            name: volume.to_owned(),
            without: without.iter().copied().map(Without::from).collect(),
            ..FuseOptions::default()
        };
        self.show_in(dir, &options)
    }

    /// The directory on which it is mounted, for as long as nobody has unmounted it.
    pub fn mounted(&self) -> Option<&Path> {
        let mounted = self.mounted.as_ref().filter(|m| m.is_alive());
        mounted.map(Mounted::path)
    }

    fn serve(
        &mut self,
        config: &VolumeConfig,
        net: Option<&ServiceNet>,
        around: Around,
    ) -> Result<()> {
        let Around { guard, recorder } = around;
        let ip = net.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), ServiceNet::address);
        let nfs = NfsConfig {
            listen: SocketAddr::new(ip, config.port),
            discovery: Discovery::Auto,
            exports: config.exports.iter().map(ExportSpec::from).collect(),
            limits: PoolLimits::default(),
            drop_locks_after: None,
        };
        let (fs, volume) = (Arc::clone(&self.fs), Arc::clone(&self.volume));
        let name = config.name.clone();
        let opened: Opened = Arc::new(move |socket| guard.connection(&name, socket));
        let watch = Watch {
            opened: Some(opened),
            timer: Some(Arc::new(move |stage, nanos| recorder.time(stage, nanos))),
        };
        let start = move || {
            let identity = Arc::new(move || volume.info());
            NfsServer::start_watched(nfs, fs as _, identity, watch)
        };
        // The server's threads and sockets belong to the namespace that they are started in.
        let started = match net {
            Some(net) => net.enter(start)?,
            None => start(),
        };
        self.nfs = Some(started?);
        Ok(())
    }

    /// Why the volume is no longer held, if it is not.
    pub fn lost(&self) -> Option<String> {
        self.volume.status().stopped
    }

    /// The clients of the export.
    pub fn clients(&self) -> Vec<SocketAddr> {
        let nfs = self.nfs.as_ref();
        nfs.map_or(Vec::new(), |n| {
            n.pool().connections().into_iter().map(|(c, _)| c).collect()
        })
    }

    /// The volume and its file system, for work that takes longer than a look. They outlive the
    /// reign, and then refuse everything.
    pub fn handles(&self) -> (Arc<ReplicatedVolume>, Arc<Fs>) {
        (Arc::clone(&self.volume), Arc::clone(&self.fs))
    }

    /// The running export.
    pub fn nfs(&self) -> Option<&NfsServer> {
        self.nfs.as_ref()
    }

    /// How the volume is.
    pub fn report(&self) -> ActiveReport {
        let status = self.volume.status();
        let spoken = self.volume.spoken();
        let info = self.volume.info();
        let members = status.members.into_iter().map(|m| ActiveMember {
            protocol: spoken.get(&m.id).copied().unwrap_or_default(),
            id: m.id,
            node: m.node,
            kind: m.kind,
            up: m.up,
            in_sync: m.in_sync,
            trouble: m.trouble,
            resync_ms: m.resync.as_ref().map_or(0, |r| r.elapsed_ms),
            resync: m.resync.map(|r| {
                let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
                (bytes(r.compared_blocks), bytes(r.listed_blocks))
            }),
        });
        ActiveReport {
            generation: status.generation,
            lease_left_ms: status.lease_left.0,
            failures_tolerated: status.failures_tolerated,
            diskless: status.diskless,
            bytes: info.blocks * BLOCK_BYTES as u64,
            free: self.volume.space().free_bytes,
            connections: self.clients().len(),
            nfs: self.nfs.as_ref().map(nfs_counts),
            replacing: status.replacing,
            warnings: status.warnings,
            scrub: status.scrub.map(Into::into),
            members: members.collect(),
        }
    }

    /// Ends it in order: what was answered is durable, the lease is handed back. Returns the
    /// clients that were connected. `gone` is called when its address is not here any more, and not
    /// at all if that cannot be brought about.
    pub fn end(mut self, gone: impl FnOnce()) -> (Vec<SocketAddr>, Result<()>) {
        let mut timeline = Timeline::begin();
        let hidden = self.close_doors();
        if hidden.is_ok() {
            gone();
        }
        timeline.mark("address gone");
        let clients = self.clients();
        self.fs.hurry();
        drop(self.nfs.take());
        self.unmount();
        timeline.mark("doors closed");
        let closed = self.fs.close();
        timeline.mark("flushed");
        // While the address may still be here nobody else may serve: the lease then runs out.
        let handed_back = match &hidden {
            Ok(()) => self
                .volume
                .hand_back()
                .map_err(|e| NodeError::from(trivet_cluster::ClusterError::HandBack(e))),
            Err(_) => Ok(()),
        };
        timeline.mark("handed back");
        tracing::info!(timeline = ?timeline.marks(), "given up");
        let done = hidden.and(closed.map_err(NodeError::from)).and(handed_back);
        self.bury();
        (clients, done)
    }

    /// Lets go of what is left on a thread of its own: joining threads takes longer than a client
    /// that waits for the successor should have to.
    fn bury(self) {
        let buried = thread::Builder::new()
            .name("farewell".into())
            .spawn(move || drop(self));
        if let Err(error) = buried {
            tracing::warn!(%error, "no thread");
        }
    }

    /// Ends it because the volume is lost: nothing can be written any more. `gone` as in
    /// [`Stack::end`].
    pub fn abandon(mut self, gone: impl FnOnce()) {
        match self.close_doors() {
            Ok(()) => gone(),
            Err(error) => tracing::error!(%error, "the service address stays"),
        }
        drop(self.nfs.take());
        self.unmount();
    }

    fn close_doors(&mut self) -> Result<()> {
        self.net.take().map_or(Ok(()), |net| net.hide_for_certain())
    }

    /// Unmounts it, if it is mounted.
    pub fn unmount(&mut self) {
        match self.mounted.take().map(Mounted::unmount) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => tracing::warn!("the mount was in use; its users now get errors"),
            Some(Err(error)) => tracing::warn!(%error, "cannot unmount"),
        }
    }
}

impl From<MountWithout> for Without {
    fn from(without: MountWithout) -> Without {
        match without {
            MountWithout::Writing => Without::Writing,
            MountWithout::Suid => Without::Suid,
            MountWithout::Dev => Without::Dev,
            MountWithout::Exec => Without::Exec,
        }
    }
}
