//! What a file system should do, in the simplest way: maps and byte vectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use trivet_fs::lock::LockOwner;
use trivet_fs::*;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub kind: Option<FileKind>,
    pub mode: u32,
    pub content: Arc<Vec<u8>>,
    pub target: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, usize>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub parent: usize,
    pub uid: u32,
    pub gid: u32,
    pub rdev: Rdev,
    /// Locks of NLM clients: the owner's number by the first byte of its range.
    pub locks: BTreeMap<u64, u32>,
}

/// Nodes by number; 0 is the root.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<usize, Node>,
    pub next: usize,
    /// Inodes made by calls whose answer is kept, by the call's number.
    pub answers: BTreeMap<u32, u64>,
}

/// Whose answers are kept.
pub const CLIENT: u64 = 9;

type Outcome<T = ()> = Result<T, FsError>;

impl Default for Model {
    fn default() -> Model {
        let root = Node {
            kind: Some(FileKind::Dir),
            mode: 0o755,
            ..Node::default()
        };
        Model {
            nodes: BTreeMap::from([(0, root)]),
            next: 1,
            answers: BTreeMap::new(),
        }
    }
}

impl Model {
    pub fn dirs(&self) -> Vec<usize> {
        self.of(|n| n.kind == Some(FileKind::Dir))
    }

    pub fn files(&self) -> Vec<usize> {
        self.of(|n| n.kind == Some(FileKind::File))
    }

    fn of(&self, f: impl Fn(&Node) -> bool) -> Vec<usize> {
        self.nodes
            .iter()
            .filter(|(_, n)| f(n))
            .map(|(i, _)| *i)
            .collect()
    }

    pub fn nlink(&self, n: usize) -> u32 {
        let node = &self.nodes[&n];
        if node.kind == Some(FileKind::Dir) {
            let is_dir = |c: &&usize| self.nodes[*c].kind == Some(FileKind::Dir);
            return 2 + node.entries.values().filter(is_dir).count() as u32;
        }
        let names = self.nodes.values().flat_map(|d| d.entries.values());
        names.filter(|c| **c == n).count() as u32
    }

    pub fn find(&self, dir: usize, name: &[u8]) -> Option<usize> {
        self.nodes[&dir].entries.get(name).copied()
    }

    pub fn make(&mut self, dir: usize, name: &[u8], node: Node) -> Outcome<usize> {
        if self.find(dir, name).is_some() {
            return Err(FsError::Exists);
        }
        let n = self.next;
        self.next += 1;
        self.nodes.insert(
            n,
            Node {
                parent: dir,
                ..node
            },
        );
        self.nodes
            .get_mut(&dir)
            .unwrap()
            .entries
            .insert(name.to_vec(), n);
        Ok(n)
    }

    fn drop_if_nameless(&mut self, n: usize) {
        if self.nodes[&n].kind == Some(FileKind::Dir) || self.nlink(n) == 0 {
            self.nodes.remove(&n);
        }
    }

    pub fn link(&mut self, n: usize, dir: usize, name: &[u8]) -> Outcome {
        if self.find(dir, name).is_some() {
            return Err(FsError::Exists);
        }
        self.nodes
            .get_mut(&dir)
            .unwrap()
            .entries
            .insert(name.to_vec(), n);
        Ok(())
    }

    pub fn remove(&mut self, dir: usize, name: &[u8], want_dir: bool) -> Outcome {
        let n = self.find(dir, name).ok_or(FsError::NotFound)?;
        let is_dir = self.nodes[&n].kind == Some(FileKind::Dir);
        match (want_dir, is_dir) {
            (true, false) => return Err(FsError::NotDir),
            (false, true) => return Err(FsError::IsDir),
            _ => {}
        }
        if is_dir && !self.nodes[&n].entries.is_empty() {
            return Err(FsError::NotEmpty);
        }
        self.nodes.get_mut(&dir).unwrap().entries.remove(name);
        self.drop_if_nameless(n);
        Ok(())
    }

    fn is_above(&self, n: usize, below: usize) -> bool {
        let mut at = below;
        loop {
            if at == n {
                return true;
            }
            if at == 0 {
                return false;
            }
            at = self.nodes[&at].parent;
        }
    }

