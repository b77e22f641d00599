//! Taking back what the kernel has cached, when another door changes it.
//!
//! The kernel may hold locks of a request while it takes our notice, so notices come from a
//! thread of their own. The caller of [`Watcher::changed`] waits for its notice, at most
//! [`PATIENCE`]: its reply should not leave before the caches are gone (and a stuck local program
//! must not stop NFS). A notice that is late stays owed and is given as soon as the kernel takes
//! it; none is ever dropped.
//!
//! Bounded: what is owed is a set, not a queue, so a file written a thousand times is owed once.
//! Beyond [`MAX_INODES`] files the debt becomes "every inode that the kernel knows"; beyond
//! [`MAX_NAMES`] names it becomes "every name", which the kernel cannot be told in one notice:
//! until the debt is paid, and for one [`TTL`] longer, names are then given out for no time at
//! all, and what was given out before runs out by itself. All of it is counted.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fuser::{INodeNo, Notifier};

use super::TTL;
use super::handles::Handles;
use crate::api::{Event, InodeId, Watcher};

const PATIENCE: Duration = Duration::from_secs(2);
/// Files whose notices are owed one by one.
pub(crate) const MAX_INODES: usize = 4096;
/// Names whose notices are owed one by one.
pub(crate) const MAX_NAMES: usize = 4096;

/// What of a file's content is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    None,
    /// Offset and length; length 0: all the rest.
    Range(u64, u64),
    All,
}

impl Content {
    fn of(content: Option<(u64, u64)>) -> Content {
        match content {
            None => Content::None,
            Some((0, 0)) => Content::All,
            Some((offset, len)) => Content::Range(offset, len),
        }
    }

    /// Covers both.
    fn and(self, other: Content) -> Content {
        match (self, other) {
            (Content::None, c) | (c, Content::None) => c,
            (a, b) if a == b => a,
            // More than one piece: the whole file, rather than a list without an end.
            _ => Content::All,
        }
    }

    /// As the kernel wants it: a negative offset means attributes only.
    fn range(self) -> (i64, i64) {
        match self {
            Content::None => (-1, 0),
            Content::Range(o, l) => (
                i64::try_from(o).unwrap_or(0),
                // A range that does not fit reaches the end of every file.
                i64::try_from(l).unwrap_or(0),
            ),
            Content::All => (0, 0),
        }
    }
}

/// What the kernel has still to be told. Pure: the thread and the kernel are around it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Debt {
    inodes: HashMap<u64, Content>,
    names: HashSet<(u64, Bytes)>,
    every_inode: bool,
    every_name: bool,
}

impl Debt {
    fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.names.is_empty() && !self.every_inode && !self.every_name
    }

    fn owe_inode(&mut self, ino: u64, content: Content) {
        if self.every_inode {
            return;
        }
        if let Some(c) = self.inodes.get_mut(&ino) {
            *c = c.and(content);
        } else if self.inodes.len() < MAX_INODES {
            self.inodes.insert(ino, content);
        } else {
            self.every_inode = true;
            self.inodes.clear();
        }
    }

    fn owe(&mut self, event: &Event) {
        match event {
            Event::Inode { id, content } => self.owe_inode(id.ino.0, Content::of(*content)),
            Event::Entry { dir, name } => {
                // The kernel caches a directory's listing as its content.
                self.owe_inode(dir.ino.0, Content::All);
                if self.every_name {
                } else if self.names.len() < MAX_NAMES {
                    self.names.insert((dir.ino.0, name.clone()));
                } else {
                    self.every_name = true;
                    self.names.clear();
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    owed: Debt,
    /// Number of the debt that is being gathered; the thread takes it whole.
    round: u64,
    /// Every debt below this number is paid.
    paid: u64,
    /// To be run when what is owed by now is paid. Bounded by the requests under way.
    answers: Answers,
    /// Names are not to be cached before this moment.
    distrust: Option<Instant>,
    stopped: bool,
}

#[derive(Default)]
struct Answers(Vec<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} answers", self.0.len())
    }
}

/// What happened so far, for status and tests.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Callers that did not wait for their notice to the end.
    pub late: AtomicU64,
    /// Times that single files became "every inode".
    pub every_inode: AtomicU64,
    /// Times that single names became "every name".
    pub every_name: AtomicU64,
}

