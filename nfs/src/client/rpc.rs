//! RPC calls from here to elsewhere.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use crate::rpc::message::{Credential, SysCredential, decode_reply, encode_call};
use crate::rpc::record::{Assembler, Progress, mark};
use crate::xdr::{Dec, Enc, XdrError};

/// Bytes of a reply, at most.
const MAX_REPLY: usize = (1 << 20) + (64 << 10);

/// Why a call got no answer, or none of use.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection, or it broke, or no answer in time.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer cannot be decoded.
    #[error("a malformed answer: {0}")]
    Malformed(#[from] XdrError),
    /// The server refused the call on the RPC level; the number is `accept_stat`, or `u32::MAX`
    /// if it was denied.
    #[error("the server refused the call (accept_stat {0})")]
    Refused(u32),
    /// The connection ended or sent what is no record.
    #[error("the connection ended: {0}")]
    Ended(String),
}

static NEXT_XID: AtomicU32 = AtomicU32::new(0);

/// A number for a call, different from that of the calls just before.
pub fn next_xid() -> u32 {
    let n = NEXT_XID.fetch_add(1, Ordering::Relaxed);
    if n != 0 {
        return n;
    }
    // Different from that of an earlier process with this address.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = now.map_or(1, |d| d.subsec_nanos() ^ d.as_secs() as u32) | 1;
    NEXT_XID.store(seed.wrapping_add(1), Ordering::Relaxed);
    seed
}

/// The credential of the superuser of this machine.
pub fn root_credential() -> Credential {
    Credential::Sys(SysCredential {
        machine: b"localhost".to_vec(),
        ..SysCredential::default()
    })
}

/// A connection over which calls are made one after another.
pub struct RpcClient {
    socket: TcpStream,
    input: Assembler,
    /// Who calls.
    pub credential: Credential,
}

impl RpcClient {
    /// Connects; from a port below 1024 if `reserved`, which servers ask of root's calls.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn connect(
        to: SocketAddr,
        timeout: Duration,
        reserved: bool,
    ) -> Result<RpcClient, ClientError> {
        let socket = match reserved {
            true => connect_reserved(to, timeout)?,
            false => TcpStream::connect_timeout(&to, timeout)?,
        };
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(RpcClient {
            socket,
            input: Assembler::new(MAX_REPLY),
            credential: root_credential(),
        })
    }

    /// Calls a procedure and waits for its results.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(
        &mut self,
        what: (u32, u32, u32),
        args: impl FnOnce(&mut Enc),
    ) -> Result<Dec, ClientError> {
        let xid = next_xid();
        self.send(xid, what, args)?;
        loop {
            let mut d = self.receive()?;
            let (got, status) = decode_reply(&mut d)?;
            if got == xid {
                status.map_err(ClientError::Refused)?;
                return Ok(d);
            }
        }
    }

    /// Sends a call without waiting.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send(
        &mut self,
        xid: u32,
        what: (u32, u32, u32),
        args: impl FnOnce(&mut Enc),
    ) -> Result<(), ClientError> {
        let mut e = Enc::with_capacity(512);
        e.u32(0);
        encode_call(&mut e, xid, what, &self.credential);
        args(&mut e);
        e.patch_u32(0, mark(e.len() - 4));
        io::Write::write_all(&mut self.socket, e.bytes())?;
        Ok(())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(io::Write::write_all(&mut self.socket, bytes)?)
    }

    /// The next message, whatever it answers.
    ///
    /// # Errors
    /// [`ClientError`]; a time-out is [`ClientError::Io`].
    pub fn receive(&mut self) -> Result<Dec, ClientError> {
        let socket = &self.socket;
        let next = self.input.next(|v| {
            let room = rustix::buffer::spare_capacity(v);
            let flags = rustix::net::RecvFlags::empty();
            Ok(rustix::net::recv(socket, room, flags)?.0)
        });
        match next {
            Ok(Progress::Record(r)) => Ok(Dec::new(r)),
            Ok(Progress::Starved) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            Err(e) => Err(ClientError::Ended(e.to_string())),
        }
    }

    /// The address at this end.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn local(&self) -> Result<SocketAddr, ClientError> {
        Ok(self.socket.local_addr()?)
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

fn connect_reserved(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    // The ports that bindresvport(3) uses, from a place that differs from process to process.
    let start = std::process::id() as u16 % 400;
    for n in 0..400 {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(to),
            socket2::Type::STREAM,
            None,
        )?;
        let any: IpAddr = match to {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let port = 600 + (start + n) % 400;
        let bound = socket.bind(&SocketAddr::new(any, port).into());
        match bound.and_then(|()| socket.connect_timeout(&to.into(), timeout)) {
            Ok(()) => return Ok(socket.into()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(e),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Err(e),
            Err(e) => last = e,
        }
        if last.kind() == io::ErrorKind::TimedOut {
            break;
        }
    }
    Err(last)
}

/// Calls a procedure over UDP; repeats it until `timeout` has passed.
///
/// # Errors
/// [`ClientError`].
pub fn call_udp(
    to: SocketAddr,
    timeout: Duration,
    what: (u32, u32, u32),
    args: impl FnOnce(&mut Enc),
) -> Result<Dec, ClientError> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(500).min(timeout)))?;
    let xid = next_xid();
    let mut e = Enc::new();
    encode_call(&mut e, xid, what, &root_credential());
    args(&mut e);
    let end = Instant::now() + timeout;
    let mut buf = vec![0; 9 << 10];
    while Instant::now() < end {
        socket.send(e.bytes())?;
        let n = match socket.recv(&mut buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e.into()),
        };
        let mut d = Dec::new(Bytes::copy_from_slice(&buf[..n]));
        let (got, status) = decode_reply(&mut d)?;
        if got == xid {
            status.map_err(ClientError::Refused)?;
            return Ok(d);
        }
    }
    Err(io::Error::from(io::ErrorKind::TimedOut).into())
}
