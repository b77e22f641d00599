//! Unstable writes and COMMIT, as a client's page cache makes them: what was written is sent again
//! if the verifier of COMMIT is another than that of a write (invariant 9).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trivet_bench::rng::Rng;
use trivet_nfs::client::nfs::{get_wcc, put_write};

use super::blocks::{BLOCK, Ledger, content};
use super::hard::{Failure, Hard};
use super::reigns::Verifier;
use super::writer::get_written;
use super::{NOSPC, Shared, status_of};
use crate::findings::Kind;

const PACE: Duration = Duration::from_millis(20);
/// Blocks between two COMMITs.
const RUN: u64 = 16;
const WRITE: u32 = 7;
const COMMIT: u32 = 21;
const UNSTABLE: u32 = 0;

/// See the module's head.
pub struct Unstable {
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    hard: Hard,
    rng: Rng,
}

impl Unstable {
    /// Of this file.
    pub fn new(shared: &Arc<Shared>, ledger: &Arc<Ledger>, seed: u64) -> Unstable {
        Unstable {
            shared: shared.clone(),
            ledger: ledger.clone(),
            hard: Hard::new(shared),
            rng: Rng::new(seed),
        }
    }

    /// Until the load ends.
    pub fn run(mut self) {
        while self.shared.goes_on() {
            let first = self.rng.below(self.ledger.blocks() / RUN) * RUN;
            let run: Vec<(u64, u64)> = (first..first + RUN)
                .map(|b| (b, self.ledger.send(b)))
                .collect();
            if let Err(failure) = self.write_until_committed(&run) {
                self.shared.failed(&self.ledger.name, failure);
                return;
            }
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
    }

    fn write_until_committed(&mut self, run: &[(u64, u64)]) -> Result<(), Failure> {
        loop {
            let mut verifiers = Vec::new();
            for (block, number) in run {
                match self.write(*block, *number)? {
                    Some(v) => verifiers.push(v),
                    None => return Ok(()),
                }
            }
            let Some(committed) = self.commit()? else {
                return Ok(());
            };
            if verifiers.iter().all(|v| *v == committed) {
                for (block, number) in run {
                    self.ledger.acknowledge(*block, *number);
                }
                return Ok(());
            }
            self.shared.counts.resent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The verifier; `None`: refused for lack of space, or a finding.
    fn write(&mut self, block: u64, number: u64) -> Result<Option<Verifier>, Failure> {
        let data = content(self.ledger.file, block, number);
        let known = self.shared.reigns.count();
        let fh = self.ledger.fh.clone();
        let answer = status_of(&mut self.hard, WRITE, &|e| {
            put_write(e, &fh, block * BLOCK as u64, &data, UNSTABLE);
        })?;
        let what = format!("unstable WRITE of block {block}");
        let mut d = match answer {
            Ok(d) => d,
            Err(status) => {
                if !self.shared.no_space(status, NOSPC) {
                    self.shared.findings.status(status, false, what);
                }
                return Ok(None);
            }
        };
        let (count, _, verifier) = get_written(&mut d).map_err(|e| Failure::Rpc(e.to_string()))?;
        if count as usize != BLOCK {
            let words = format!("{what}: {count} bytes");
            self.shared.findings.add(Kind::Answer, words);
            return Ok(None);
        }
        self.in_order(known, verifier, &what);
        Ok(Some(verifier))
    }

    fn commit(&mut self) -> Result<Option<Verifier>, Failure> {
        let known = self.shared.reigns.count();
        let fh = self.ledger.fh.clone();
        let answer = status_of(&mut self.hard, COMMIT, &|e| {
            e.opaque(&fh).u64(0).u32(0);
        })?;
        match answer {
            Ok(mut d) => {
                let parsed = get_wcc(&mut d).and_then(|_| d.fixed());
                let verifier = parsed.map_err(|e| Failure::Rpc(e.to_string()))?;
                self.in_order(known, verifier, "COMMIT");
                Ok(Some(verifier))
            }
            Err(status) => {
                if !self.shared.no_space(status, NOSPC) {
                    self.shared.findings.status(status, false, "COMMIT".into());
                }
                Ok(None)
            }
        }
    }

    fn in_order(&self, known: usize, verifier: Verifier, what: &str) {
        if let Err((old, newest)) = self.shared.reigns.answered(known, verifier) {
            let words = format!("{what}: answered by reign {old} after reign {newest} had");
            self.shared.findings.add(Kind::TwoActive, words);
        }
    }
}
