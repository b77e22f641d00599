//! What a node remembers across restarts: what is wanted of each volume, and whether it is out of
//! service. Written durably under another name first, so a crash leaves the old or the new. None
//! of it is a matter of safety: lost, it is as if no command had been given.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trivet_protocol::VolumeId;

use crate::config::{Config, MAX_NODES, MAX_VOLUMES};
use crate::error::{NodeError, Result};
use crate::messages::{NodeWish, Want, Wish};

const FILE: &str = "node.json";
/// The last good copy of the configuration: `/etc/pve` is not there before its cluster is.
pub const CONFIG_COPY: &str = "trivet.toml";
/// Bytes of the file, at most.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    drained: bool,
    #[serde(default)]
    wishes: Vec<Wish>,
    #[serde(default)]
    nodes: Vec<NodeWish>,
}

/// See the module's head.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    drained: bool,
    wishes: BTreeMap<VolumeId, Wish>,
    nodes: BTreeMap<String, NodeWish>,
}

impl State {
    /// Reads what is there; makes the directory if it is not.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub fn open(dir: &Path) -> Result<State> {
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        let path = dir.join(FILE);
        let kept = match File::open(&path) {
            Ok(f) => {
                let mut text = String::new();
                f.take(MAX_FILE)
                    .read_to_string(&mut text)
                    .map_err(io("read", &path))?;
                serde_json::from_str(&text).map_err(|e| NodeError::Config {
                    path: path.clone(),
                    why: format!("{e}; remove it, and all earlier commands are forgotten"),
                })?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(e) => return Err(io("open", &path)(e)),
        };
        Ok(State {
            dir: dir.to_path_buf(),
            drained: kept.drained,
            wishes: kept.wishes.into_iter().map(|w| (w.volume, w)).collect(),
            nodes: kept
                .nodes
                .into_iter()
                .map(|w| (w.node.clone(), w))
                .collect(),
        })
    }

    /// Where it is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the node is out of service.
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Takes it out of service, or back in.
    ///
    /// # Errors
    /// The disk.
    pub fn set_drained(&mut self, drained: bool) -> Result<()> {
        self.drained = drained;
        self.save()
    }

    /// What is wanted.
    pub fn wishes(&self) -> Vec<Wish> {
        self.wishes.values().cloned().collect()
    }

    /// What is wanted of one volume; a volume is served if nobody ever said otherwise.
    pub fn wish(&self, volume: VolumeId) -> Want {
        self.wishes
            .get(&volume)
            .map_or(Want::Served, |w| w.want.clone())
    }

    /// A new wish, by command.
    ///
    /// # Errors
    /// The disk.
    pub fn wish_for(&mut self, volume: VolumeId, want: Want) -> Result<()> {
        let number = self
            .wishes
            .get(&volume)
            .map_or(1, |w| w.number.saturating_add(1));
        let wish = Wish {
            volume,
            number,
            want,
        };
        self.wishes.insert(volume, wish);
        self.save()
    }

    /// Wishes that another node has heard of.
    ///
    /// # Errors
    /// The disk.
    pub fn learn(&mut self, wishes: &[Wish]) -> Result<()> {
        let mut news = false;
        for w in wishes.iter().take(MAX_VOLUMES) {
            let known = self.wishes.get(&w.volume);
            let room = self.wishes.len() < MAX_VOLUMES || known.is_some();
            // Of two commands given at once at two nodes all choose the same: the one that stops.
            let newer = known.is_none_or(|k| (w.number, &w.want) > (k.number, &k.want));
            if newer && room {
                self.wishes.insert(w.volume, w.clone());
                news = true;
            }
        }
        if news { self.save() } else { Ok(()) }
    }

    /// What is wanted of nodes.
    pub fn node_wishes(&self) -> Vec<NodeWish> {
        self.nodes.values().cloned().collect()
    }

    /// Whether a node was given up.
    pub fn evicted(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|w| w.evicted)
    }

    /// Gives a node up, or takes it back.
    ///
    /// # Errors
    /// The disk.
    pub fn set_evicted(&mut self, node: &str, evicted: bool) -> Result<()> {
        let number = self.nodes.get(node).map_or(0, |w| w.number);
        let wish = NodeWish {
            node: node.to_owned(),
            number: number.saturating_add(1),
            evicted,
        };
        self.nodes.insert(node.to_owned(), wish);
        self.save()
    }

    /// The same, as another node has heard of it.
    ///
    /// # Errors
    /// The disk.
    pub fn learn_of_nodes(&mut self, wishes: &[NodeWish]) -> Result<()> {
        let mut news = false;
        for w in wishes.iter().take(MAX_NODES) {
            let known = self.nodes.get(&w.node).map_or(0, |k| k.number);
            let room = self.nodes.len() < MAX_NODES || known > 0;
            if w.number > known && room {
                self.nodes.insert(w.node.clone(), w.clone());
                news = true;
            }
        }
        if news { self.save() } else { Ok(()) }
    }

    /// Keeps a copy of a configuration that was read and found good.
    ///
    /// # Errors
    /// The disk.
    pub fn keep_config(&self, config: &Config) -> Result<()> {
        config.save(&self.dir.join(CONFIG_COPY))
    }

    fn save(&self) -> Result<()> {
        let kept = Kept {
            drained: self.drained,
            wishes: self.wishes(),
            nodes: self.node_wishes(),
        };
        let path = self.dir.join(FILE);
        let raw = serde_json::to_vec_pretty(&kept).map_err(|e| NodeError::Config {
            path: path.clone(),
            why: e.to_string(),
        })?;
        write(&path, &raw)
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> NodeError {
    let path = path.to_path_buf();
    move |source| NodeError::Io { what, path, source }
}

/// Durably, all or nothing.
pub(crate) fn write(path: &Path, raw: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(io("create", &temporary))?;
    file.write_all(raw)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all())
        .map_err(io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_wish_wins_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let v = VolumeId::random();
        let mut s = State::open(dir.path()).unwrap();
        assert_eq!(s.wish(v), Want::Served);
        s.wish_for(v, Want::Stopped).unwrap();
        let old = s.wishes();
        s.wish_for(v, Want::Served).unwrap();
        s.learn(&old).unwrap();
        assert_eq!(s.wish(v), Want::Served, "an old wish");
        let mut at_once = s.wishes();
        at_once[0].want = Want::Stopped;
        let mut other = State::open(&dir.path().join("other")).unwrap();
        other.learn(&at_once).unwrap();
        other.learn(&s.wishes()).unwrap();
        s.learn(&at_once).unwrap();
        assert_eq!(
            s.wishes(),
            other.wishes(),
            "in whichever order they were heard"
        );
        s.wish_for(v, Want::Served).unwrap();
        s.set_drained(true).unwrap();
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.wishes(), s.wishes());
        s.set_evicted("n", true).unwrap();
        let old = s.node_wishes();
        s.set_evicted("n", false).unwrap();
        s.learn_of_nodes(&old).unwrap();
        assert!(!s.evicted("n"), "an old wish");
        let again = State::open(dir.path()).unwrap();
        assert_eq!(again.node_wishes(), s.node_wishes());
        assert!(again.drained());
    }
}
