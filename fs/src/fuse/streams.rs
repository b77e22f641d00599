//! How many large writes may be inside at once.
//!
//! A large write waits until the volume admits it, and occupies the thread that received it while
//! it does. So fewer are let in than there are threads; the rest are parked, in order, and run by
//! whoever comes out. Everything else is received by the threads that remain.
//!
//! Bounded by [`MAX_PARKED`]: a parked write holds its content. Beyond that the receiving thread
//! waits until there is room.
//!
//! After the end of the connection what is parked is refused, never run: its callers have had
//! errors, and what they wrote since, perhaps through a mount made anew, must not be overwritten.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use trivet_replica::volume::VolumeError;

use crate::error::{FsError, FsResult};

/// Runs, or hears why it does not.
type Job = Box<dyn FnOnce(FsResult<()>) + Send>;

/// Content of parked writes, in bytes.
pub(crate) const MAX_PARKED: usize = 128 << 20;

/// See the module's head.
pub(super) struct Streams {
    limit: usize,
    state: Mutex<State>,
    /// Something was unparked.
    room: Condvar,
}

#[derive(Default)]
struct State {
    inside: usize,
    parked: VecDeque<(usize, Job)>,
    /// Bytes of what is parked.
    bytes: usize,
    ended: bool,
}

fn ended() -> FsError {
    let why = "the mount has ended; mount it again";
    FsError::Volume(VolumeError::NotActive(why.into()))
}

impl Streams {
    /// Half of so many `threads` are left to others.
    pub fn new(threads: usize) -> Streams {
        Streams {
            limit: (threads / 2).max(1),
            state: Mutex::default(),
            room: Condvar::new(),
        }
    }

    /// Runs a write of `bytes` now, on this thread, or parks it.
    pub fn pass(&self, bytes: usize, job: impl FnOnce(FsResult<()>) + Send + 'static) {
        {
            let mut s = self.lock();
            while s.inside >= self.limit && s.bytes.saturating_add(bytes) > MAX_PARKED && !s.ended {
                s = self.room.wait(s).unwrap_or_else(PoisonError::into_inner);
            }
            if s.ended {
                drop(s);
                return job(Err(ended()));
            }
            if s.inside >= self.limit {
                s.bytes += bytes;
                return s.parked.push_back((bytes, Box::new(job)));
            }
            s.inside += 1;
        }
        let place = Place(self);
        job(Ok(()));
        while let Some(next) = place.next_or_leave() {
            next(Ok(()));
        }
        // Given back already, in the step that saw nothing parked.
        std::mem::forget(place);
    }

    /// Ends the connection by `end`, unless that fails. Nothing parked is let in meanwhile.
    ///
    /// # Errors
    /// Those of `end`.
    pub fn end<E>(&self, end: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let parked = {
            let mut s = self.lock();
            end()?;
            s.ended = true;
            s.bytes = 0;
            std::mem::take(&mut s.parked)
        };
        self.room.notify_all();
        for (_, job) in parked {
            job(Err(ended()));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements that may panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place inside; given back also when the write inside panics.
struct Place<'a>(&'a Streams);

impl Place<'_> {
    /// The next parked write, or `None` and the place is given back. One step, so that nothing is
    /// parked between the look and the leaving.
    fn next_or_leave(&self) -> Option<Job> {
        let mut s = self.0.lock();
        let next = s.parked.pop_front();
        match &next {
            Some((bytes, _)) => s.bytes = s.bytes.saturating_sub(*bytes),
            None => s.inside -= 1,
        }
        drop(s);
        self.0.room.notify_one();
        next.map(|(_, job)| job)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    /// A write that says when it is inside, and comes out when it is told to.
    struct Writes {
        streams: Arc<Streams>,
        go: Vec<Sender<()>>,
        inside: Receiver<usize>,
        say: Sender<usize>,
    }

    impl Writes {
        fn of(threads: usize) -> Writes {
            let (say, inside) = channel();
            let (streams, go) = (Arc::new(Streams::new(threads)), Vec::new());
            Writes {
                streams,
                go,
                inside,
                say,
            }
        }

        /// `usize::MAX` less its number is what a refused one says.
        fn pass(&mut self, bytes: usize) {
            let (go, until) = channel();
            let (n, say) = (self.go.len(), self.say.clone());
            self.go.push(go);
            self.streams.pass(bytes, move |passed| {
                let refused = usize::MAX - n;
                say.send(passed.map_or(refused, |()| n)).unwrap();
                // An end of the channel is as good.
                let _ = until.recv_timeout(Duration::from_secs(20));
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_parked_and_run_in_order() {
        let mut w = Writes::of(2);
        let (streams, say) = (w.streams.clone(), w.say.clone());
        let (go, until) = channel::<()>();
        let first = std::thread::spawn(move || {
            streams.pass(1, move |_| {
                say.send(100).unwrap();
                let _ = until.recv_timeout(Duration::from_secs(20));
            });
        });
        assert_eq!(w.inside.recv().unwrap(), 100);
        // From here on `pass` comes back at once: this thread is free.
        (0..3).for_each(|_| w.pass(1));
        assert!(w.inside.try_recv().is_err());
        drop(go);
        for n in 0..3 {
            assert_eq!(w.inside.recv().unwrap(), n);
            w.go[n].send(()).unwrap();
        }
        first.join().unwrap();
        let s = w.streams.lock();
        assert_eq!((s.inside, s.parked.len(), s.bytes), (0, 0, 0));
    }

    #[test]
    fn what_is_parked_at_the_end_is_refused_and_so_is_what_comes_later() {
        let mut w = Writes::of(2);
        w.streams.lock().inside = 1;
        w.pass(MAX_PARKED);
        // One more than there is room for waits.
        let waits = {
            let (streams, say) = (w.streams.clone(), w.say.clone());
            std::thread::spawn(move || {
                streams.pass(1, move |passed| {
                    say.send(usize::from(passed.is_ok())).unwrap()
                });
            })
        };
        w.go.clear();
        let streams = w.streams.clone();
        streams.end(|| Ok::<(), ()>(())).unwrap();
        waits.join().unwrap();
        streams.pass(1, |passed| assert!(passed.is_err()));
        let mut said = [w.inside.recv().unwrap(), w.inside.recv().unwrap()];
        said.sort_unstable();
        assert_eq!(said, [0, usize::MAX]);
        assert_eq!(streams.lock().bytes, 0);
    }
}
