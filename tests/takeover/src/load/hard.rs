//! An NFS client's connection as a hard mount has it: a call is repeated, with the same number,
//! until it is answered, over as many connections as that takes.
//!
//! Waits are those of the Linux client: an unanswered call is repeated after a minute, or at once
//! when its connection ends; after a connection that could not be made, the next try waits
//! [`AGAIN`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trivet_nfs::client::rpc::{ClientError, RpcClient, next_xid};
use trivet_nfs::rpc::message::decode_reply;
use trivet_nfs::xdr::{Dec, Enc};

use super::Shared;

/// A call without an answer, on a connection that seems to live, is repeated after this time.
const MINUTE: Duration = Duration::from_secs(60);
/// After an error in connecting.
const AGAIN: Duration = Duration::from_secs(3);

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
    connection: Option<RpcClient>,
}

impl Hard {
    /// Connects with the first call.
    pub fn new(shared: &Arc<Shared>) -> Hard {
        Hard {
            to: shared.server,
            shared: shared.clone(),
            connection: None,
        }
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
        loop {
            let mut connection = self.connected()?;
            match exchange(&mut connection, xid, what, args) {
                Ok(d) => {
                    self.connection = Some(connection);
                    return Ok(d);
                }
                Err(ClientError::Io(_) | ClientError::Ended(_)) => {
                    self.shared
                        .counts
                        .reconnects
                        .fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => return Err(Failure::Rpc(e.to_string())),
            }
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
        let mut connection = self.connected()?;
        // Sent or not, and carried out or not: the repetition below must not care.
        let _ = connection.send(xid, what, args);
        drop(connection);
        Ok((xid, self.call_as(xid, what, args)?))
    }

    fn connected(&mut self) -> Result<RpcClient, Failure> {
        loop {
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(Failure::Stopped);
            }
            if let Some(c) = self.connection.take() {
                return Ok(c);
            }
            match RpcClient::connect(self.to, MINUTE, true) {
                Ok(c) => return Ok(c),
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
