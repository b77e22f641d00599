//! NSM (status monitor, program 100024): how a client says that it restarted.
//!
//! The server's part is small, because its own locks survive a restart: nobody has to be told.
//! What counts is SM_NOTIFY: a client that restarted holds nothing any more, and its locks are
//! dropped. It is believed only for the address that it comes from, and each state number once,
//! because clients repeat it and may hold new locks by then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::export::plain;
use crate::nlm::Nlm;
use crate::nlm::types::get_notify;
use crate::rpc::conn::lock;
use crate::rpc::message::AcceptStat;
use crate::rpc::{Call, Program};

/// Program number.
pub const PROGRAM: u32 = 100_024;
/// Clients whose last state is remembered, at most.
const MAX_STATES: usize = 65_536;
/// Our own state: up, and never lost a lock.
const OUR_STATE: u32 = 1;

/// The program.
pub struct Nsm {
    nlm: Arc<Nlm>,
    /// Last state seen of (address, name).
    states: Mutex<HashMap<(IpAddr, Vec<u8>), u32>>,
}

impl Nsm {
    /// Drops locks of `nlm`.
    pub fn new(nlm: Arc<Nlm>) -> Nsm {
        Nsm {
            nlm,
            states: Mutex::default(),
        }
    }

    fn notify(&self, call: Call, name: Vec<u8>, state: u32) {
        let address = plain(call.replier.peer().ip());
        let new = {
            let mut states = lock(&self.states);
            if states.len() >= MAX_STATES {
                states.clear();
            }
            states.insert((address, name.clone()), state) != Some(state)
        };
        if new {
            let released = self
                .nlm
                .release(|n, a| a == address && same_machine(n, &name));
            match released {
                Ok(0) => {}
                Ok(n) => tracing::info!(client = %address, locks = n, "client restarted"),
                Err(e) => tracing::warn!(client = %address, "locks of a restarted client: {e}"),
            }
        }
        call.reply(|_| ());
    }
}

/// The lock manager and the status monitor of a machine may name it with and without its domain.
fn same_machine(a: &[u8], b: &[u8]) -> bool {
    let short = |n: &[u8]| {
        let first = n.split(|c| *c == b'.').next().unwrap_or_default();
        first.to_ascii_lowercase()
    };
    a.eq_ignore_ascii_case(b) || short(a) == short(b)
}

impl Program for Nsm {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn versions(&self) -> (u32, u32) {
        (1, 1)
    }

    fn held(&self, _: u32) -> bool {
        false
    }

    fn call(&self, call: Call) {
        match call.head.procedure {
            0 => call.reply(|_| ()),
            // STAT, MON: we would monitor; UNMON, UNMON_ALL.
            1 | 2 => call.reply(|e| {
                e.u32(0).u32(OUR_STATE);
            }),
            3 | 4 => call.reply(|e| {
                e.u32(OUR_STATE);
            }),
            6 => {
                let args = get_notify(&mut call.head.args.clone());
                call.with_args(args, |call, (name, state)| self.notify(call, name, state));
            }
            _ => call.refuse(AcceptStat::ProcedureUnavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_with_and_without_its_domain() {
        assert!(same_machine(b"pve1", b"PVE1.example.org"));
        assert!(same_machine(b"pve1.a", b"pve1.a"));
        assert!(!same_machine(b"pve1", b"pve10"));
        assert!(!same_machine(b"pve1", b""));
    }
}
