//! `trivet pool`: directories in which a node keeps its members.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{self, Format};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum PoolCmd {
    /// Make an empty directory, best the root of a disk of its own, a pool
    Create {
        /// The directory; made if it is not there
        dir: PathBuf,
    },
}

#[derive(Debug, Serialize)]
struct Made {
    pool: PathBuf,
    id: String,
}

/// Does it.
///
/// # Errors
/// It is one already, or is not empty.
pub fn run(args: &PoolCmd, format: Format) -> Result<(), CliError> {
    let PoolCmd::Create { dir } = args;
    let pool = trivet_downstairs::pool::Pool::create(dir).map_err(CliError::failed)?;
    let made = Made {
        pool: dir.clone(),
        id: pool.id().to_string(),
    };
    output::print(format, &made, |m| {
        format!("{} is a pool, {}\n", m.pool.display(), m.id)
    })
}
