//! One stream of 4 KiB durable writes, one after the other, as a guest's disk makes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trivet_bench::rng::Rng;
use trivet_nfs::client::nfs::{get_wcc, put_write};
use trivet_nfs::xdr::{Dec, XdrResult};

use super::blocks::{BLOCK, Ledger, content};
use super::hard::{Failure, Hard};
use super::pulse::Pulse;
use super::reigns::Verifier;
use super::sweep::check_block;
use super::{NOSPC, Shared, nfs, split};
use crate::findings::Kind;

/// Between two writes, so that the load leaves processors to the daemons.
const PACE: Duration = Duration::from_millis(3);
/// One in so many loses its connection before the answer.
const LOSE: u64 = 400;
/// One in so many is followed by a read of some block.
const READ: u64 = 8;
const WRITE: u32 = 7;
const FILE_SYNC: u32 = 2;

/// See the module's head.
pub struct Writer {
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    pulse: Arc<Pulse>,
    hard: Hard,
    rng: Rng,
}

/// Count, how stable, verifier.
pub fn get_written(d: &mut Dec) -> XdrResult<(u32, u32, Verifier)> {
    get_wcc(d)?;
    Ok((d.u32()?, d.u32()?, d.fixed()?))
}

impl Writer {
    /// Of this file.
    pub fn new(shared: &Arc<Shared>, ledger: &Arc<Ledger>, pulse: Arc<Pulse>, seed: u64) -> Writer {
        Writer {
            shared: shared.clone(),
            ledger: ledger.clone(),
            pulse,
            hard: Hard::new(shared),
            rng: Rng::new(seed),
        }
    }

    /// On a host that may be cut off.
    pub fn on_a_host(mut self) -> Writer {
        self.hard = self.hard.on_a_host();
        self
    }

    /// Until the load ends.
    pub fn run(mut self) {
        while self.shared.goes_on() {
            if let Err(failure) = self.step() {
                self.shared.failed(&self.ledger.name, failure);
                return;
            }
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
    }

    fn step(&mut self) -> Result<(), Failure> {
        let block = self.rng.below(self.ledger.blocks());
        let number = self.ledger.send(block);
        let data = content(self.ledger.file, block, number);
        let known = self.shared.reigns.count();
        let fh = &self.ledger.fh;
        let args = |e: &mut trivet_nfs::xdr::Enc| {
            put_write(e, fh, block * BLOCK as u64, &data, FILE_SYNC);
        };
        let mut d = match self.rng.below(LOSE) {
            0 => self.hard.call_twice(nfs(WRITE), &args)?.1,
            _ => self.hard.call(nfs(WRITE), &args)?,
        };
        let what = format!(
            "WRITE of {} block {block} number {number}",
            self.ledger.name
        );
        if let Err(status) = split(&mut d)? {
            if self.shared.no_space(status, NOSPC) {
                return Ok(());
            }
            self.shared.findings.status(status, false, what);
            return Ok(());
        }
        let (count, stable, verifier) =
            get_written(&mut d).map_err(|e| Failure::Rpc(e.to_string()))?;
        if count as usize != BLOCK || stable != FILE_SYNC {
            let words = format!("{what}: {count} bytes, stable {stable}");
            self.shared.findings.add(Kind::Answer, words);
            return Ok(());
        }
        if let Err((old, newest)) = self.shared.reigns.answered(known, verifier) {
            let words = format!("{what}: answered by reign {old} after reign {newest} had");
            self.shared.findings.add(Kind::TwoActive, words);
        }
        self.ledger.acknowledge(block, number);
        self.shared.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.pulse.beat();
        if self.rng.below(READ) == 0 {
            let other = self.rng.below(self.ledger.blocks());
            check_block(&mut self.hard, &self.shared, &self.ledger, other)?;
        }
        Ok(())
    }
}
