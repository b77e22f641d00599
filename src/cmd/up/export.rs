//! The NFS export of `trivet up`: its arguments, its start, and the lines that mount it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use trivet_fs::{Fs, Vfs};
use trivet_nfs::export::ExportSpec;
use trivet_nfs::rpc::pool::PoolLimits;
use trivet_nfs::{Discovery, NfsConfig, NfsError, NfsServer};
use trivet_replica::Volume;

use crate::error::CliError;

/// Where NFS is served, and to whom.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Address and port of the NFS export
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:2049")]
    nfs: SocketAddr,
    /// Who may use it: an address or network, read-write and with root as root, or with options
    /// as in exports(5); repeatable [default: this machine]
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// Name of the export
    #[arg(long, value_name = "PATH", default_value = "/trivet")]
    export: String,
    /// Serve no NFS
    #[arg(long)]
    no_nfs: bool,
}

/// Commands that use the export.
#[derive(Clone, Debug, Serialize)]
pub struct Lines {
    /// On any Linux.
    pub mount: String,
    /// On Proxmox VE.
    pub proxmox: String,
}

/// The running export.
pub struct Export {
    /// How to use it.
    pub lines: Lines,
    _server: NfsServer,
}

impl ExportArgs {
    /// Serves the file system, unless told not to.
    ///
    /// # Errors
    /// The address is taken, or an argument is wrong.
    pub fn start(
        &self,
        fs: &Arc<Fs>,
        volume: &Arc<dyn Volume>,
    ) -> Result<Option<Export>, CliError> {
        if self.no_nfs {
            return Ok(None);
        }
        let server = match self.serve(fs, volume, Discovery::Auto) {
            // Another server has the programs: serve where a mount can name the ports.
            Err(NfsError::Register(e)) => {
                tracing::warn!("{e}; mounts must name their ports");
                self.serve(fs, volume, Discovery::None)
            }
            other => other,
        };
        let server = server.map_err(|e| CliError::failed(format_args!("NFS export: {e}")))?;
        let host = reachable(server.address().ip());
        let options = server.mount_options();
        let lines = Lines {
            mount: server.mount_line(host),
            proxmox: format!(
                "pvesm add nfs trivet --server {host} --export {} --content images,iso,vztmpl \
                 --options {options}",
                self.export
            ),
        };
        Ok(Some(Export {
            lines,
            _server: server,
        }))
    }

    fn clients(&self) -> Vec<String> {
        if self.allow.is_empty() {
            let this = match self.nfs.ip() {
                IpAddr::V4(_) => "127.0.0.0/8",
                IpAddr::V6(_) => "::1",
            };
            return vec![format!("{this}(rw,no_root_squash,insecure)")];
        }
        let options = |c: &String| match c.contains('(') {
            true => c.clone(),
            false => format!("{c}(rw,no_root_squash,insecure)"),
        };
        self.allow.iter().map(options).collect()
    }

    fn serve(
        &self,
        fs: &Arc<Fs>,
        volume: &Arc<dyn Volume>,
        discovery: Discovery,
    ) -> Result<NfsServer, NfsError> {
        let config = NfsConfig {
            listen: self.nfs,
            discovery,
            exports: vec![ExportSpec {
                name: self.export.clone(),
                directory: "/".into(),
                clients: self.clients(),
            }],
            limits: PoolLimits::default(),
            drop_locks_after: None,
        };
        let fs: Arc<dyn Vfs> = Arc::clone(fs) as _;
        let volume = Arc::clone(volume);
        NfsServer::start(config, fs, Arc::new(move || volume.info()))
    }
}

/// An address that a client can be told, of one that is listened on.
fn reachable(listening: IpAddr) -> IpAddr {
    match listening.is_unspecified() {
        true => Ipv4Addr::LOCALHOST.into(),
        false => listening,
    }
}
