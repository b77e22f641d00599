//! Opens connections, on either side: plain on loopback, TLS elsewhere.
//!
//! A handshake has a total time, however its bytes trickle in, and is over before anything above
//! sees the connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use trivet_protocol::Generation;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::io::FrameWriter;
use trivet_protocol::message::{self, Refusal, Reply};

use crate::conn::{Connection, prepare, time_left};
use crate::error::{Result, TransportError};
use crate::key::{Identity, PublicKey};
use crate::peers::{Peer, Peers};
use crate::tls::{Configs, stranger};

/// Who is refused has this long to hear why.
const LINGER: Duration = Duration::from_millis(200);

/// Whom one means to reach. On a plain connection nobody is known, and nothing is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The node of this name: it hosts members.
    Node(String),
    /// Whoever has this name in the list.
    Named(String),
    /// Anyone in the list.
    Listed,
}

/// How connections are protected.
#[derive(Clone)]
pub enum Security {
    /// Not at all: refused unless both ends are loopback addresses.
    Plain,
    /// TLS 1.3, both sides known by their keys.
    Tls(Tls),
}

/// A key, and who else is known.
#[derive(Clone)]
pub struct Tls {
    identity: Identity,
    peers: Peers,
    configs: Arc<Configs>,
}

impl Security {
    /// TLS with this key, between those in the list.
    ///
    /// # Errors
    /// The cryptography does not start.
    pub fn tls(identity: Identity, peers: Peers) -> Result<Security> {
        let configs = Arc::new(Configs::new(&identity, &peers)?);
        Ok(Security::Tls(Tls {
            identity,
            peers,
            configs,
        }))
    }

    /// What the list calls this side; `None` if it is not in it.
    pub fn own(&self) -> Option<Peer> {
        match self {
            Security::Plain => Some(Peer::local()),
            Security::Tls(tls) => {
                let list = tls.peers.current();
                list.by_key(&tls.identity.public()).cloned()
            }
        }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Security::Tls(_))
    }

    /// Whether one may listen there.
    ///
    /// # Errors
    /// [`TransportError::PlainRefused`] says what to do.
    pub fn check(&self, address: SocketAddr) -> Result<()> {
        match self {
            Security::Plain if !address.ip().to_canonical().is_loopback() => {
                Err(TransportError::PlainRefused { address })
            }
            _ => Ok(()),
        }
    }

    /// Connects to `address` within `limit`, and makes sure that it is who is meant.
    ///
    /// # Errors
    /// It is not reached in time, or it is somebody else.
    pub fn connect(
        &self,
        address: SocketAddr,
        expect: &Expect,
        limit: Duration,
    ) -> Result<Connection> {
        self.connect_within(address, expect, limit, limit)
    }

    /// The same, with less time for the network alone: a host that is gone is given up sooner
    /// than one that is there and slow.
    ///
    /// # Errors
    /// As [`Security::connect`].
    pub fn connect_within(
        &self,
        address: SocketAddr,
        expect: &Expect,
        network: Duration,
        limit: Duration,
    ) -> Result<Connection> {
        self.check(address)?;
        let until = Instant::now() + limit;
        let failed = |source| TransportError::Connect { address, source };
        let socket = TcpStream::connect_timeout(&address, network).map_err(failed)?;
        prepare(&socket).map_err(failed)?;
        let Security::Tls(tls) = self else {
            return Ok(Connection::new(socket, address, Peer::local(), None, None));
        };
        // Nobody looks at the name: who it is, is in the key.
        let name = ServerName::IpAddress(address.ip().into());
        let state = ClientConnection::new(tls.configs.client.clone(), name)
            .map_err(|e| TransportError::Crypto(e.to_string()))?;
        let connection = tls.finish(socket, address, state.into(), until, limit)?;
        expect.check(address, connection.peer())?;
        Ok(connection)
    }

    /// Takes over an accepted socket: by `limit` from now the other side has proved who it is.
    ///
    /// # Errors
    /// It did not, or is not in the list.
    pub fn accept(&self, socket: TcpStream, limit: Duration) -> Result<Connection> {
        let until = Instant::now() + limit;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let failed = |address| move |source| TransportError::Connect { address, source };
        let address = socket.peer_addr().map_err(failed(nowhere))?;
        self.check(address)?;
        prepare(&socket).map_err(failed(address))?;
        let Security::Tls(tls) = self else {
            return Ok(Connection::new(socket, address, Peer::local(), None, None));
        };
        let state = ServerConnection::new(tls.configs.server.clone())
            .map_err(|e| TransportError::Crypto(e.to_string()))?;
        tls.finish(socket, address, state.into(), until, limit)
    }
}

