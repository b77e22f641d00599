//! `trivet key`: makes the key that a node is known by, and shows its public form. Also the
//! arguments of every command that uses one.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use trivet_transport::{Identity, PeerSet, Peers, Security, TransportError};

use crate::error::CliError;
use crate::output::{self, Format};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key in a new file, readable by its owner only, and print its public form
    New(NewArgs),
    /// Print the public form of a key: what the other nodes list
    Show(ShowArgs),
}

/// Where.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The file to be made; one that exists is never overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Which.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Who this is, and who the others are.
#[derive(Debug, Args)]
pub struct IdentityArgs {
    /// This node's key (`trivet key new`); without one, loopback addresses only
    #[arg(long, value_name = "FILE", requires = "peers")]
    key: Option<PathBuf>,
    /// TOML file with a [[peer]] of name, role (node, exporter, operator) and key for everybody
    /// who may connect, this node included
    #[arg(long, value_name = "FILE", requires = "key")]
    peers: Option<PathBuf>,
}

impl IdentityArgs {
    /// What connections are to be protected with.
    ///
    /// # Errors
    /// A file is missing or makes no sense.
    pub fn security(&self) -> Result<Security, TransportError> {
        let (Some(key), Some(peers)) = (&self.key, &self.peers) else {
            return Ok(Security::Plain);
        };
        let identity = Identity::load(key)?;
        Security::tls(identity, Peers::new(PeerSet::load(peers)?))
    }

    /// Puts the list in force as it is now in its file.
    ///
    /// # Errors
    /// The file is missing or makes no sense: nothing has changed.
    pub fn reload(&self, security: &Security) -> Result<(), TransportError> {
        if let (Some(path), Security::Tls(tls)) = (&self.peers, security) {
            tls.peers().replace(PeerSet::load(path)?);
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    public: String,
}

/// Does it.
///
/// # Errors
/// What to tell the person who asked.
pub fn run(args: Key, format: Format) -> Result<(), CliError> {
    let identity = match args {
        Key::New(args) => make(&args.out),
        Key::Show(args) => Identity::load(&args.file),
    };
    let identity = identity.map_err(CliError::failed)?;
    let public = identity.public().to_string();
    output::print(format, &Shown { public }, |s| format!("{}\n", s.public))
}

fn make(path: &Path) -> Result<Identity, TransportError> {
    let identity = Identity::generate()?;
    identity.save_new(path)?;
    Ok(identity)
}
