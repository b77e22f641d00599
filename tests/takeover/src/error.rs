//! Why a run cannot go on. What a client should not have seen is no error: see `findings`.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// See the module's head.
#[derive(Debug, Error)]
pub enum LabError {
    /// A command of the lab's, or of `trivet`.
    #[error("{command}: {said}")]
    Command {
        /// As it was typed.
        command: String,
        /// The end of what it said.
        said: String,
    },
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A thread or a process.
    #[error("cannot start {what}: {source}")]
    Start {
        /// What.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something did not come about.
    #[error("not within {seconds} s: {what}; {last}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// What was seen last.
        last: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// This machine cannot do it.
    #[error("{0}")]
    Unable(String),
    /// The cluster's configuration.
    #[error(transparent)]
    Node(#[from] trivet_node::NodeError),
    /// A load thread's first steps.
    #[error("the load cannot start: {0}")]
    Load(String),
}

/// Result of a step.
pub type Result<T> = std::result::Result<T, LabError>;

/// An error of this file.
pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> LabError {
    let path = path.to_path_buf();
    move |source| LabError::File { path, source }
}

/// This could not be started.
pub fn start(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Start { what, source }
}
