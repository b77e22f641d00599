//! The server: sockets, programs and threads, put together.
//!
//! Start order: the programs, then the listening sockets, then portmap (its own, or entries in
//! the system's rpcbind), so that whoever finds the server can use it. Stop is the reverse.
//! What a crash leaves behind: entries in a system's rpcbind, which the next start replaces.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use trivet_fs::Vfs;

use crate::commit::Committer;
use crate::export::{ExportError, ExportSpec, Exports, plain};
use crate::mount::{self, Mount};
use crate::nfs3::types::PROGRAM as NFS;
use crate::nfs3::{Identity, Nfs3};
use crate::nlm::Nlm;
use crate::nsm::Nsm;
use crate::portmap::{self, Mapping, PORT as PORTMAP_PORT, Portmap, Transport};
use crate::reaper::Reaper;
use crate::register::{RegisterError, Registration};
use crate::rpc::hold::Hold;
use crate::rpc::pool::{Messages, Opened, Pool, PoolLimits};
use crate::rpc::udp::UdpServer;
use crate::rpc::{Program, Programs, Timer};

/// How clients find the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Serve portmap on port 111 if it is free, register with who serves it if it is not, do
    /// without if neither is allowed (no root).
    Auto,
    /// Do without: mounts must name their ports.
    None,
}

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct NfsConfig {
    /// Address and port of NFS, MOUNT, NLM and NSM.
    pub listen: SocketAddr,
    /// How clients find them.
    pub discovery: Discovery,
    /// What is exported to whom.
    pub exports: Vec<ExportSpec>,
    /// Bounds.
    pub limits: PoolLimits,
    /// Locks of a client without any connection for this long are dropped. None by default: a
    /// client that is only cut off still believes that it holds them.
    pub drop_locks_after: Option<Duration>,
}

/// Why the server does not start.
#[derive(Debug, Error)]
pub enum NfsError {
    /// An export.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A socket.
    #[error("cannot listen on {address}: {source}; is another NFS server running?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system's rpcbind.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Threads and the like.
    #[error("cannot start the NFS server: {0}")]
    System(#[from] io::Error),
}

/// How port 111 is served.
pub enum Found {
    /// By us.
    Own,
    /// By the system's rpcbind, where we are registered.
    System,
    /// Not for us: mounts must name their ports.
    Nobody,
}

/// Who is told of what happens in a server.
#[derive(Clone, Default)]
pub struct Watch {
    /// Of each socket that is served.
    pub opened: Option<Opened>,
    /// Of how long each call took.
    pub timer: Option<Timer>,
}

/// A running server; dropping it stops it.
pub struct NfsServer {
    // Dropped in this order.
    registration: Option<Registration>,
    _udp: Vec<UdpServer>,
    _reaper: Option<Reaper>,
    pool: Arc<Pool>,
    nlm: Arc<Nlm>,
    programs: Arc<dyn Messages>,
    found: Found,
    address: SocketAddr,
    hold: Arc<Hold>,
    nfs: Arc<Nfs3>,
    mount: Arc<Mount>,
    exports: Arc<Exports>,
}

impl NfsServer {
    /// Serves `fs`. `identity` tells the volume, reign and losses that make the write verifier.
    ///
    /// # Errors
    /// [`NfsError`]; nothing is left running or registered then.
    pub fn start(
        config: NfsConfig,
        fs: Arc<dyn Vfs>,
        identity: Identity,
    ) -> Result<NfsServer, NfsError> {
        NfsServer::start_watched(config, fs, identity, Watch::default())
    }