/// See the module's head.
pub(super) struct Notify {
    state: Mutex<State>,
    changed: Condvar,
    handles: Arc<Handles>,
    /// Whether `distrust` is set: looked at for each answer.
    distrusted: AtomicBool,
    pub counters: Counters,
}

impl Notify {
    pub fn new(handles: Arc<Handles>) -> Arc<Notify> {
        Arc::new(Notify {
            state: Mutex::default(),
            changed: Condvar::new(),
            handles,
            distrusted: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Starts the thread.
    pub fn start(self: &Arc<Self>, notifier: Notifier) -> std::io::Result<()> {
        let me = Arc::clone(self);
        std::thread::Builder::new()
            .name("fuse-notify".into())
            .spawn(move || me.run(&notifier))?;
        Ok(())
    }

    /// Ends the thread: the mount has ended, or is about to.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Owes the kernel everything: nothing that it has cached may be believed any more. Waits for
    /// it to take that, as [`Watcher::changed`] does; whether it has.
    pub fn forget_all(&self) -> bool {
        let mut state = self.lock();
        state.owed = Debt {
            every_inode: true,
            every_name: true,
            ..Debt::default()
        };
        self.distrust_names(&mut state);
        self.wait_for_payment(state)
    }

    /// Takes back what the kernel knows of a file, but for its content.
    pub fn attr(&self, id: InodeId) {
        self.changed(&Event::Inode { id, content: None });
    }

    /// A range was written past the page cache: `answer` is run when the kernel has dropped what it
    /// has of it. It does so by itself before such a write, and after one whose writer waits, but
    /// not after one that was given by `io_submit`: what others had read meanwhile would stay.
    /// `mode` says whether the file's mode has changed, too.
    pub fn bypassed(
        &self,
        id: InodeId,
        offset: u64,
        len: u64,
        mode: bool,
        answer: impl FnOnce() + Send + 'static,
    ) {
        match self.handles.bypassed(id.ino.0) {
            true => self.then(id, Some((offset, len)), answer),
            false if mode => self.then(id, None, answer),
            false => answer(),
        }
    }

    /// `answer` is run when the kernel has dropped what it knows of a file, and of that range of
    /// its content. The thread of a write must not wait for it: the kernel may wait for requests
    /// that have yet to be received.
    pub fn then(
        &self,
        id: InodeId,
        content: Option<(u64, u64)>,
        answer: impl FnOnce() + Send + 'static,
    ) {
        match self.owe(&Event::Inode { id, content }) {
            Some(mut state) if !state.stopped => {
                state.answers.0.push(Box::new(answer));
                self.changed.notify_all();
            }
            // The mount has ended, or the kernel has forgotten the file.
            state => {
                drop(state);
                answer();
            }
        }
    }

    /// Owes it, unless the kernel does not know the file: then it has cached nothing.
    fn owe(&self, event: &Event) -> Option<MutexGuard<'_, State>> {
        let known = match event {
            Event::Inode { id, .. } => self.handles.is_known(id.ino.0),
            Event::Entry { dir, .. } => self.handles.is_known(dir.ino.0),
        };
        if !known {
            return None;
        }
        let mut state = self.lock();
        let before = (state.owed.every_inode, state.owed.every_name);
        state.owed.owe(event);
        if state.owed.every_inode && !before.0 {
            self.counters.every_inode.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("too many notices owed to the kernel: it forgets all its pages");
        }
        if state.owed.every_name && !before.1 {
            self.counters.every_name.fetch_add(1, Ordering::Relaxed);
            self.distrust_names(&mut state);
            tracing::warn!("too many notices owed to the kernel: it believes no name for a while");
        }
        Some(state)
    }

    /// Waits until all that is owed by now is paid, [`PATIENCE`] at most; whether it is.
    fn wait_for_payment(&self, mut state: MutexGuard<'_, State>) -> bool {
        let mine = state.round + 1;
        self.changed.notify_all();
        let until = Instant::now() + PATIENCE;
        while state.paid < mine && !state.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.counters.late.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("the kernel is slow to take a notice; a copy may linger till then");
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// For how long the kernel may believe a name that it is told now.
    pub fn name_ttl(&self) -> Duration {
        if !self.distrusted.load(Ordering::Acquire) {
            return TTL;
        }
        let mut state = self.lock();
        match state.distrust {
            Some(until) if Instant::now() < until || state.owed.every_name => Duration::ZERO,
            _ => {
                state.distrust = None;
                self.distrusted.store(false, Ordering::Release);
                TTL
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements that may panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn distrust_names(&self, state: &mut State) {
        state.distrust = Some(Instant::now() + TTL);
        self.distrusted.store(true, Ordering::Release);
    }

    fn run(&self, notifier: &Notifier) {
        loop {
            let (debt, round, answers) = {
                let mut state = self.lock();
                while state.owed.is_empty() && !state.stopped {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if state.stopped {
                    let answers = std::mem::take(&mut state.answers);
                    drop(state);
                    return answers.0.into_iter().for_each(|answer| answer());
                }
                state.round += 1;
                if state.owed.every_name {
                    // Counted from now: what is given out from here on is short-lived already.
                    self.distrust_names(&mut state);
                }
                let owed = std::mem::take(&mut state.owed);
                (owed, state.round, std::mem::take(&mut state.answers))
            };
            self.pay(notifier, debt);
            self.lock().paid = round;
            self.changed.notify_all();
            answers.0.into_iter().for_each(|answer| answer());
        }
    }

    /// Tells the kernel. ENOENT says that it has nothing cached: as good; anything else, that the
    /// mount is gone.
    fn pay(&self, notifier: &Notifier, debt: Debt) {
        if debt.every_inode {
            for ino in self.handles.all() {
                let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
            }
        }
        for (ino, content) in debt.inodes {
            let (offset, len) = content.range();
            let _ = notifier.inval_inode(INodeNo(ino), offset, len);
        }
        for (dir, name) in debt.names {
            let _ = notifier.inval_entry(INodeNo(dir), OsStr::from_bytes(&name));
        }
    }
}

impl Watcher for Notify {
    fn changed(&self, event: &Event) {
        if let Some(state) = self.owe(event) {
            // Late is counted; what is owed stays owed.
            let _ = self.wait_for_payment(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Ino;

    fn id(ino: u64) -> InodeId {
        InodeId {
            ino: Ino(ino),
            generation: 1,
        }
    }

    fn content(ino: u64, offset: u64, len: u64) -> Event {
        Event::Inode {
            id: id(ino),
            content: Some((offset, len)),
        }
    }

    #[test]
    fn what_is_owed_of_one_file_is_merged_and_never_shrinks() {
        let mut debt = Debt::default();
        debt.owe(&Event::Inode {
            id: id(9),
            content: None,
        });
        assert_eq!(debt.inodes[&9].range(), (-1, 0));
        debt.owe(&content(9, 4096, 8192));
        assert_eq!(debt.inodes[&9].range(), (4096, 8192));
        debt.owe(&content(9, 0, 10));
        assert_eq!(debt.inodes[&9].range(), (0, 0));
        debt.owe(&content(9, 4096, 8192));
        assert_eq!(debt.inodes[&9].range(), (0, 0));
    }

    #[test]
    fn beyond_its_bounds_a_debt_covers_everything() {
        let mut debt = Debt::default();
        for ino in 0..MAX_INODES as u64 {
            debt.owe(&content(ino, 0, 1));
        }
        assert!(!debt.every_inode && debt.inodes.len() == MAX_INODES);
        debt.owe(&content(u64::MAX, 0, 1));
        debt.owe(&content(3, 0, 1));
        assert!(debt.every_inode && debt.inodes.is_empty());
        for n in 0..=MAX_NAMES {
            debt.owe(&Event::Entry {
                dir: id(1),
                name: n.to_string().into(),
            });
        }
        assert!(debt.every_name && debt.names.is_empty());
    }

    /// It used to give up a notice after two seconds of a full queue.
    #[test]
    fn nothing_is_lost_while_the_kernel_takes_no_notice() {
        let handles = Arc::new(Handles::new(crate::testing::small_fs()));
        let notify = Notify::new(handles);
        // Nobody pays: the caller's patience ends, the debt stays.
        notify.changed(&content(InodeId::ROOT.ino.0, 0, 1));
        assert_eq!(notify.counters.late.load(Ordering::Relaxed), 1);
        assert_eq!(notify.lock().owed.inodes.len(), 1);
        assert_eq!(notify.name_ttl(), TTL);
        assert!(!notify.forget_all());
        assert!(notify.lock().owed.every_inode);
        assert_eq!(notify.name_ttl(), Duration::ZERO);
    }
}
