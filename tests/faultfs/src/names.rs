//! How to take back changes of names that no sync of their directory has made durable.
//!
//! What a change removed is not removed but moved to the graveyard, a directory beside the live
//! tree, until the change is durable.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};

use crate::node::{Ino, Node};
use crate::rng::Rng;

/// Changes remembered, at most; beyond it the oldest become durable.
pub const MOST: usize = 65_536;

/// A directory and a name in it.
#[derive(Clone, Debug)]
pub struct Name {
    /// The directory.
    pub dir: Arc<Node>,
    /// The name.
    pub name: OsString,
}

/// One change that may have to be taken back.
#[derive(Debug)]
enum Change {
    /// A name came to be: file, directory, link.
    Made(Name),
    /// A name went away; what it named lies in the graveyard.
    Gone(Name, PathBuf),
    /// A name moved, perhaps over another, which lies in the graveyard.
    Moved(Name, Name, Option<PathBuf>),
    /// Two names changed places.
    Swapped(Name, Name),
}

/// All changes that are not durable, oldest first.
#[derive(Debug)]
pub struct Names {
    graveyard: PathBuf,
    buried: u64,
    changes: VecDeque<Change>,
}

impl Names {
    /// With an empty graveyard at this path.
    pub fn new(graveyard: PathBuf) -> io::Result<Names> {
        if graveyard.exists() {
            std::fs::remove_dir_all(&graveyard)?;
        }
        std::fs::create_dir_all(&graveyard)?;
        Ok(Names {
            graveyard,
            buried: 0,
            changes: VecDeque::new(),
        })
    }

