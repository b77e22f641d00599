//! A file that grows by durable writes, is read back, cut off and grown again: all along it takes
//! new space of the pools and gives it back. While a pool is full it is refused, and tries again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trivet_nfs::client::nfs::{Fh, put_sattr, put_write};

use super::blocks::{BLOCK, content, number};
use super::hard::{Failure, Hard};
use super::sweep::get_read;
use super::{NOSPC, Shared, status_of};
use crate::findings::Kind;

const PACE: Duration = Duration::from_millis(20);
/// Its number in its blocks, which no other file has.
const FILE: u64 = 1000;
/// Blocks that it grows to.
const BLOCKS: u64 = 64;
const SETATTR: u32 = 2;
const READ: u32 = 6;
const WRITE: u32 = 7;
const FILE_SYNC: u32 = 2;

/// See the module's head.
pub struct Growth {
    shared: Arc<Shared>,
    file: Fh,
    hard: Hard,
}

impl Growth {
    /// Of this file, which is empty.
    pub fn new(shared: &Arc<Shared>, file: Fh) -> Growth {
        Growth {
            shared: shared.clone(),
            file,
            hard: Hard::new(shared),
        }
    }

    /// Until the load ends.
    pub fn run(mut self) {
        let mut round = 0;
        while self.shared.goes_on() {
            round += 1;
            if let Err(failure) = self.round(round) {
                self.shared.failed("growing a file", failure);
                return;
            }
        }
    }

    fn round(&mut self, round: u64) -> Result<(), Failure> {
        for block in 0..BLOCKS {
            if !self.shared.goes_on() {
                return Ok(());
            }
            self.write(block, round)?;
            self.shared.counts.writes.fetch_add(1, Ordering::Relaxed);
            // A rate, not a race.
            std::thread::sleep(PACE);
        }
        for block in 0..BLOCKS {
            self.check(block, round)?;
        }
        let fh = self.file.clone();
        self.until_taken(SETATTR, "cutting it off", |e| {
            e.opaque(&fh);
            put_sattr(e, None, Some(0));
            e.bool(false);
        })?;
        self.check(0, 0)
    }

    fn write(&mut self, block: u64, round: u64) -> Result<(), Failure> {
        let (fh, data) = (self.file.clone(), content(FILE, block, round));
        let what = format!("WRITE of its block {block}");
        self.until_taken(WRITE, &what, |e| {
            put_write(e, &fh, block * BLOCK as u64, &data, FILE_SYNC);
        })
    }

    /// Calls until there is space; what is called comes to the same if it is carried out twice.
    fn until_taken(
        &mut self,
        procedure: u32,
        what: &str,
        args: impl Fn(&mut trivet_nfs::xdr::Enc),
    ) -> Result<(), Failure> {
        while let Err(status) = status_of(&mut self.hard, procedure, &args)? {
            if !self.shared.no_space(status, NOSPC) {
                let words = format!("growing a file: {what}");
                self.shared.findings.status(status, false, words);
                break;
            }
        }
        Ok(())
    }

    fn check(&mut self, block: u64, round: u64) -> Result<(), Failure> {
        let fh = self.file.clone();
        let answer = status_of(&mut self.hard, READ, &|e| {
            e.opaque(&fh).u64(block * BLOCK as u64).u32(BLOCK as u32);
        })?;
        let what = format!("the growing file's block {block}");
        match answer {
            Ok(mut d) => {
                let data = get_read(&mut d).map_err(|e| Failure::Rpc(e.to_string()))?;
                self.shared.counts.reads.fetch_add(1, Ordering::Relaxed);
                let holds = number(FILE, block, &data);
                if holds != Ok(round) {
                    let words = format!("{what} holds {holds:?} instead of {round}");
                    self.shared.findings.add(Kind::Lost, words);
                }
            }
            Err(status) => (self.shared.findings).status(status, false, format!("READ of {what}")),
        }
        Ok(())
    }
}
