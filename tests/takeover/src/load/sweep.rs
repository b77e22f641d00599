//! Reads everything, over and over, and compares it with what was acknowledged: a block holds the
//! newest number acknowledged before it was read, or a later one that was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trivet_nfs::client::nfs::get_post;
use trivet_nfs::xdr::{Dec, XdrResult};

use super::blocks::{BLOCK, Ledger, number};
use super::hard::{Failure, Hard};
use super::{Shared, status_of};
use crate::findings::Kind;

/// Between two reads while nobody waits for the end.
const PACE: Duration = Duration::from_millis(10);
const READ: u32 = 6;

/// See the module's head.
pub struct Sweep {
    shared: Arc<Shared>,
    ledgers: Vec<Arc<Ledger>>,
    answered: Arc<AtomicU64>,
    hard: Hard,
}

impl Sweep {
    /// Of these files.
    pub fn new(shared: &Arc<Shared>, ledgers: Vec<Arc<Ledger>>, answered: Arc<AtomicU64>) -> Sweep {
        Sweep {
            shared: shared.clone(),
            ledgers,
            answered,
            hard: Hard::new(shared),
        }
    }

    /// Until the load ends.
    pub fn run(mut self) {
        loop {
            // Asked for before this round begins, or it does not count.
            let asked = self.shared.asked.load(Ordering::Acquire);
            let waited_for = asked > self.answered.load(Ordering::Acquire);
            if let Err(failure) = self.round(waited_for) {
                self.shared.failed("reading all", failure);
                return;
            }
            self.answered.fetch_max(asked, Ordering::AcqRel);
            if !self.shared.goes_on() {
                return;
            }
        }
    }

    fn round(&mut self, waited_for: bool) -> Result<(), Failure> {
        for ledger in &self.ledgers {
            for block in 0..ledger.blocks() {
                if !self.shared.goes_on() {
                    return Ok(());
                }
                check_block(&mut self.hard, &self.shared, ledger, block)?;
                let asked = self.shared.asked.load(Ordering::Acquire);
                if !waited_for && asked == self.answered.load(Ordering::Acquire) {
                    // A rate, not a race.
                    std::thread::sleep(PACE);
                }
            }
        }
        Ok(())
    }
}

/// Reads everything when nobody writes any more: each block holds exactly what was acknowledged
/// last.
pub fn exactly(shared: &Arc<Shared>, ledgers: &[Arc<Ledger>]) {
    let mut hard = Hard::new(shared);
    for ledger in ledgers {
        for block in 0..ledger.blocks() {
            if let Err(failure) = check_block(&mut hard, shared, ledger, block) {
                shared.failed("the last look", failure);
                return;
            }
        }
    }
}

/// Reads one block and compares it.
///
/// # Errors
/// [`Failure`]; a block that is wrong goes to the findings.
pub fn check_block(
    hard: &mut Hard,
    shared: &Shared,
    ledger: &Ledger,
    block: u64,
) -> Result<(), Failure> {
    let least = ledger.acknowledged(block);
    let fh = ledger.fh.clone();
    let answer = status_of(hard, READ, &|e| {
        e.opaque(&fh).u64(block * BLOCK as u64).u32(BLOCK as u32);
    })?;
    let what = format!("{} block {block}", ledger.name);
    let mut d = match answer {
        Ok(d) => d,
        Err(status) => {
            shared
                .findings
                .status(status, false, format!("READ of {what}"));
            return Ok(());
        }
    };
    let data = get_read(&mut d).map_err(|e| Failure::Rpc(e.to_string()))?;
    let most = ledger.sent(block);
    shared.counts.reads.fetch_add(1, Ordering::Relaxed);
    match number(ledger.file, block, &data) {
        Ok(n) if n >= least && n <= most => {}
        Ok(n) => shared.findings.add(
            Kind::Lost,
            format!("{what} holds number {n}; {least} was acknowledged, {most} sent"),
        ),
        Err(why) => shared.findings.add(
            Kind::Lost,
            format!("{what}, of which {least} was acknowledged: {why}"),
        ),
    }
    Ok(())
}

/// The data of a READ's answer; short at the end of a file.
pub fn get_read(d: &mut Dec) -> XdrResult<Vec<u8>> {
    get_post(d)?;
    d.u32()?;
    d.bool()?;
    let mut data = d.opaque(BLOCK as u32)?;
    data.resize(BLOCK, 0);
    Ok(data)
}
