//! An NFS client's connection as a hard mount has it: a call is repeated, with the same number,
//! until it is answered, over as many connections as that takes.
//!
//! Waits are those of the Linux client: an unanswered call is repeated after a minute, or at once
//! when its connection ends; after a connection that could not be made, the next try waits
//! [`AGAIN`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use trivet_nfs::client::rpc::{ClientError, RpcClient, next_xid};
use trivet_nfs::rpc::message::decode_reply;
use trivet_nfs::xdr::{Dec, Enc};

use super::Shared;
use crate::findings::Kind;

/// A call without an answer, on a connection that seems to live, is repeated after this time.
const MINUTE: Duration = Duration::from_secs(60);
/// After an error in connecting.
const AGAIN: Duration = Duration::from_secs(3);

/// An answer that comes later than this is a finding: no event takes that long, so something was
/// lost that nobody told the client of.
const LONG: Duration = Duration::from_secs(25);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The run ends.
    Stopped,
    /// The server refused the call, or answered nonsense.
    Rpc(String),
}

/// What is called: program, version, procedure.
pub type What = (u32, u32, u32);

/// See the module's head.
pub struct Hard {
    to: SocketAddr,
    shared: Arc<Shared>,
    connection: Option<(RpcClient, Instant)>,
    /// On a host that may be switched off: waits are its own.
    may_wait: bool,
}

impl Hard {
    /// Connects with the first call.
    pub fn new(shared: &Arc<Shared>) -> Hard {
        Hard {
            to: shared.server,
            shared: shared.clone(),
            connection: None,
            may_wait: false,
        }
    }

    /// One on a host that may be cut off, whose waits are no findings.
    pub fn on_a_host(mut self) -> Hard {
        self.may_wait = true;
        self
    }

    /// Calls, until there is an answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn call(&mut self, what: What, args: &dyn Fn(&mut Enc)) -> Result<Dec, Failure> {
        self.call_as(next_xid(), what, args)
    }

    /// The same under a number of an earlier call, which it repeats.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn call_as(
        &mut self,
        xid: u32,
        what: What,
        args: &dyn Fn(&mut Enc),
    ) -> Result<Dec, Failure> {
        let began = Instant::now();
        let mut story = String::new();
        loop {
            let (mut connection, since) = self.connected()?;
            match exchange(&mut connection, xid, what, args) {
                Ok(d) => {
                    self.connection = Some((connection, since));
                    self.look_at(began.elapsed(), what, &story);
                    return Ok(d);
                }
                Err(e @ (ClientError::Io(_) | ClientError::Ended(_))) => {
                    self.shared
                        .counts
                        .reconnects
                        .fetch_add(1, Ordering::Relaxed);
                    let from = connection.local().map_or(0, |a| a.port());
                    let (age, at) = (since.elapsed(), began.elapsed());
                    story = format!(
                        "{story}; after {at:.1?} the connection from port {from}, {age:.1?} old, \
                         ended: {e}"
                    );
                }
                Err(e) => return Err(Failure::Rpc(e.to_string())),
            }
        }
    }

    fn look_at(&self, waited: Duration, what: What, story: &str) {
        if waited > LONG && !self.may_wait {
            let words = format!("a call of {what:?} was answered after {waited:.1?}{story}");
            self.shared.findings.add(Kind::Hang, words);
        }
    }

    /// Sends a call and loses the connection before its answer, then repeats it: a client cannot
    /// know whether it was carried out.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn call_twice(
        &mut self,
        what: What,
        args: &dyn Fn(&mut Enc),
    ) -> Result<(u32, Dec), Failure> {
        let xid = next_xid();
        let (mut connection, _) = self.connected()?;
        // Sent or not, and carried out or not: the repetition below must not care.
        let _ = connection.send(xid, what, args);
        // By a reset, which leaves no port waiting: there are few below 1024.
        let _ = socket2::SockRef::from(connection.socket()).set_linger(Some(Duration::ZERO));
        drop(connection);
        Ok((xid, self.call_as(xid, what, args)?))
    }

    fn connected(&mut self) -> Result<(RpcClient, Instant), Failure> {
        loop {
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(Failure::Stopped);
            }
            if let Some(c) = self.connection.take() {
                return Ok(c);
            }
            match RpcClient::connect(self.to, MINUTE, true) {
                Ok(c) => return Ok((c, Instant::now())),
                Err(ClientError::Io(e)) => {
                    self.shared.counts.failed_connect(&e);
                    // As the Linux client does; also what makes a refusal cost what it costs.
                    std::thread::sleep(AGAIN);
                }
                Err(e) => return Err(Failure::Rpc(e.to_string())),
            }
        }
    }
}

fn exchange(
    connection: &mut RpcClient,
    xid: u32,
    what: What,
    args: &dyn Fn(&mut Enc),
) -> Result<Dec, ClientError> {
    connection.send(xid, what, args)?;
    loop {
        let mut d = connection.receive()?;
        let (got, status) = decode_reply(&mut d)?;
        if got == xid {
            status.map_err(ClientError::Refused)?;
            return Ok(d);
        }
    }
}
