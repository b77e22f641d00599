//! `trivet bench`: what a volume does per second, beside what its disk and its network would
//! allow, measured in one run and taking turns.
//!
//! [`files`] and [`nfs`] do the same to any directory and any NFS server, of whomever.
//!
//! Four parts that know nothing of each other: [`load`] drives any [`Volume`] and times it,
//! [`limit`] measures what it is compared with, [`meter`] counts processor time and disk bytes of
//! the processes involved, and [`suite`] puts them together into the table of named workloads.
//! Other scenarios (a replica dead, a checkpoint running) are made by whoever can cause them:
//! call [`load::run`] or [`load::run_together`] around the event and look at the [`Sample`].
//!
//! Bounded by its arguments: time, bytes and depth are stated in each [`load::Load`]; a volume
//! that completes nothing for [`load::STALLED`] ends the run with an error.

pub mod files;
pub mod histogram;
pub mod limit;
pub mod load;
pub mod meter;
pub mod nfs;
pub mod report;
pub mod rng;
pub mod suite;

pub use load::{Load, Sample};
pub use report::{Report, ResultRow};
pub use suite::{Subject, Suite, Workload};

#[cfg(doc)]
use trivet_replica::Volume;
use trivet_replica::VolumeError;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The volume refused or failed.
    #[error("the volume failed under load: {0}")]
    Volume(#[from] VolumeError),
    /// Nothing completed for [`load::STALLED`].
    #[error("the volume has completed nothing for {0:?}")]
    Stalled(std::time::Duration),
    /// A file or socket of the limit, or something in `/proc`, failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The area does not fit the volume, or a number is zero that must not be.
    #[error("this load makes no sense: {0}")]
    BadLoad(String),
    /// The person asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    fn io(doing: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> BenchError {
        let doing = doing.to_string();
        move |source| BenchError::Io { doing, source }
    }
}
