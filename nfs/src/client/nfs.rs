//! NFSv3 and MOUNT calls from a client's side, as the tests and the load generator need them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use super::rpc::{ClientError, RpcClient};
use crate::export::MAX_PATH;
use crate::mount::PROGRAM as MOUNT;
use crate::nfs3::types::PROGRAM as NFS;
use crate::nlm::types::PROGRAM as NLM;
use crate::portmap::{PORT, PROGRAM as PORTMAP};
use crate::xdr::{Dec, Enc, XdrResult};

/// How long to wait for a connection or an answer.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Exports and groups of one answer that are read, at most.
pub const MAX_EXPORTS: usize = 4096;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum NfsClientError {
    /// On the way.
    #[error(transparent)]
    Rpc(#[from] ClientError),
    /// The server's status.
    #[error("the server answered {what} with status {status}")]
    Status {
        /// Which call.
        what: &'static str,
        /// `nfsstat3` or `mountstat3`.
        status: u32,
    },
    /// An address that cannot be used.
    #[error("{0}")]
    BadUrl(String),
}

impl From<crate::xdr::XdrError> for NfsClientError {
    fn from(e: crate::xdr::XdrError) -> Self {
        NfsClientError::Rpc(e.into())
    }
}

/// Result of a call.
pub type NfsResult<T> = Result<T, NfsClientError>;

/// What a client knows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fattr {
    /// `ftype3`.
    pub kind: u32,
    /// Permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes on disk.
    pub used: u64,
    /// File-system number.
    pub fsid: u64,
    /// Inode number.
    pub fileid: u64,
    /// Access, modification and change time, each seconds and nanoseconds.
    pub times: [(u32, u32); 3],
}

/// `fattr3`.
///
/// # Errors
/// As the items decode.
pub fn get_fattr(d: &mut Dec) -> XdrResult<Fattr> {
    let (kind, mode, nlink) = (d.u32()?, d.u32()?, d.u32()?);
    let (uid, gid, size, used) = (d.u32()?, d.u32()?, d.u64()?, d.u64()?);
    d.u64()?;
    let (fsid, fileid) = (d.u64()?, d.u64()?);
    let mut times = [(0, 0); 3];
    for t in &mut times {
        *t = (d.u32()?, d.u32()?);
    }
    Ok(Fattr {
        kind,
        mode,
        nlink,
        uid,
        gid,
        size,
        used,
        fsid,
        fileid,
        times,
    })
}

/// `post_op_attr`.
///
/// # Errors
/// As the items decode.
pub fn get_post(d: &mut Dec) -> XdrResult<Option<Fattr>> {
    d.bool()?.then(|| get_fattr(d)).transpose()
}

/// Size, modification time and change time before a change.
pub type Before = (u64, (u32, u32), (u32, u32));

/// `wcc_data`: before and after.
///
/// # Errors
/// As the items decode.
pub fn get_wcc(d: &mut Dec) -> XdrResult<(Option<Before>, Option<Fattr>)> {
    let before = match d.bool()? {
        true => Some((d.u64()?, (d.u32()?, d.u32()?), (d.u32()?, d.u32()?))),
        false => None,
    };
    Ok((before, get_post(d)?))
}

/// A handle.
pub type Fh = Vec<u8>;

/// `sattr3` with a mode and a size, perhaps.
pub fn put_sattr(e: &mut Enc, mode: Option<u32>, size: Option<u64>) {
    e.bool(mode.is_some());
    if let Some(m) = mode {
        e.u32(m);
    }
    e.bool(false).bool(false).bool(size.is_some());
    if let Some(s) = size {
        e.u64(s);
    }
    e.u32(0).u32(0);
}

/// Where an export is: `nfs://HOST[:PORT]/PATH[?nfsport=N&mountport=N]`, as libnfs writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Address of the server.
    pub host: IpAddr,
    /// Port of NFS, if it need not be asked for.
    pub nfs_port: Option<u16>,
    /// Port of MOUNT likewise.
    pub mount_port: Option<u16>,
    /// Name of the export.
    pub path: String,
}

impl std::str::FromStr for Url {
    type Err = NfsClientError;