    /// How many changes are not durable.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether all are durable.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// A name has come to be.
    pub fn made(&mut self, name: Name) {
        self.note(Change::Made(name));
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// It cannot be moved to the graveyard.
    pub fn remove(&mut self, name: Name) -> io::Result<()> {
        let grave = self.bury(&name)?;
        self.note(Change::Gone(name, grave));
        Ok(())
    }

    /// Moves a name over another or to a free place.
    ///
    /// # Errors
    /// One of the moves cannot be made; then nothing has changed.
    pub fn rename(&mut self, from: Name, to: Name) -> io::Result<()> {
        let grave = match to.dir.has(&to.name) {
            true => Some(self.bury(&to)?),
            false => None,
        };
        let moved = renameat(from.dir.fd(), &from.name, to.dir.fd(), &to.name);
        if let (Err(_), Some(grave)) = (moved, &grave) {
            renameat(CWD, grave, to.dir.fd(), &to.name)?;
        }
        moved?;
        self.note(Change::Moved(from, to, grave));
        Ok(())
    }

    /// Swaps two names.
    ///
    /// # Errors
    /// One of them does not exist.
    pub fn swap(&mut self, a: Name, b: Name) -> io::Result<()> {
        exchange(&a, &b)?;
        self.note(Change::Swapped(a, b));
        Ok(())
    }

    fn bury(&mut self, name: &Name) -> io::Result<PathBuf> {
        self.buried += 1;
        let grave = self.graveyard.join(self.buried.to_string());
        renameat(name.dir.fd(), &name.name, CWD, &grave)?;
        Ok(grave)
    }

    fn note(&mut self, change: Change) {
        self.changes.push_back(change);
        if self.changes.len() > MOST
            && let Some(oldest) = self.changes.pop_front()
        {
            settle(oldest);
        }
    }

    /// The directory was synced: its changes are durable.
    pub fn synced(&mut self, dir: Ino) {
        let all = std::mem::take(&mut self.changes);
        for change in all {
            match change.concerns(dir) {
                true => settle(change),
                false => self.changes.push_back(change),
            }
        }
    }

    /// Takes back the newest changes: all of them if `keep` is 0, none if it is 100, else a
    /// random number. Returns how many of how many.
    ///
    /// # Errors
    /// The backing directory does not let a change be taken back.
    pub fn cut(&mut self, keep: u8, rng: &mut Rng) -> io::Result<(u64, u64)> {
        let all = self.changes.len() as u64;
        let kept = match keep {
            0 => 0,
            100.. => all,
            _ => rng.below(all + 1),
        };
        while self.changes.len() as u64 > kept {
            if let Some(newest) = self.changes.pop_back() {
                newest.take_back()?;
            }
        }
        self.changes.drain(..).for_each(settle);
        Ok((all - kept, all))
    }
}

/// Makes a change durable: what it buried can go.
fn settle(change: Change) {
    if let Change::Gone(_, grave) | Change::Moved(_, _, Some(grave)) = change
        && let Err(e) = remove_all(&grave)
    {
        eprintln!("faultfs: cannot remove {}: {e}", grave.display());
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
}

fn exchange(a: &Name, b: &Name) -> io::Result<()> {
    let (ad, bd) = (a.dir.fd(), b.dir.fd());
    Ok(renameat_with(
        ad,
        &a.name,
        bd,
        &b.name,
        RenameFlags::EXCHANGE,
    )?)
}

impl Name {
    /// A name in a directory.
    pub fn new(dir: &Arc<Node>, name: &OsStr) -> Name {
        Name {
            dir: Arc::clone(dir),
            name: name.to_owned(),
        }
    }
}

impl Change {
    fn concerns(&self, dir: Ino) -> bool {
        match self {
            Change::Made(n) | Change::Gone(n, _) => n.dir.ino == dir,
            Change::Moved(a, b, _) | Change::Swapped(a, b) => a.dir.ino == dir || b.dir.ino == dir,
        }
    }

    fn take_back(self) -> io::Result<()> {
        match self {
            Change::Made(n) => remove_all(&n.dir.magic_path().join(&n.name)),
            Change::Gone(n, grave) => Ok(renameat(CWD, &grave, n.dir.fd(), &n.name)?),
            Change::Moved(from, to, grave) => {
                renameat(to.dir.fd(), &to.name, from.dir.fd(), &from.name)?;
                match grave {
                    Some(grave) => Ok(renameat(CWD, &grave, to.dir.fd(), &to.name)?),
                    None => Ok(()),
                }
            }
            Change::Swapped(a, b) => exchange(&a, &b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        dir: tempfile::TempDir,
        root: Arc<Node>,
        names: Names,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let live = dir.path().join("live");
            std::fs::create_dir(&live).unwrap();
            let root = Arc::new(Node::open_dir(&live).unwrap());
            let names = Names::new(dir.path().join("graves")).unwrap();
            World { dir, root, names }
        }

        fn name(&self, n: &str) -> Name {
            Name::new(&self.root, OsStr::new(n))
        }

        fn make(&mut self, n: &str) {
            std::fs::write(self.dir.path().join("live").join(n), n).unwrap();
            self.names.made(self.name(n));
        }

        /// The names, each with what its file was called when it was made.
        fn list(&self) -> Vec<String> {
            let live = std::fs::read_dir(self.dir.path().join("live")).unwrap();
            let mut all: Vec<_> = live
                .map(|e| e.unwrap())
                .map(|e| {
                    let content = std::fs::read_to_string(e.path()).unwrap();
                    format!("{}={content}", e.file_name().to_str().unwrap())
                })
                .collect();
            all.sort();
            all
        }
    }

    #[test]
    fn a_cut_goes_back_to_the_last_sync_of_the_directory() {
        let mut w = World::new();
        ["a", "b", "c"].into_iter().for_each(|n| w.make(n));
        w.names.synced(w.root.ino);
        let before = w.list();
        w.names.rename(w.name("a"), w.name("b")).unwrap();
        w.names.remove(w.name("c")).unwrap();
        w.make("c");
        w.names.swap(w.name("b"), w.name("c")).unwrap();
        w.make("d");
        assert_eq!(w.list(), ["b=c", "c=a", "d=d"]);
        assert_eq!(w.names.cut(0, &mut Rng::new(1)).unwrap(), (5, 5));
        assert_eq!(w.list(), before);
        assert!(w.names.is_empty());
    }

    #[test]
    fn what_is_kept_is_the_older_part() {
        for seed in 0..20 {
            let mut w = World::new();
            let made = ["a", "b", "c", "d"];
            made.into_iter().for_each(|n| w.make(n));
            let (lost, all) = w.names.cut(50, &mut Rng::new(seed)).unwrap();
            assert_eq!(all, 4);
            let kept: Vec<_> = made[..4 - lost as usize]
                .iter()
                .map(|n| format!("{n}={n}"))
                .collect();
            assert_eq!(w.list(), kept);
        }
    }

    #[test]
    fn synced_graves_are_emptied() {
        let mut w = World::new();
        ["a", "b"].into_iter().for_each(|n| w.make(n));
        w.names.remove(w.name("a")).unwrap();
        w.names.synced(w.root.ino);
        assert_eq!(w.names.cut(0, &mut Rng::new(1)).unwrap(), (0, 0));
        assert_eq!(
            std::fs::read_dir(w.dir.path().join("graves"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(w.list(), ["b=b"]);
    }
}