    pub fn rename(&mut self, from: (usize, &[u8]), to: (usize, &[u8]), how: RenameHow) -> Outcome {
        let source = self.find(from.0, from.1).ok_or(FsError::NotFound)?;
        let target = self.find(to.0, to.1);
        let is_dir = |m: &Model, n: usize| m.nodes[&n].kind == Some(FileKind::Dir);
        let loops = FsError::Invalid("a directory cannot be moved into itself");
        if is_dir(self, source) && from.0 != to.0 && self.is_above(source, to.0) {
            return Err(loops);
        }
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameHow::Exchange, None) => return Err(FsError::NotFound),
            _ => {}
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (RenameHow::Exchange, Some(t)) = (how, target) {
            if is_dir(self, t) && from.0 != to.0 && self.is_above(t, from.0) {
                return Err(loops);
            }
            self.nodes
                .get_mut(&from.0)
                .unwrap()
                .entries
                .insert(from.1.to_vec(), t);
            self.nodes.get_mut(&t).unwrap().parent = from.0;
        } else {
            if let Some(t) = target {
                match (is_dir(self, source), is_dir(self, t)) {
                    (true, false) => return Err(FsError::NotDir),
                    (false, true) => return Err(FsError::IsDir),
                    (true, true) if !self.nodes[&t].entries.is_empty() => {
                        return Err(FsError::NotEmpty);
                    }
                    _ => {}
                }
            }
            self.nodes.get_mut(&from.0).unwrap().entries.remove(from.1);
        }
        self.nodes
            .get_mut(&to.0)
            .unwrap()
            .entries
            .insert(to.1.to_vec(), source);
        self.nodes.get_mut(&source).unwrap().parent = to.0;
        if let (Some(t), false) = (target, how == RenameHow::Exchange) {
            self.drop_if_nameless(t);
        }
        Ok(())
    }

    pub fn edit(&mut self, n: usize, f: impl FnOnce(&mut Vec<u8>)) {
        f(Arc::make_mut(&mut self.nodes.get_mut(&n).unwrap().content));
    }

    pub fn write(&mut self, n: usize, at: usize, data: &[u8]) {
        self.edit(n, |c| {
            if c.len() < at + data.len() {
                c.resize(at + data.len(), 0);
            }
            c[at..at + data.len()].copy_from_slice(data);
        });
    }

    /// Compares everything that a user could see.
    pub fn compare(&self, fs: &dyn Vfs, why: &str) {
        self.compare_dir(fs, 0, InodeId::ROOT, why);
        for (n, ino) in &self.answers {
            let answer = fs.replay(CLIENT, &n.to_le_bytes()).unwrap();
            let want = Some(Bytes::copy_from_slice(&ino.to_le_bytes()));
            assert_eq!(answer, want, "{why}: answer of call {n}");
        }
        let next = self.answers.keys().last().map_or(0, |n| n + 1);
        let none = fs.replay(CLIENT, &next.to_le_bytes()).unwrap();
        assert_eq!(none, None, "{why}: an answer to a call that was not made");
    }

    fn compare_dir(&self, fs: &dyn Vfs, n: usize, id: InodeId, why: &str) {
        let root = Creds::root();
        let mut names = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let page = fs.readdir(&root, id, cookie, 7, true).unwrap();
            for e in page.entries {
                assert!(e.cookie > cookie, "{why}: cookies go up");
                cookie = e.cookie;
                if &e.name[..] != b"." && &e.name[..] != b".." {
                    names.insert(e.name.to_vec(), e.id);
                }
            }
            if page.eof {
                break;
            }
        }
        let node = &self.nodes[&n];
        let want: Vec<_> = node.entries.keys().collect();
        assert_eq!(
            names.keys().collect::<Vec<_>>(),
            want,
            "{why}: names of node {n}"
        );
        self.compare_node(fs, n, id, why);
        for (name, child) in &node.entries {
            let (attr, dir) = fs.lookup(&root, id, name).unwrap();
            assert_eq!((attr.id, dir.id), (names[name], id), "{why}");
            match attr.kind {
                FileKind::Dir => {
                    let up = fs.lookup(&root, attr.id, b"..").unwrap().0;
                    assert_eq!(up.id, id, "{why}: ..");
                    self.compare_dir(fs, *child, attr.id, why);
                }
                _ => self.compare_node(fs, *child, attr.id, why),
            }
        }
    }

    fn compare_node(&self, fs: &dyn Vfs, n: usize, id: InodeId, why: &str) {
        let root = Creds::root();
        let node = &self.nodes[&n];
        let attr = fs.getattr(id).unwrap();
        assert_eq!(Some(attr.kind), node.kind, "{why}: kind of node {n}");
        assert_eq!(attr.mode, node.mode, "{why}: mode of node {n}");
        assert_eq!(attr.nlink, self.nlink(n), "{why}: links of node {n}");
        assert_eq!((attr.uid, attr.gid), (node.uid, node.gid), "{why}: owner");
        assert_eq!(attr.rdev, node.rdev, "{why}: device of node {n}");
        if attr.kind == FileKind::File {
            assert_eq!(
                attr.size,
                node.content.len() as u64,
                "{why}: size of node {n}"
            );
            let mut at = 0;
            while at < attr.size {
                let out = fs.read(&root, id, at, 1 << 20).unwrap();
                let got = out.concat();
                let want = &node.content[at as usize..at as usize + got.len()];
                if &got[..] != want {
                    let bad = got.iter().zip(want).position(|(a, b)| a != b);
                    panic!(
                        "{why}: node {n} differs at byte {}",
                        at as usize + bad.unwrap()
                    );
                }
                at += got.len() as u64;
            }
        }
        if attr.kind == FileKind::File {
            let held = fs.lock_list(usize::MAX);
            let of = held.iter().filter(|(i, _)| *i == id);
            let locks: BTreeMap<u64, u32> = of
                .filter_map(|(_, l)| match l.owner {
                    LockOwner::Nlm { svid, .. } => Some((l.range.start, svid)),
                    LockOwner::Local { .. } => None,
                })
                .collect();
            assert_eq!(locks, node.locks, "{why}: locks of node {n}");
        }
        if attr.kind == FileKind::Symlink {
            assert_eq!(
                fs.readlink(&root, id).unwrap().0,
                Bytes::from(node.target.clone())
            );
        }
        let mut xattrs = fs.list_xattr(&root, id).unwrap();
        xattrs.sort();
        let want: Vec<_> = node.xattrs.keys().cloned().map(Bytes::from).collect();
        assert_eq!(xattrs, want, "{why}: xattrs of node {n}");
        for (name, value) in &node.xattrs {
            assert_eq!(
                &fs.get_xattr(&root, id, name).unwrap()[..],
                &value[..],
                "{why}"
            );
        }
    }
}