    fn from_str(s: &str) -> NfsResult<Url> {
        let bad = |why: &str| {
            NfsClientError::BadUrl(format!(
                "{s:?}: {why}; write nfs://ADDRESS[:PORT]/EXPORT[?nfsport=N&mountport=N]"
            ))
        };
        let rest = s.strip_prefix("nfs://").ok_or_else(|| bad("no nfs://"))?;
        let at = rest.find('/').ok_or_else(|| bad("no export"))?;
        let (host, path) = rest.split_at(at);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut url = Url {
            host: std::net::Ipv4Addr::LOCALHOST.into(),
            nfs_port: None,
            mount_port: None,
            path: path.to_owned(),
        };
        match host.parse::<SocketAddr>() {
            Ok(a) => {
                url.host = a.ip();
                url.nfs_port = Some(a.port());
                url.mount_port = Some(a.port());
            }
            Err(_) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                url.host = bare.parse().map_err(|_| bad("not an IP address"))?;
            }
        }
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let port = || value.parse().map_err(|_| bad("not a port"));
            match key {
                "nfsport" => url.nfs_port = Some(port()?),
                "mountport" => url.mount_port = Some(port()?),
                "version" if value == "3" => {}
                _ => return Err(bad("unknown option")),
            }
        }
        Ok(url)
    }
}

/// Where the lock manager of a server is: the one port that the URL names for everything, else
/// the one that its portmapper knows.
///
/// # Errors
/// [`NfsClientError`].
pub fn lock_address(url: &Url) -> NfsResult<SocketAddr> {
    let port = match (url.nfs_port, url.mount_port) {
        (Some(nfs), Some(mount)) if nfs == mount => nfs,
        _ => port_of(url.host, (NLM, 4), TIMEOUT)?,
    };
    Ok(SocketAddr::new(url.host, port))
}

fn port_of(host: IpAddr, (program, version): (u32, u32), timeout: Duration) -> NfsResult<u16> {
    let mut c = RpcClient::connect(SocketAddr::new(host, PORT), timeout, false)?;
    let mut d = c.call((PORTMAP, 2, 3), |e| {
        e.u32(program).u32(version).u32(6).u32(0);
    })?;
    match d.u32()? {
        0 => Err(NfsClientError::BadUrl(format!(
            "{host} serves no program {program}"
        ))),
        port => Ok(port as u16),
    }
}

/// The names of the exports that a server tells anybody, as `showmount -e` asks: port mapper,
/// then MOUNT. Each step takes `timeout` at most; at most [`MAX_EXPORTS`] are returned.
///
/// # Errors
/// [`NfsClientError`].
pub fn exports(host: IpAddr, timeout: Duration) -> NfsResult<Vec<String>> {
    let port = port_of(host, (MOUNT, 3), timeout)?;
    let mut c = RpcClient::connect(SocketAddr::new(host, port), timeout, false)?;
    let mut d = c.call((MOUNT, 3, 5), |_| ())?;
    let mut names = Vec::new();
    while d.bool()? && names.len() < MAX_EXPORTS {
        let name = d.opaque(MAX_PATH as u32)?;
        names.push(String::from_utf8_lossy(&name).into_owned());
        // Who may mount it, which is not asked for here.
        let mut groups = 0;
        while d.bool()? && groups < MAX_EXPORTS {
            d.opaque(MAX_PATH as u32)?;
            groups += 1;
        }
    }
    Ok(names)
}

/// A client of one export.
pub struct NfsClient {
    /// The connection.
    pub rpc: RpcClient,
    /// The export's directory.
    pub root: Fh,
}

fn check(d: &mut Dec, what: &'static str) -> NfsResult<()> {
    match d.u32()? {
        0 => Ok(()),
        status => Err(NfsClientError::Status { what, status }),
    }
}

/// The NFS address and the handle of an export.
///
/// # Errors
/// [`NfsClientError`].
pub fn mount(url: &Url, reserved: bool) -> NfsResult<(SocketAddr, Fh)> {
    let mount_port = url
        .mount_port
        .map_or_else(|| port_of(url.host, (MOUNT, 3), TIMEOUT), Ok)?;
    let nfs_port = url
        .nfs_port
        .map_or_else(|| port_of(url.host, (NFS, 3), TIMEOUT), Ok)?;
    let mut c = RpcClient::connect(SocketAddr::new(url.host, mount_port), TIMEOUT, reserved)?;
    let mut d = c.call((MOUNT, 3, 1), |e| {
        e.opaque(url.path.as_bytes());
    })?;
    check(&mut d, "MNT")?;
    Ok((SocketAddr::new(url.host, nfs_port), d.opaque(64)?))
}

