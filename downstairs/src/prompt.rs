//! A lock for readers who can go elsewhere.
//!
//! An append writes to the disk under the replica's lock. While that disk hangs, whoever waits for
//! the lock waits for the disk: a reader in this process would hold up the whole file system with
//! it, although two other replicas have the data. So it waits for a bounded time only, and then
//! asks by way of the network, where slowness sends reads elsewhere.

use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// A disk that is well has let go of the lock by then, nearly always.
const PROMPT: Duration = Duration::from_millis(10);
/// For so long the processor is only offered to others: most appends are over by then.
const BRIEF: Duration = Duration::from_millis(1);
/// Between two tries after that.
const PAUSE: Duration = Duration::from_micros(200);

/// The lock, if it is to be had within [`PROMPT`].
pub(crate) fn promptly<T>(m: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    let mut began = None;
    loop {
        match m.try_lock() {
            Ok(guard) => return Some(guard),
            // As everywhere: what is behind it poisons itself where that matters.
            Err(TryLockError::Poisoned(e)) => return Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        let waited = began.get_or_insert_with(Instant::now).elapsed();
        match waited {
            w if w < BRIEF => thread::yield_now(),
            w if w < PROMPT => thread::park_timeout(PAUSE),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_holds_it_for_long_is_not_waited_for() {
        let m = &Mutex::new(1);
        let (held, is_held) = mpsc::channel();
        let (let_go, until) = mpsc::channel::<()>();
        thread::scope(|s| {
            s.spawn(move || {
                let guard = m.lock().unwrap();
                held.send(()).unwrap();
                // Until the reader has given up; an end of the channel is as good.
                let _ = until.recv_timeout(Duration::from_secs(20));
                drop(guard);
            });
            is_held.recv().unwrap();
            let began = Instant::now();
            assert!(promptly(m).is_none());
            assert!(began.elapsed() < Duration::from_secs(10));
            let_go.send(()).unwrap();
        });
        assert_eq!(promptly(m).as_deref(), Some(&1));
    }
}
