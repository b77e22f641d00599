//! `trivet region`: one replica's directory, offline and alone.
//!
//! None of these needs a daemon, and none runs beside one that uses the same region. `create` and
//! `import` never write over anything; the others change nothing in the region.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use trivet_downstairs::offline::{self, ExportOptions, ImportOptions};
use trivet_downstairs::{Region, StoreError};
use trivet_protocol::{BLOCK_BYTES, MemberId, VolumeId};
use uuid::Uuid;

use crate::error::CliError;
use crate::output::{self, Format};

/// What to do with a region.
#[derive(Debug, Subcommand)]
pub enum RegionCmd {
    /// Make an empty region
    Create(CreateArgs),
    /// Make a region of a raw or sparse file; holes stay holes
    Import(ImportArgs),
    /// Write a region's content to a plain file, to the byte
    Export(ExportArgs),
    /// Read everything and compare it with its checksums
    Verify(DirArg),
    /// Show identity, head, generations, log records and extents
    Dump(DirArg),
}

#[derive(Debug, Args)]
pub struct DirArg {
    /// Directory of the region
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Identity {
    /// Volume that it is a replica of [default: a new one]
    #[arg(long, value_name = "UUID")]
    volume: Option<Uuid>,
    /// Its own identity among the members [default: a new one]
    #[arg(long, value_name = "UUID")]
    member: Option<Uuid>,
    /// MiB of log [default: 128]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(8..=16_384))]
    log: Option<u64>,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Directory of the region; made if need be
    dir: PathBuf,
    /// Size of the volume: bytes, or with K, M, G, T for powers of 1024
    #[arg(long, value_parser = parse_size)]
    size: u64,
    #[command(flatten)]
    identity: Identity,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file or block device to read
    file: PathBuf,
    /// Directory of the region; made if need be
    dir: PathBuf,
    /// Size of the volume, if larger than the file
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    #[command(flatten)]
    identity: Identity,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Directory of the region
    dir: PathBuf,
    /// The file to make
    file: PathBuf,
    /// Export also what is damaged, does not verify or was amid a resync, as well as can be
    #[arg(long)]
    forensic: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("\"{text}\" is no size; write for example 100G"))?;
    number
        .checked_mul(1 << shift)
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("\"{text}\" is out of range"))
}

#[derive(Serialize)]
struct Made {
    volume: VolumeId,
    member: MemberId,
    blocks: u64,
    written_blocks: u64,
}

#[derive(Serialize)]
struct Exported {
    bytes: u64,
    written_blocks: u64,
    bad_blocks: u64,
}

#[derive(Serialize)]
struct Verified {
    sound: bool,
    written_blocks: u64,
    log_end: String,
    mixed: bool,
    damaged: bool,
    problems: u64,
    first_problems: Vec<String>,
}

/// Does it.
///
/// # Errors
/// What went wrong, to what, what next.
pub fn run(command: RegionCmd, format: Format) -> Result<(), CliError> {
    match command {
        RegionCmd::Create(args) => create(&args, format),
        RegionCmd::Import(args) => import(&args, format),
        RegionCmd::Export(args) => export(&args, format),
        RegionCmd::Verify(args) => verify(&args.dir, format),
        RegionCmd::Dump(args) => dump(&args.dir),
    }
}

fn failed(e: StoreError) -> CliError {
    CliError::failed(e)
}

/// A bar on standard error; none where that is no terminal.
pub(super) fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let shape = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

pub(super) fn told(bar: &ProgressBar) -> impl FnMut(u64, u64) {
    let bar = bar.clone();
    move |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    }
}

fn made(format: Format, region: &Region, written_blocks: u64) -> Result<(), CliError> {
    let made = Made {
        volume: region.volume,
        member: region.member,
        blocks: region.blocks,
        written_blocks,
    };
    output::print(format, &made, |m| {
        format!(
            "region {} of volume {}: {} blocks, {} written\n",
            m.member, m.volume, m.blocks, m.written_blocks
        )
    })
}

fn create(args: &CreateArgs, format: Format) -> Result<(), CliError> {
    let id = &args.identity;
    let mut region = Region::new(
        id.volume.map_or_else(VolumeId::random, VolumeId),
        id.member.map_or_else(MemberId::random, MemberId),
        args.size.div_ceil(BLOCK_BYTES as u64),
    );
    region.log_bytes = id.log.map_or(region.log_bytes, |mib| mib << 20);
    offline::create(&args.dir, &region).map_err(failed)?;
    made(format, &region, 0)
}

fn import(args: &ImportArgs, format: Format) -> Result<(), CliError> {
    let id = &args.identity;
    let options = ImportOptions {
        volume: id.volume.map(VolumeId),
        member: id.member.map(MemberId),
        bytes: args.size,
        log_bytes: id.log.map(|mib| mib << 20),
    };
    let bar = bar("importing");
    let done = offline::import(&args.file, &args.dir, &options, &mut told(&bar));
    bar.finish_and_clear();
    let done = done.map_err(|e| {
        failed(e).hint("remove the region's directory before trying again, if it was made")
    })?;
    made(format, &done.region, done.written_blocks)
}

fn export(args: &ExportArgs, format: Format) -> Result<(), CliError> {
    let bar = bar("exporting");
    let options = ExportOptions {
        forensic: args.forensic,
    };
    let done = offline::export(&args.dir, &args.file, options, &mut told(&bar));
    bar.finish_and_clear();
    let done = done.map_err(failed)?;
    let done = Exported {
        bytes: done.bytes,
        written_blocks: done.written_blocks,
        bad_blocks: done.bad_blocks,
    };
    output::print(format, &done, |d| {
        let bad = match d.bad_blocks {
            0 => String::new(),
            n => format!(", {n} blocks BAD"),
        };
        format!(
            "{} bytes, {} blocks written{bad}\n",
            d.bytes, d.written_blocks
        )
    })
}

fn verify(dir: &Path, format: Format) -> Result<(), CliError> {
    let bar = bar("verifying");
    let found = offline::verify(dir, &mut told(&bar));
    bar.finish_and_clear();
    let found = found.map_err(failed)?;
    let result = Verified {
        sound: found.is_sound(),
        written_blocks: found.written_blocks,
        log_end: format!("{:?}", found.tail),
        mixed: found.mixed,
        damaged: found.damaged,
        problems: found.problem_count,
        first_problems: found.problems.iter().map(|p| format!("{p:?}")).collect(),
    };
    output::print(format, &result, |r| {
        let mut text = format!(
            "{} blocks written, end of the log {}\n",
            r.written_blocks, r.log_end
        );
        for p in &r.first_problems {
            text.push_str(&format!("  {p}\n"));
        }
        text.push_str(if r.sound { "sound\n" } else { "NOT sound\n" });
        text
    })?;
    match result.sound {
        true => Ok(()),
        false => Err(CliError::failed(format_args!(
            "region {} is not sound: {} problems, mixed {}, damaged {}",
            dir.display(),
            result.problems,
            result.mixed,
            result.damaged
        ))
        .hint("export another replica, or let a resync rebuild this one")),
    }
}

fn dump(dir: &Path) -> Result<(), CliError> {
    let mut text = Vec::new();
    offline::dump(dir, &mut text).map_err(failed)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&text)
        .and_then(|()| out.flush())
        .map_err(|e| CliError::output(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("3G"), Ok(3 << 30));
        assert_eq!(parse_size("4097"), Ok(4097));
        for bad in ["", "G", "-1", "0", "1X", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