impl Expect {
    fn check(&self, address: SocketAddr, found: &Peer) -> Result<()> {
        let (name, node) = match self {
            Expect::Node(name) => (Some(name), true),
            Expect::Named(name) => (Some(name), false),
            Expect::Listed => (None, false),
        };
        if let Some(expected) = name
            && *expected != found.name
        {
            return Err(TransportError::WrongPeer {
                address,
                expected: expected.clone(),
                found: found.name.clone(),
            });
        }
        if node && !found.role.hosts_members() {
            return Err(TransportError::NotANode {
                address,
                name: found.name.clone(),
                role: found.role,
            });
        }
        Ok(())
    }
}

impl Tls {
    /// The key of this side.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The list in force.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    fn finish(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        mut state: rustls::Connection,
        until: Instant,
        limit: Duration,
    ) -> Result<Connection> {
        let failed = |why: String| TransportError::Handshake { address, why };
        match shake(&socket, &mut state, until) {
            Ok(()) => {}
            Err(Shake::Io(e)) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(TransportError::HandshakeTimeout { address, limit });
            }
            Err(Shake::Io(e)) => return Err(failed(e.to_string())),
            Err(Shake::Plain) => {
                return Err(failed(
                    "it speaks without TLS; start it with --key and --peers".into(),
                ));
            }
            Err(Shake::Tls(e)) => {
                return Err(match stranger(&e) {
                    Some(key) => TransportError::Stranger { address, key },
                    None => failed(e.to_string()),
                });
            }
        }
        let gone = |e: io::Error| failed(e.to_string());
        socket.set_read_timeout(None).map_err(gone)?;
        socket.set_write_timeout(None).map_err(gone)?;
        let shown = state.peer_certificates().and_then(|c| c.first());
        let key = shown
            .and_then(|c| PublicKey::from_spki(c))
            .ok_or_else(|| failed("it showed no key".into()))?;
        // Once more: the list may have been replaced since the handshake looked at it.
        match self.peers.admit(&key, &socket).map_err(gone)? {
            None => Err(TransportError::Stranger { address, key }),
            Some((peer, registered)) => {
                let tls = Some(state);
                let registered = Some(registered);
                Ok(Connection::new(socket, address, peer, tls, registered))
            }
        }
    }
}

enum Shake {
    Io(io::Error),
    Tls(rustls::Error),
    /// The other side began with a frame of ours, in the clear.
    Plain,
}

impl From<io::Error> for Shake {
    fn from(e: io::Error) -> Shake {
        // What a socket's own time-out is called.
        match e.kind() {
            io::ErrorKind::WouldBlock => Shake::Io(io::ErrorKind::TimedOut.into()),
            _ => Shake::Io(e),
        }
    }
}

/// The handshake, over before `until`.
fn shake(
    mut socket: &TcpStream,
    state: &mut rustls::Connection,
    until: Instant,
) -> Result<(), Shake> {
    let mut first = true;
    while state.is_handshaking() || state.wants_write() {
        if state.wants_write() {
            socket.set_write_timeout(Some(time_left(until)?))?;
            state.write_tls(&mut socket)?;
            continue;
        }
        socket.set_read_timeout(Some(time_left(until)?))?;
        if std::mem::take(&mut first) {
            let mut begin = [0; 4];
            if socket.peek(&mut begin)? == 4 && begin == *b"TRV1" {
                say_plainly(socket);
                return Err(Shake::Plain);
            }
        }
        match state.read_tls(&mut socket) {
            Ok(0) => {
                let why = "it ended the connection; perhaps it is stopping, or runs without a key";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why).into());
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        }
        if let Err(e) = state.process_new_packets() {
            say_why(socket, state);
            return Err(Shake::Tls(e));
        }
    }
    Ok(())
}

/// Tells the other side why in an alert.
fn say_why(mut socket: &TcpStream, state: &mut rustls::Connection) {
    let _ = socket.set_write_timeout(Some(LINGER));
    if state.write_tls(&mut socket).is_ok() {
        drain(socket);
    }
}

/// Tells whoever speaks without TLS why it gets no answer, in a way that it understands.
fn say_plainly(mut socket: &TcpStream) {
    let why = "this node speaks TLS only; start the other side with --key and --peers too";
    let refused = Frame {
        header: Header::new(Kind::Reply, Generation::NONE, 0),
        meta: message::encode(&Reply::Refused(Refusal::BadRequest(why.into()))),
        data: Vec::new(),
    };
    let _ = socket.set_write_timeout(Some(LINGER));
    let mut out = FrameWriter::default();
    out.push(&refused, None);
    if out.write_with(|parts| socket.write_vectored(parts)).is_ok() {
        drain(socket);
    }
}

/// Takes what the other side had sent already: closing before that would reset the connection,
/// and what it was told be lost. Within bounds, and it does not matter if it fails.
fn drain(mut socket: &TcpStream) {
    let until = Instant::now() + LINGER;
    if socket.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut sink = [0; 4096];
    while let Ok(left) = time_left(until) {
        let _ = socket.set_read_timeout(Some(left));
        if !matches!(socket.read(&mut sink), Ok(1..)) {
            return;
        }
    }
}