impl NfsClient {
    /// Mounts; from ports below 1024 if `reserved`.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn mount(url: &Url, reserved: bool) -> NfsResult<NfsClient> {
        let (address, root) = mount(url, reserved)?;
        let rpc = RpcClient::connect(address, TIMEOUT, reserved)?;
        Ok(NfsClient { rpc, root })
    }

    /// Any NFS call; returns what follows an OK.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn call(
        &mut self,
        procedure: u32,
        what: &'static str,
        args: impl FnOnce(&mut Enc),
    ) -> NfsResult<Dec> {
        let mut d = self.rpc.call((NFS, 3, procedure), args)?;
        check(&mut d, what)?;
        Ok(d)
    }

    /// GETATTR.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn getattr(&mut self, fh: &[u8]) -> NfsResult<Fattr> {
        let mut d = self.call(1, "GETATTR", |e| {
            e.opaque(fh);
        })?;
        Ok(get_fattr(&mut d)?)
    }

    /// LOOKUP.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn lookup(&mut self, dir: &[u8], name: &[u8]) -> NfsResult<(Fh, Option<Fattr>)> {
        let mut d = self.call(3, "LOOKUP", |e| {
            e.opaque(dir).opaque(name);
        })?;
        Ok((d.opaque(64)?, get_post(&mut d)?))
    }

    /// CREATE, unchecked.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn create(&mut self, dir: &[u8], name: &[u8], size: Option<u64>) -> NfsResult<Fh> {
        let mut d = self.call(8, "CREATE", |e| {
            e.opaque(dir).opaque(name).u32(0);
            put_sattr(e, Some(0o644), size);
        })?;
        d.bool()?;
        Ok(d.opaque(64)?)
    }

    /// MKDIR.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn mkdir(&mut self, dir: &[u8], name: &[u8]) -> NfsResult<Fh> {
        let mut d = self.call(9, "MKDIR", |e| {
            e.opaque(dir).opaque(name);
            put_sattr(e, Some(0o755), None);
        })?;
        d.bool()?;
        Ok(d.opaque(64)?)
    }

    /// REMOVE.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn remove(&mut self, dir: &[u8], name: &[u8]) -> NfsResult<()> {
        self.call(12, "REMOVE", |e| {
            e.opaque(dir).opaque(name);
        })?;
        Ok(())
    }

    /// WRITE with `stable` 0, 1 or 2; returns the count, what was committed, and the verifier.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn write(
        &mut self,
        fh: &[u8],
        offset: u64,
        data: &[u8],
        stable: u32,
    ) -> NfsResult<(u32, u32, [u8; 8])> {
        let mut d = self.call(7, "WRITE", |e| put_write(e, fh, offset, data, stable))?;
        get_wcc(&mut d)?;
        Ok((d.u32()?, d.u32()?, d.fixed()?))
    }

    /// COMMIT of the whole file; returns the verifier.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn commit(&mut self, fh: &[u8]) -> NfsResult<[u8; 8]> {
        let mut d = self.call(21, "COMMIT", |e| {
            e.opaque(fh).u64(0).u32(0);
        })?;
        get_wcc(&mut d)?;
        Ok(d.fixed()?)
    }

    /// READ; returns the data and whether the end of the file was reached.
    ///
    /// # Errors
    /// [`NfsClientError`].
    pub fn read(&mut self, fh: &[u8], offset: u64, count: u32) -> NfsResult<(Bytes, bool)> {
        let mut d = self.call(6, "READ", |e| {
            e.opaque(fh).u64(offset).u32(count);
        })?;
        get_post(&mut d)?;
        let n = d.u32()?;
        let eof = d.bool()?;
        let data = d.payload(1 << 20)?;
        match data.len() == n as usize {
            true => Ok((data, eof)),
            false => Err(crate::xdr::XdrError::BadValue(n).into()),
        }
    }
}

/// Arguments of WRITE.
pub fn put_write(e: &mut Enc, fh: &[u8], offset: u64, data: &[u8], stable: u32) {
    e.opaque(fh).u64(offset).u32(data.len() as u32).u32(stable);
    e.opaque(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_libnfs() {
        let u: Url = "nfs://127.0.0.1/srv/x?nfsport=20490&mountport=20491&version=3"
            .parse()
            .unwrap();
        assert_eq!((u.nfs_port, u.mount_port), (Some(20490), Some(20491)));
        assert_eq!(u.path, "/srv/x");
        let u: Url = "nfs://[::1]:5000/a".parse().unwrap();
        assert_eq!((u.nfs_port, u.mount_port), (Some(5000), Some(5000)));
        for bad in [
            "http://1.2.3.4/a",
            "nfs://1.2.3.4",
            "nfs://host/a",
            "nfs://1.1.1.1/a?x=1",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }
}
