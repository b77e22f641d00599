//! Nothing leaves this door while the volume is not held (invariant 2).
//!
//! Every answer passes [`Gate::pass`] or [`Gate::then`] after the file system was asked and just
//! before it leaves. While the lease is lapsed callers wait; it may come back, and what was read
//! then still holds, for nobody else can have written. After [`Gate::new`]'s patience, counted from
//! the moment of the loss for all callers alike, they get EIO.
//!
//! What the kernel has cached it gives out without asking us. So after the same patience, whether
//! anybody asks or not, it is told to forget everything, and the connection is aborted if the
//! mount's options say so.
//!
//! Bounded by what the kernel has under way: a waiting answer is one of its requests.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trivet_replica::volume::VolumeError;

use crate::Vfs;
use crate::error::{FsError, FsResult};

/// How often a loss is looked for, and its end.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_LOST: Duration = Duration::from_millis(5);

type Waiting = Box<dyn FnOnce(FsResult<()>) + Send>;

#[derive(Default)]
struct State {
    lost_since: Option<Instant>,
    /// What is to be done about the kernel's caches was done for this loss.
    told: bool,
    waiting: Vec<Waiting>,
    stopped: bool,
}

/// See the module's head.
pub(super) struct Gate {
    fs: Arc<dyn Vfs>,
    patience: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

fn refused() -> FsError {
    FsError::Volume(VolumeError::NotActive(
        "its lease is lost, and did not come back in time".into(),
    ))
}

impl Gate {
    /// Callers wait for `patience` after a loss.
    pub fn new(fs: Arc<dyn Vfs>, patience: Duration) -> Arc<Gate> {
        Arc::new(Gate {
            fs,
            patience,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Starts the thread that watches; `lost` is called once for each loss that lasts longer than
    /// the patience.
    pub fn start(self: &Arc<Self>, lost: impl Fn() + Send + 'static) -> std::io::Result<()> {
        let me = Arc::clone(self);
        std::thread::Builder::new()
            .name("fuse-gate".into())
            .spawn(move || me.run(&lost))?;
        Ok(())
    }

    /// Ends the thread; whoever waits gets an error.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Lets a result out, now or when the volume is held again.
    pub fn pass<T>(&self, result: FsResult<T>) -> FsResult<T> {
        match self.fs.holds() {
            true => result,
            false => self.wait().and(result),
        }
    }

    /// The same for an answer that leaves from a thread that must not wait.
    pub fn then(&self, answer: impl FnOnce(FsResult<()>) + Send + 'static) {
        if self.fs.holds() {
            return answer(Ok(()));
        }
        let mut state = self.lock();
        if state.stopped {
            drop(state);
            return answer(Err(refused()));
        }
        state.waiting.push(Box::new(answer));
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements that may panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the loss stands: over, to be waited for, or too long.
    fn look(&self, state: &mut State) -> Option<FsResult<()>> {
        if self.fs.holds() {
            state.lost_since = None;
            state.told = false;
            return Some(Ok(()));
        }
        let since = *state.lost_since.get_or_insert_with(Instant::now);
        match state.stopped || since.elapsed() >= self.patience {
            true => Some(Err(refused())),
            false => None,
        }
    }

    fn wait(&self) -> FsResult<()> {
        let mut state = self.lock();
        loop {
            if let Some(result) = self.look(&mut state) {
                return result;
            }
            state = self.sleep(state, LOOK_LOST);
        }
    }

    fn sleep<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn run(&self, lost: &dyn Fn()) {
        let mut state = self.lock();
        loop {
            let fate = self.look(&mut state);
            if let Some(fate) = &fate {
                let waiting = std::mem::take(&mut state.waiting);
                let tell = fate.is_err() && !state.told && !state.stopped;
                state.told |= tell;
                let stopped = state.stopped;
                drop(state);
                for answer in waiting {
                    answer(fate.clone());
                }
                if tell {
                    lost();
                }
                if stopped {
                    return;
                }
                state = self.lock();
                // Somebody may have come meanwhile.
                if !state.waiting.is_empty() {
                    continue;
                }
            }
            let time = match state.lost_since {
                Some(_) => LOOK_LOST,
                None => LOOK,
            };
            state = self.sleep(state, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::testing::{HeldVolume, fs_on};

    fn gate(patience: Duration) -> (Arc<HeldVolume>, Arc<Gate>) {
        let volume = Arc::new(HeldVolume::new());
        let gate = Gate::new(fs_on(volume.clone()), patience);
        (volume, gate)
    }

    #[test]
    fn an_answer_waits_for_the_lease_to_come_back() {
        let (volume, gate) = gate(Duration::from_secs(600));
        gate.start(|| ()).unwrap();
        assert_eq!(gate.pass(Ok(1)), Ok(1));
        volume.hold(false);
        let (tx, rx) = mpsc::channel();
        let (later, sync) = (tx.clone(), gate.clone());
        gate.then(move |r| later.send(r).unwrap());
        let waiter = std::thread::spawn(move || tx.send(sync.pass(Ok(()))).unwrap());
        assert!(rx.recv_timeout(Duration::from_millis(50)).is_err());
        volume.hold(true);
        assert_eq!((rx.recv().unwrap(), rx.recv().unwrap()), (Ok(()), Ok(())));
        waiter.join().unwrap();
        gate.stop();
    }

    #[test]
    fn after_the_bound_callers_get_an_error_and_the_kernel_is_told_once() {
        let (volume, gate) = gate(Duration::from_millis(20));
        let (tx, told) = mpsc::channel();
        gate.start(move || tx.send(()).unwrap()).unwrap();
        volume.hold(false);
        let nobody_asks = told.recv_timeout(Duration::from_secs(60));
        assert_eq!(nobody_asks, Ok(()));
        assert_eq!(gate.pass(Ok(1)), Err(refused()));
        let (tx, rx) = mpsc::channel();
        gate.then(move |r| tx.send(r).unwrap());
        assert_eq!(rx.recv().unwrap(), Err(refused()));
        volume.hold(true);
        assert_eq!(gate.pass(Ok(1)), Ok(1));
        gate.stop();
        assert!(told.try_recv().is_err());
    }
}
