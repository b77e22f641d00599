//! `trivet fsck`: proves that a volume's file system is whole. Reads only.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use trivet_cluster::{Embedded, Options};

use super::downstairs::failed as cluster_failed;
use crate::error::CliError;
use crate::output::{self, Format};

/// Which one.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Directory of the three replicas, as `up` was given
    #[arg(value_name = "DIR", default_value = "var/trivet")]
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct Checked {
    clean: bool,
    problems: u64,
    findings: Vec<String>,
    files: u64,
    directories: u64,
    others: u64,
    data_blocks: u64,
    pages: u64,
    items: u64,
}

/// Checks and reports.
///
/// # Errors
/// The volume cannot be opened (is it in use?), holds no file system, or holds a damaged one.
pub fn run(args: &FsckArgs, format: Format) -> Result<(), CliError> {
    let embedded = Embedded::open(&args.dir, Options::default()).map_err(|e| cluster_failed(&e))?;
    let checked = trivet_fs::fsck(&*embedded.volume());
    let closed = embedded.close();
    let report = checked.map_err(|e| CliError::failed(format_args!("file system: {e}")))?;
    closed.map_err(|e| cluster_failed(&e))?;
    let checked = Checked {
        clean: report.is_clean(),
        problems: report.problems,
        findings: report.findings.iter().map(ToString::to_string).collect(),
        files: report.files,
        directories: report.dirs,
        others: report.others,
        data_blocks: report.data_blocks,
        pages: report.pages,
        items: report.items,
    };
    output::print(format, &checked, |_| format!("{report}\n"))?;
    match report.is_clean() {
        true => Ok(()),
        false => Err(CliError::failed(format_args!(
            "the file system in {} has {} problems",
            args.dir.display(),
            report.problems
        ))
        .hint("copy out what can be read; each problem names what it concerns")),
    }
}
