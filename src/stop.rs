//! SIGTERM and Ctrl-C: the first asks the command to end in order, the second ends the process.
//!
//! One thread waits for signals; nothing runs inside a signal handler but signal-hook's own write
//! to a pipe. What a command has not finished when the second signal comes is as after a crash.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::CliError;

/// Whether somebody has asked us to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: AtomicBool,
    guard: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    /// Listens for SIGTERM and SIGINT from now on; call once, before other threads start.
    ///
    /// # Errors
    /// The system refuses a pipe, a handler or a thread.
    pub fn on_signals() -> Result<Stop, CliError> {
        let stop = Stop::default();
        let listener = stop.clone();
        let mut signals = Signals::new([SIGTERM, SIGINT])
            .map_err(|e| CliError::failed(format_args!("cannot listen for signals: {e}")))?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    if listener.asked() {
                        std::process::exit(128 + signal);
                    }
                    tracing::info!(signal, "asked to stop");
                    listener.ask();
                }
            })
            .map_err(|e| CliError::failed(format_args!("cannot start a thread: {e}")))?;
        Ok(stop)
    }

    /// Asks, as a signal would.
    pub fn ask(&self) {
        let held = self.inner.guard.lock();
        self.inner.asked.store(true, Ordering::Release);
        drop(held);
        self.inner.changed.notify_all();
    }

    /// Whether it was asked.
    pub fn asked(&self) -> bool {
        self.inner.asked.load(Ordering::Acquire)
    }

    /// For loops in other crates, which look at a plain flag.
    pub fn flag(&self) -> &AtomicBool {
        &self.inner.asked
    }

    /// Waits until it is asked, at most for so long; returns whether it was.
    pub fn wait_for(&self, limit: Duration) -> bool {
        let held = self
            .inner
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Woken early or late, the flag says what is the case.
        let _held = self
            .inner
            .changed
            .wait_timeout_while(held, limit, |()| !self.asked());
        self.asked()
    }

    /// Waits until it is asked.
    pub fn wait(&self) {
        let mut held = self
            .inner
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !self.asked() {
            let waited = self.inner.changed.wait(held);
            held = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_asks() {
        let stop = Stop::on_signals().unwrap();
        assert!(!stop.asked());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        stop.wait();
        assert!(stop.flag().load(Ordering::Acquire));
    }
}