    /// The same, with somebody who is told of what happens.
    ///
    /// # Errors
    /// [`NfsError`]; nothing is left running or registered then.
    pub fn start_watched(
        config: NfsConfig,
        fs: Arc<dyn Vfs>,
        identity: Identity,
        watch: Watch,
    ) -> Result<NfsServer, NfsError> {
        let exports = Arc::new(Exports::new(&config.exports)?);
        raise_file_limit(config.limits.connections);
        let committer = Arc::new(Committer::start(Arc::clone(&fs))?);
        let hold = Hold::start(Arc::clone(&fs))?;
        let threads = config.limits.threads;
        let nfs = Nfs3::new(
            Arc::clone(&fs),
            Arc::clone(&exports),
            identity,
            Arc::clone(&committer),
            threads,
        );
        let nlm = Nlm::new(
            fs,
            Arc::clone(&nfs),
            Arc::clone(&exports),
            committer,
            threads,
        )?;
        let mount = Arc::new(Mount::new(Arc::clone(&nfs), Arc::clone(&exports)));

        let listener = listen(config.listen)?;
        let address = listener.local_addr()?;
        let nsm: Arc<dyn Program> = Arc::new(Nsm::new(Arc::clone(&nlm)));
        let small: Vec<Arc<dyn Program>> = vec![mount.clone(), nlm.clone(), nsm];
        let whole: Vec<Arc<dyn Program>> = [vec![nfs.clone() as _], small.clone()].concat();
        let mut mappings = mappings_of(&whole, Transport::Tcp, address.port());
        mappings.extend(mappings_of(&small, Transport::Udp, address.port()));
        let expected = expected(&exports);
        let main: Arc<dyn Messages> = Arc::new(
            Programs::new(whole, expected.clone())
                .with_hold(&hold)
                .with_timer(watch.timer),
        );
        let small = Programs::new(small, expected.clone()).with_hold(&hold);
        let datagrams: Arc<dyn Messages> = Arc::new(small);

        let programs = Arc::clone(&main);
        let mut tcp = vec![(listener, main)];
        let mut udp = vec![UdpServer::start(bind_udp(address)?, datagrams)?];
        let mut registration = None;
        let mut found = Found::Nobody;
        if config.discovery == Discovery::Auto {
            mappings.extend(portmap_mappings());
            match listen_portmap(address.ip())? {
                Binding::Sockets(t, u) => {
                    let portmap = Portmap::new(mappings, address.is_ipv6());
                    let programs: Vec<Arc<dyn Program>> = vec![Arc::new(portmap)];
                    let answers: Arc<dyn Messages> = Arc::new(Programs::new(programs, expected));
                    udp.push(UdpServer::start(u, Arc::clone(&answers))?);
                    tcp.push((t, answers));
                    found = Found::Own;
                }
                Binding::Taken => {
                    mappings.retain(|m| m.program != portmap::PROGRAM);
                    registration = Some(Registration::new(mappings)?);
                    found = Found::System;
                }
                Binding::Forbidden => {}
            }
        }
        let pool = Arc::new(Pool::start(tcp, config.limits, watch.opened)?);
        let reaper = match config.drop_locks_after {
            Some(after) => Some(Reaper::start(&pool, &nlm, after)?),
            None => None,
        };
        tracing::info!(%address, "NFS is served");
        Ok(NfsServer {
            registration,
            _udp: udp,
            _reaper: reaper,
            pool,
            nlm,
            programs,
            found,
            address,
            hold,
            nfs,
            mount,
            exports,
        })
    }

    /// The address that NFS listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How port 111 is served.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Replaces the exports; in force for the next call.
    ///
    /// # Errors
    /// [`ExportError`]; the old ones stay in force then.
    pub fn reload(&self, exports: &[ExportSpec]) -> Result<(), ExportError> {
        self.exports.reload(exports)
    }

    /// The command that mounts the first export on a client, which reaches us as `host`.
    pub fn mount_line(&self, host: IpAddr) -> String {
        let exports = self.exports.list();
        let name = exports.first().map_or("/", |e| e.name.as_str());
        let options = self.mount_options();
        let host = match host {
            IpAddr::V6(a) => format!("[{a}]"),
            v4 => v4.to_string(),
        };
        format!("mount -t nfs -o {options} {host}:{name} /mnt")
    }

