//! The watch thread: takes turns from calls that wait, and ends what slows down others.
//!
//! Nothing depends on it for being right: without it a call that waits holds up its own
//! connection, and no other. What it repeats (stalled connections, listeners) is what a race or a
//! shortage of file descriptors may have left undone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use crate::rpc::conn::lock;

/// How often the watch thread looks for calls that wait.
const TICK: Duration = Duration::from_millis(1);
/// The same while nothing goes on.
const IDLE_TICK: Duration = Duration::from_millis(100);
/// A started message that makes no progress for this long ends its connection, when memory is
/// short.
const SLOW_SENDER: Duration = Duration::from_secs(20);

impl Shared {
    /// Takes turns from calls that wait, and repeats what a race may have left undone.
    pub(super) fn watch(&self) {
        let mut seen = vec![0u64; self.slots.len()];
        let mut quiet = 0;
        let mut last_slow_check = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let mut active = false;
            for (slot, last) in self.slots.iter().zip(seen.iter_mut()) {
                let state = slot.state.load(Ordering::Acquire);
                active |= state != 0 && state & 1 == 0;
                if state != 0 && state & 1 == 0 && state == *last {
                    let take = slot.state.compare_exchange(
                        state,
                        state | 1,
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    if take.is_ok()
                        && let Some(conn) = lock(&slot.conn).clone()
                    {
                        self.counters.turns_taken.fetch_add(1, Ordering::Relaxed);
                        self.make_ready(conn);
                    }
                }
                *last = state;
            }
            if self.stalled_count.load(Ordering::Acquire) > 0 {
                active = true;
                self.resume_stalled();
            }
            quiet = if active { 0 } else { quiet + 1 };
            if last_slow_check.elapsed() > Duration::from_secs(1) {
                last_slow_check = Instant::now();
                self.end_slow_senders();
                (0..self.listeners.len()).for_each(|l| self.arm_listener(l));
            }
            if quiet > 100 {
                self.watch_idle.store(true, Ordering::Release);
                std::thread::park_timeout(IDLE_TICK);
                self.watch_idle.store(false, Ordering::Release);
            } else {
                // The tick of the watch, not a wait for a condition.
                std::thread::park_timeout(TICK);
            }
        }
    }

    /// When half of the memory for messages is taken, connections that began a message long ago
    /// and do not go on with it are ended.
    fn end_slow_senders(&self) {
        let conns = self.conns.read().unwrap_or_else(|e| e.into_inner());
        let mut owing = Vec::new();
        let mut reserved = self.total_bytes.load(Ordering::Acquire);
        for c in conns.values() {
            // Busy ones are being received from at this moment.
            if let Ok(input) = c.input.try_lock()
                && input.owes()
            {
                reserved += input.reserved();
                owing.push(Arc::clone(c));
            }
        }
        drop(conns);
        if reserved < self.limits.total_bytes / 2 {
            return;
        }
        let now = self.now_ms();
        for c in owing {
            let since = now.saturating_sub(c.last_call_ms.load(Ordering::Relaxed));
            if since > SLOW_SENDER.as_millis() as u64 {
                tracing::warn!(peer = %c.peer, "connection closed: a message begun and not ended");
                self.counters.ended_bad.fetch_add(1, Ordering::Relaxed);
                self.end(&c);
            }
        }
    }
}
