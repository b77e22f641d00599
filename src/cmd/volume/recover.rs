//! `trivet volume recover`: a new volume out of one region. Offline; says what may be missing, and
//! does nothing unless told `--yes`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use trivet_downstairs::offline::{self, Assessment};
use trivet_protocol::BLOCK_BYTES;

use super::{Places, failed, made};
use crate::cmd::region::{bar, told};
use crate::error::CliError;
use crate::output::{self, Format};

/// Out of what, into what.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The file that describes the new volume, to be made
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Directory of the region to make it of; it is only read
    #[arg(long, value_name = "REGION")]
    from: PathBuf,
    #[command(flatten)]
    places: Places,
    /// Take also what is damaged, does not verify or was amid a resync, as well as can be
    #[arg(long)]
    forensic: bool,
    /// Do it: without this, only says what may be missing
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    volume: String,
    member: String,
    bytes: u64,
    last_operation: u64,
    last_generation: u64,
    known_committed: u64,
    may_be_missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Done {
    found: Found,
    new: super::Made,
    written_blocks: u64,
    bad_blocks: u64,
}

/// Does it.
///
/// # Errors
/// What to tell the person who asked.
pub fn run(args: &RecoverArgs, format: Format) -> Result<(), CliError> {
    let assessed = offline::assess(&args.from).map_err(CliError::failed)?;
    let found = found(&assessed);
    if !args.yes {
        output::print(format, &found, text)?;
        return Err(CliError::usage("nothing was done").hint(
            "if the other members of the old volume are gone for ever, add --yes; if any of them \
             may come back, wait for it: two volumes that both go on cannot be joined again",
        ));
    }
    let volume = args.places.volume(assessed.blocks * BLOCK_BYTES as u64)?;
    let bar = bar("recovering");
    let done = trivet_cluster::recover(
        &args.from,
        &args.file,
        &volume,
        args.forensic,
        &mut told(&bar),
    );
    bar.finish_and_clear();
    let done = done.map_err(|e| failed(&e))?;
    let done = Done {
        found,
        new: made(&volume),
        written_blocks: done.written_blocks,
        bad_blocks: done.bad_blocks,
    };
    output::print(format, &done, |d| {
        let bad = match d.bad_blocks {
            0 => String::new(),
            n => format!(", {n} blocks BAD and left as zeros"),
        };
        format!(
            "{}recovered {} written blocks{bad}\n{}",
            text(&d.found),
            d.written_blocks,
            super::text(&d.new, &args.file)
        )
    })
}

fn found(a: &Assessment) -> Found {
    Found {
        volume: a.volume.to_string(),
        member: a.member.to_string(),
        bytes: a.blocks * BLOCK_BYTES as u64,
        last_operation: a.end.seq.0,
        last_generation: a.end.generation,
        known_committed: a.commit,
        may_be_missing: a.may_be_missing.clone(),
    }
}

fn text(found: &Found) -> String {
    let mut text = format!(
        "region {} of volume {}: {} bytes, last operation {} of generation {}, known to be durable \
         to {}\n",
        found.member,
        found.volume,
        found.bytes,
        found.last_operation,
        found.last_generation,
        found.known_committed
    );
    for line in &found.may_be_missing {
        text.push_str(&format!("  {line}\n"));
    }
    text
}