    /// The options that a mount of this server takes.
    pub fn mount_options(&self) -> String {
        let port = self.address.port();
        match (&self.found, port) {
            (Found::Nobody, _) => {
                format!("vers=3,proto=tcp,mountproto=tcp,port={port},mountport={port},nolock")
            }
            _ => "vers=3,proto=tcp,hard".to_owned(),
        }
    }

    /// The program, for its counters.
    pub fn nfs(&self) -> &Nfs3 {
        &self.nfs
    }

    /// The programs of the main listener, for calls that come from no socket (fuzzing).
    pub fn programs(&self) -> Arc<dyn Messages> {
        Arc::clone(&self.programs)
    }

    /// MOUNT, for its list of clients.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// The lock manager, for listing and clearing locks.
    pub fn nlm(&self) -> &Nlm {
        &self.nlm
    }

    /// The exports in force.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// Replies that could not leave at once because the volume was not held.
    pub fn silent(&self) -> u64 {
        self.hold.silent()
    }

    /// The threads and connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Stops answering: first nobody finds us any more, then connections end. What is running
    /// inside the file system is waited for.
    pub fn stop(&mut self) {
        self.registration = None;
        self.pool.stop();
    }
}

/// Asks the system for as many files as connections may come, as far as it allows; the default
/// of 1,024 is a tenth of what one server takes.
fn raise_file_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + 4096;
    let allowed = now.maximum.map_or(wanted, |most| most.min(wanted));
    if now.current.is_some_and(|current| current < allowed) {
        let more = Rlimit {
            current: Some(allowed),
            maximum: now.maximum,
        };
        if let Err(e) = setrlimit(Resource::Nofile, more) {
            tracing::warn!("the limit of open files cannot be raised to {allowed}: {e}");
        }
    }
}

/// Who is expected to connect: the clients of the exports, and this machine.
fn expected(exports: &Arc<Exports>) -> crate::rpc::Expected {
    let exports = Arc::clone(exports);
    Arc::new(move |peer: SocketAddr| plain(peer.ip()).is_loopback() || exports.lists(peer))
}

fn mappings_of(programs: &[Arc<dyn Program>], transport: Transport, port: u16) -> Vec<Mapping> {
    let mut out = Vec::new();
    for p in programs {
        let (low, high) = p.versions();
        // Versions below 3 of MOUNT are for tools that look them up by name.
        for version in (low..=high).rev() {
            out.push(Mapping {
                program: p.number(),
                version,
                transport,
                port,
            });
        }
    }
    debug_assert!(
        out.iter()
            .any(|m| m.program == NFS || m.program == mount::PROGRAM)
    );
    out
}

fn portmap_mappings() -> Vec<Mapping> {
    let of = |transport| {
        (2..=4).map(move |version| Mapping {
            program: portmap::PROGRAM,
            version,
            transport,
            port: PORTMAP_PORT,
        })
    };
    of(Transport::Tcp).chain(of(Transport::Udp)).collect()
}

fn listen(address: SocketAddr) -> Result<TcpListener, NfsError> {
    listen_tcp(address).map_err(|source| NfsError::Listen { address, source })
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// The same port for what is also served by datagrams.
fn bind_udp(address: SocketAddr) -> Result<UdpSocket, NfsError> {
    UdpSocket::bind(address).map_err(|source| NfsError::Listen { address, source })
}

enum Binding {
    Sockets(TcpListener, UdpSocket),
    /// Somebody else has the port.
    Taken,
    /// Not allowed.
    Forbidden,
}

fn listen_portmap(ip: IpAddr) -> Result<Binding, NfsError> {
    let address = SocketAddr::new(ip, PORTMAP_PORT);
    let both = || -> io::Result<_> { Ok((listen_tcp(address)?, UdpSocket::bind(address)?)) }();
    match both {
        Ok((t, u)) => Ok(Binding::Sockets(t, u)),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(Binding::Taken),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(Binding::Forbidden),
        Err(source) => Err(NfsError::Listen { address, source }),
    }
}
