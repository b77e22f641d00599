//! Drops the locks of clients that are gone, where the administrator asked for it.
//!
//! A fenced host never says that it restarted before it has; its virtual machines cannot start
//! elsewhere while its locks stand. Gone is a client without any connection for the time that was
//! set. Off unless set: a client that is only cut off believes that it holds its locks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trivet_fs::lock::LockOwner;

use crate::export::plain;
use crate::nlm::Nlm;
use crate::nlm::types::split_host;
use crate::rpc::conn::lock;
use crate::rpc::pool::Pool;

/// Locks looked at, at most.
const MAX_LOCKS: usize = 65_536;

/// The thread; dropping it ends it.
pub(crate) struct Reaper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Watches the clients of `pool` that hold locks in `nlm`.
    pub(crate) fn start(
        pool: &Arc<Pool>,
        nlm: &Arc<Nlm>,
        after: Duration,
    ) -> std::io::Result<Reaper> {
        let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let stopped = Arc::clone(&stop);
        let (pool, nlm) = (Arc::downgrade(pool), Arc::clone(nlm));
        let every = (after / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        let thread = std::thread::Builder::new()
            .name("nfs-reaper".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut seen = HashMap::new();
                loop {
                    let guard = lock(&stopped.0);
                    let waited = stopped.1.wait_timeout_while(guard, every, |stop| !*stop);
                    if waited.map_or(true, |(stop, _)| *stop) {
                        return;
                    }
                    let Some(pool) = pool.upgrade() else {
                        return;
                    };
                    look(&pool, &nlm, after, &mut seen);
                }
            })?;
        Ok(Reaper {
            stop,
            thread: Some(thread),
        })
    }
}

fn look(pool: &Pool, nlm: &Nlm, after: Duration, seen: &mut HashMap<IpAddr, Instant>) {
    let now = Instant::now();
    let holders = nlm.list(MAX_LOCKS);
    let holders = holders.iter().filter_map(|(_, held)| match &held.owner {
        LockOwner::Nlm { host, .. } => split_host(host).map(|(_, a)| a),
        LockOwner::Local { .. } => None,
    });
    let holders: std::collections::HashSet<IpAddr> = holders.collect();
    for (peer, _) in pool.connections() {
        seen.insert(plain(peer.ip()), now);
    }
    // A holder that was never seen since the start counts from now.
    for a in &holders {
        seen.entry(*a).or_insert(now);
    }
    seen.retain(|a, _| holders.contains(a));
    for (address, last) in seen.iter() {
        if now.duration_since(*last) < after {
            continue;
        }
        match nlm.release(|_, a| a == *address) {
            Ok(0) => {}
            Ok(n) => tracing::warn!(
                client = %address, locks = n,
                "locks dropped: no connection for {} s", after.as_secs()
            ),
            Err(e) => tracing::warn!(client = %address, "locks of a client that is gone: {e}"),
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
        if let Some(t) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = t.join();
        }
    }
}
