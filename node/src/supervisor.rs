//! The daemon's parent: starts it, and puts right what it leaves behind when it dies.
//!
//! On a daemon's death, within milliseconds: what it had started ends (an `ip` of its own could
//! still bring an address back), the service addresses go, then its connections (see
//! [`crate::guard`]), then its leases are handed back at the other nodes, so that a standby need
//! not wait for them to run out. That is safe because the process was reaped: nothing of it can
//! answer anybody any more. Then the daemon is started again, as a standby.
//!
//! While it lives: an address whose lease has run out goes, too, so that a daemon that stands still
//! does not answer for its successor.
//!
//! This process holds no data and reads nothing from the network but answers of nodes.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use trivet_transport::Security;

use crate::addresses::Addresses;
use crate::client;
use crate::config::Config;
use crate::error::{NodeError, Result};
use crate::guard::{Heard, Held, Watch};
use crate::messages::{Answer, Ask};
use crate::net::ServiceNet;

/// How often it looks at its own orders.
const TICK: Duration = Duration::from_millis(100);
/// A node answers a hand-back within this time, or its promise runs out by itself.
const HAND_BACK: Duration = Duration::from_millis(800);
/// A daemon that was asked to end does so within this time.
const END: Duration = Duration::from_secs(60);
/// Between a death and the next start: the first time, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));
/// Words of a daemon that are still read after its end, at most.
pub(crate) const LAST_WORDS: usize = 1000;
/// A daemon that ends by itself within this time of its start has said why, and would again.
const START: Duration = Duration::from_secs(3);
/// A daemon that lived this long was not ill from the start.
const LIVED: Duration = Duration::from_secs(30);

/// Runs `command` as the daemon until `stop` says so, or it ends by itself in order. The socket
/// that it is told things through is its standard input. `config` says who the nodes are, as of
/// the daemon's death.
///
/// # Errors
/// It cannot be started.
pub fn run(
    command: impl Fn() -> Command,
    config: impl Fn() -> (Config, Security),
    stop: &AtomicBool,
) -> Result<ExitStatus> {
    let mut pause = AGAIN.0;
    loop {
        let began = Instant::now();
        let (mut watch, theirs) = Watch::pair().map_err(NodeError::Thread)?;
        let mut child = start(command(), theirs)?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let status = attend(&mut child, &mut watch, stop)?;
        if let Some(group) = group {
            // Nobody left in it is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let held = watch.take_held();
        if !held.is_empty() {
            let (config, security) = config();
            clear(&held, &mut watch, &config, &security);
        }
        let refused = status.code().is_some() && began.elapsed() < START;
        if stop.load(Ordering::Acquire) || status.success() || refused {
            return Ok(status);
        }
        if began.elapsed() > LIVED {
            pause = AGAIN.0;
        }
        tracing::error!(%status, again_in = ?pause, "the daemon died");
        thread::park_timeout(pause);
        pause = (pause * 2).min(AGAIN.1);
    }
}

fn start(mut command: Command, theirs: OwnedFd) -> Result<Child> {
    // A group of its own: a Ctrl-C is for this process, which asks the daemon in order.
    command
        .stdin(Stdio::from(theirs))
        .process_group(0)
        .spawn()
        .map_err(NodeError::Thread)
}

/// Until the daemon has ended and was reaped.
fn attend(child: &mut Child, watch: &mut Watch, stop: &AtomicBool) -> Result<ExitStatus> {
    let mut addresses = Addresses::default();
    let ended = attend_with(child, watch, stop, &mut addresses);
    // Also ends their announcements, which must not go on beside a successor's.
    addresses.take_away();
    ended
}

fn attend_with(
    child: &mut Child,
    watch: &mut Watch,
    stop: &AtomicBool,
    addresses: &mut Addresses,
) -> Result<ExitStatus> {
    let mut asked: Option<Instant> = None;
    loop {
        let mut heard = watch.listen(TICK);
        for _ in 0..LAST_WORDS {
            if heard == Heard::Ended || !watch.has_more() {
                break;
            }
            heard = watch.listen(Duration::ZERO);
        }
        if heard == Heard::Ended {
            return child.wait().map_err(NodeError::Thread);
        }
        addresses.follow(watch);
        if let Some(status) = child.try_wait().map_err(NodeError::Thread)? {
            // Its last words may still be unread.
            for _ in 0..LAST_WORDS {
                if watch.listen(Duration::from_millis(1)) == Heard::Ended {
                    break;
                }
            }
            return Ok(status);
        }
        match asked {
            None if stop.load(Ordering::Acquire) => {
                asked = Some(Instant::now());
                let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    // Gone already is as good.
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            Some(at) if at.elapsed() > END => {
                tracing::error!("the daemon does not end; it is killed");
                let _ = child.kill();
                asked = Some(Instant::now());
            }
            _ => {}
        }
    }
}

/// Whether the address is gone.
fn hide(volume: &str, net: &ServiceNet) -> bool {
    let hidden = net.hide_for_certain();
    if let Err(error) = &hidden {
        tracing::error!(volume, %error, "the service address stays");
    }
    hidden.is_ok()
}

fn clear(held: &[Held], watch: &mut Watch, config: &Config, security: &Security) {
    let mut free = Vec::new();
    for h in held {
        let hidden = h
            .service
            .as_ref()
            .is_none_or(|service| hide(&h.volume, &ServiceNet::new(&h.volume, h.id, service)));
        // Where the address may still be here, nobody else may serve: the lease runs out.
        if hidden {
            watch.let_go(&h.volume);
            free.push(h);
        }
    }
    // All nodes at once: one that is gone must not keep the others waiting.
    thread::scope(|s| {
        for node in &config.nodes {
            for &h in &free {
                let hand_back = move || hand_back(config, security, &node.name, h);
                if let Err(error) = thread::Builder::new().spawn_scoped(s, hand_back) {
                    tracing::warn!(%error, "no thread");
                }
            }
        }
    });
}

fn hand_back(config: &Config, security: &Security, node: &str, held: &Held) {
    let ask = Ask::HandBack {
        volume: held.id,
        generation: held.generation,
    };
    match client::ask(config, security, node, &ask, HAND_BACK) {
        Ok((Answer::Done, _)) => {
            tracing::info!(volume = held.volume, node, "lease handed back");
        }
        Ok((Answer::Refused(why), _)) => {
            tracing::debug!(volume = held.volume, node, why, "lease not handed back");
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(volume = held.volume, node, %error, "lease not handed back"),
    }
}
