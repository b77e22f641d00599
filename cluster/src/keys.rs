//! Keys for hosts on one machine, for measurements and tests: what `trivet key new` and a person
//! with an editor do elsewhere.

use std::path::{Path, PathBuf};

use trivet_transport::{Entry, Identity, PeerSet, Peers, Role, Security};

use crate::error::{ClusterError, Result};

/// Somebody's key, and the list in which all of them are.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// Name in the list.
    pub name: String,
    /// The file with the secret half.
    pub key: PathBuf,
    /// The file with the list.
    pub peers: PathBuf,
}

impl KeyFiles {
    /// Makes a key for each in `dir` (`NAME.key`), and `peers.toml` with all of them.
    ///
    /// # Errors
    /// A key exists, or the disk fails.
    pub fn make(dir: &Path, who: &[(&str, Role)]) -> Result<Vec<KeyFiles>> {
        std::fs::create_dir_all(dir).map_err(ClusterError::io("create", dir))?;
        let peers = dir.join("peers.toml");
        let (mut files, mut entries) = (Vec::new(), Vec::new());
        for (name, role) in who {
            let key = dir.join(format!("{name}.key"));
            let identity = Identity::generate()?;
            identity.save_new(&key)?;
            entries.push(Entry {
                name: (*name).to_owned(),
                role: *role,
                key: identity.public(),
            });
            files.push(KeyFiles {
                name: (*name).to_owned(),
                key,
                peers: peers.clone(),
            });
        }
        PeerSet::save(&peers, entries)?;
        Ok(files)
    }

    /// Ready to connect or listen with.
    ///
    /// # Errors
    /// A file is gone or damaged.
    pub fn security(&self) -> Result<Security> {
        let peers = Peers::new(PeerSet::load(&self.peers)?);
        Ok(Security::tls(Identity::load(&self.key)?, peers)?)
    }
}
