//! Making things durable, off the owner's lock.

use std::sync::Arc;

use trivet_protocol::Seq;
use trivet_protocol::breaks::{self, Break};

use super::{Shared, Store};
use crate::error::Result;
use crate::extent::ExtentFile;

/// A sync to be run: what it covers was fixed when it began.
pub struct SyncJob {
    shared: Arc<Shared>,
    files: Vec<Arc<ExtentFile>>,
    upto: Seq,
    end: u64,
    epoch: u64,
}

/// Proof that a [`SyncJob`] ran to its end without an error. Only [`SyncJob::run`] makes one.
#[derive(Debug)]
pub struct Synced(());

impl SyncJob {
    /// Last operation that it will make durable.
    pub fn upto(&self) -> Seq {
        self.upto
    }

    /// Syncs: data written in place first, then the log that vouches for it.
    ///
    /// # Errors
    /// The first failure; nothing is tried again.
    pub fn run(&self) -> Result<Synced> {
        if breaks::on(Break::SyncSkipped) {
            return Ok(Synced(()));
        }
        for file in &self.files {
            self.shared.extents.sync(file)?;
        }
        self.shared.extents.sync_names()?;
        self.shared.log.sync()?;
        Ok(Synced(()))
    }
}

impl Store {
    /// Begins a sync of everything appended so far. Several may be under way.
    ///
    /// # Errors
    /// The store is poisoned.
    pub fn begin_sync(&mut self) -> Result<SyncJob> {
        self.usable()?;
        self.write_held()?;
        Ok(SyncJob {
            shared: Arc::clone(&self.shared),
            files: self.dirty.values().map(|(f, _)| Arc::clone(f)).collect(),
            upto: self.end().seq,
            end: self.end,
            epoch: self.epoch,
        })
    }

    /// Takes a sync's result; returns the last durable operation.
    ///
    /// # Errors
    /// The sync's own; the store is poisoned from then on.
    pub fn finish_sync(&mut self, job: SyncJob, result: Result<Synced>) -> Result<Seq> {
        match result {
            Err(e) => Err(self.poisoned_by(e)),
            // A failure of another sync may have dropped pages that this one then found clean.
            Ok(Synced(())) if self.poison.is_some() => Ok(self.durable),
            Ok(Synced(())) => {
                self.shared.recorder.count("downstairs.log.syncs", 1);
                // After a cut the job's end is of another history; what it synced is durable by
                // the cut's own sync.
                if job.epoch == self.epoch {
                    self.synced_to = self.synced_to.max(job.end);
                    self.durable = self.durable.max(job.upto);
                    self.dirty.retain(|_, (_, record)| *record >= job.end);
                }
                Ok(self.durable)
            }
        }
    }

    /// Syncs in one go, for callers that have nothing else to do meanwhile.
    ///
    /// # Errors
    /// As [`Store::finish_sync`].
    pub fn sync(&mut self) -> Result<Seq> {
        let job = self.begin_sync()?;
        let result = job.run();
        self.finish_sync(job, result)
    }
}
