//! Locks over the network lock manager (NLM): some are held from the beginning to the end, while
//! another owner tries to get them; others come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trivet_nfs::client::nfs::Fh;
use trivet_nfs::nlm::types::{Lock, PROGRAM, VERSION};
use trivet_nfs::xdr::Enc;

use super::Shared;
use super::hard::{Failure, Hard};
use crate::findings::Kind;

const PACE: Duration = Duration::from_millis(100);
/// Ranges that are held, of [`BYTES`] each.
const HELD: u64 = 4;
const BYTES: u64 = 100;
const LOCK: u32 = 2;
const UNLOCK: u32 = 4;
const GRANTED: u32 = 0;
const DENIED: u32 = 1;
/// It is not granted because there is no space to remember it; whether it is held is not known.
const DENIED_NOLOCKS: u32 = 2;
const HOLDER: u32 = 1;
const RIVAL: u32 = 2;

/// See the module's head.
pub struct Locks {
    shared: Arc<Shared>,
    file: Fh,
    answered: Arc<AtomicU64>,
    hard: Hard,
}

impl Locks {
    /// On this file.
    pub fn new(shared: &Arc<Shared>, file: Fh, answered: Arc<AtomicU64>) -> Locks {
        Locks {
            shared: shared.clone(),
            file,
            answered,
            hard: Hard::new(shared),
        }
    }

    /// Until the load ends.
    pub fn run(mut self) {
        if let Err(failure) = self.all() {
            self.shared.failed("locks", failure);
        }
    }

    /// Tries to get a lock that a program beside the load holds, until the load ends.
    pub fn contend(mut self) {
        while self.shared.goes_on() {
            let what = "a lock that a program beside holds";
            if let Err(failure) = self.expect(LOCK, RIVAL, 0, DENIED, what) {
                return self.shared.failed(what, failure);
            }
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
    }

    fn all(&mut self) -> Result<(), Failure> {
        for n in 0..HELD {
            self.expect(LOCK, HOLDER, n, GRANTED, "the first lock")?;
        }
        while self.shared.goes_on() {
            let asked = self.shared.asked.load(Ordering::Acquire);
            for n in 0..HELD {
                self.expect(LOCK, RIVAL, n, DENIED, "a lock that another holds")?;
            }
            self.expect(LOCK, RIVAL, HELD, GRANTED, "a free lock")?;
            self.expect(LOCK, HOLDER, HELD, DENIED, "a lock just taken")?;
            self.expect(UNLOCK, RIVAL, HELD, GRANTED, "giving it back")?;
            self.answered.store(asked, Ordering::Release);
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
        for n in 0..HELD {
            self.expect(UNLOCK, HOLDER, n, GRANTED, "giving back at the end")?;
            self.expect(LOCK, RIVAL, n, GRANTED, "a lock given back")?;
            self.expect(UNLOCK, RIVAL, n, GRANTED, "giving back at the end")?;
        }
        Ok(())
    }

    fn expect(
        &mut self,
        procedure: u32,
        owner: u32,
        range: u64,
        expected: u32,
        what: &str,
    ) -> Result<(), Failure> {
        let lock = Lock {
            caller: b"load".to_vec(),
            handle: self.file.clone(),
            owner: format!("{owner}@load").into_bytes(),
            svid: owner,
            offset: range * BYTES,
            len: BYTES,
        };
        let args = |e: &mut Enc| {
            e.opaque(b"cookie");
            if procedure == LOCK {
                // Do not wait; exclusive.
                e.bool(false).bool(true);
            }
            lock.put(e);
            if procedure == LOCK {
                // Not reclaimed; state of the status monitor.
                e.bool(false).u32(1);
            }
        };
        let status = loop {
            let mut d = self.hard.call((PROGRAM, VERSION, procedure), &args)?;
            let status = d.opaque(64).and_then(|_| d.u32());
            let status = status.map_err(|e| Failure::Rpc(e.to_string()))?;
            self.shared.counts.locks.fetch_add(1, Ordering::Relaxed);
            // Again, as its own owner may: it comes to the same.
            if !self.shared.no_space(status, DENIED_NOLOCKS) {
                break status;
            }
        };
        if status != expected {
            let words = format!(
                "{what}: owner {owner}, range {range}: status {status} instead of {expected}"
            );
            self.shared.findings.add(Kind::Lock, words);
        }
        Ok(())
    }
}
