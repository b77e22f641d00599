//! `trivet volume`: makes volumes, also out of what is left of one.

mod recover;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use trivet_cluster::{VolumeFile, create};
use trivet_protocol::MemberKind;

use super::downstairs::failed;
use crate::error::CliError;
use crate::output::{self, Format};
use crate::size::Size;

use super::cluster::ClusterArgs;
use super::{volume_in_cluster, volume_ops};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Show the volumes of the cluster
    #[command(visible_alias = "l")]
    List(volume_ops::ListArgs),
    /// Make a volume: on the nodes of the cluster, or, given pools, in pools of this machine
    #[command(visible_alias = "c")]
    Create(CreateArgs),
    /// Enlarge a volume and its file system, while in use
    #[command(alias = "grow")]
    Resize(volume_ops::ResizeArgs),
    /// Throw a volume away, with all that is in it
    #[command(visible_alias = "d")]
    Delete(volume_ops::DeleteArgs),
    /// Make a new volume out of one region, when most members of its volume are gone for ever
    Recover(recover::RecoverArgs),
}

/// Of what size, and where.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Its name in the configuration; or, with --pool, the file that describes it, to be made
    #[arg(value_name = "NAME|FILE")]
    file: PathBuf,
    /// Size, such as 100G; regions are thin and take space as they are written
    #[arg(long)]
    size: Size,
    /// The nodes that shall keep its replicas [default: the first three that can]
    #[arg(
        long,
        value_name = "NODE[:POOL],..",
        value_delimiter = ',',
        conflicts_with = "pools"
    )]
    nodes: Vec<String>,
    #[command(flatten)]
    places: Places,
}

/// Where a volume's members are to be kept on this machine.
#[derive(Debug, Args)]
pub struct Places {
    /// Directory of a pool of this machine; give three, or two and a witness (they are made where
    /// missing)
    #[arg(long = "pool", value_name = "DIR")]
    pools: Vec<PathBuf>,
    /// Directory of a pool for a witness, which votes and keeps no data
    #[arg(long, value_name = "DIR")]
    witness: Option<PathBuf>,
}

impl Places {
    /// A new volume of this size there.
    fn volume(&self, bytes: u64) -> Result<VolumeFile, CliError> {
        let needed = if self.witness.is_some() { 2 } else { 3 };
        if self.pools.len() != needed {
            let given = self.pools.len();
            return Err(
                CliError::usage(format_args!("{given} pools for replicas were given"))
                    .hint("give --pool three times, or twice and --witness once"),
            );
        }
        let mut pools = Vec::new();
        let all = self.pools.iter().chain(&self.witness);
        for (node, pool) in ["a", "b", "c"].into_iter().zip(all) {
            let absolute = std::path::absolute(pool)
                .map_err(|e| CliError::failed(format_args!("{}: {e}", pool.display())))?;
            if pools
                .iter()
                .any(|(_, p): &(String, PathBuf)| *p == absolute)
            {
                return Err(
                    CliError::usage(format_args!("{} is given twice", pool.display()))
                        .hint("each member needs a pool of its own"),
                );
            }
            pools.push((node.to_owned(), absolute));
        }
        let witness = pools.split_off(needed);
        let mut volume = VolumeFile::new(bytes, pools).map_err(|e| failed(&e))?;
        for (node, pool) in witness {
            volume = volume.with_witness(node, pool);
        }
        Ok(volume)
    }
}

#[derive(Debug, Serialize)]
struct Made {
    volume: String,
    bytes: u64,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    id: String,
    node: String,
    kind: MemberKind,
    pool: PathBuf,
}

/// Does it.
///
/// # Errors
/// What to tell the person who asked.
pub fn run(args: Volume, format: Format) -> Result<(), CliError> {
    match args {
        Volume::Create(args) if args.places.pools.is_empty() => {
            let name = args.file.to_string_lossy();
            volume_in_cluster::create(&args.cluster, &name, args.size, &args.nodes, format)
        }
        Volume::Create(args) => create_volume(&args, format),
        Volume::List(args) => volume_ops::list(&args, format),
        Volume::Resize(args) => volume_ops::resize(&args, format),
        Volume::Delete(args) => volume_ops::delete(&args, format),
        Volume::Recover(args) => recover::run(&args, format),
    }
}

fn create_volume(args: &CreateArgs, format: Format) -> Result<(), CliError> {
    if args.places.pools.is_empty() {
        let name = args.file.to_string_lossy();
        return volume_in_cluster::create(&args.cluster, &name, args.size, &args.nodes, format);
    }
    let volume = args.places.volume(args.size.bytes())?;
    let volume = create(&args.file, volume).map_err(|e| failed(&e))?;
    output::print(format, &made(&volume), |m| text(m, &args.file))
}

fn made(volume: &VolumeFile) -> Made {
    let member = |p: &trivet_cluster::Place| Member {
        id: p.id.to_string(),
        node: p.node.clone(),
        kind: p.kind,
        pool: p.pool.clone(),
    };
    Made {
        volume: volume.volume.to_string(),
        bytes: volume.blocks * trivet_protocol::BLOCK_BYTES as u64,
        members: volume.member.iter().map(member).collect(),
    }
}

fn text(made: &Made, file: &Path) -> String {
    let mut text = format!(
        "volume {} of {} bytes, described in {}\nserve its members with:\n",
        made.volume,
        made.bytes,
        file.display()
    );
    for (i, m) in made.members.iter().enumerate() {
        text.push_str(&format!(
            "  trivet downstairs run --listen 127.0.0.1:{} --pool {}\n",
            7100 + i,
            m.pool.display()
        ));
    }
    text
}
