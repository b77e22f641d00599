//! Commands that this program runs, and waits for no longer than it should.

use std::io;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::guard::wait_for;

/// The end of a child. One that has not ended within `patience` is killed; either way it is reaped.
///
/// # Errors
/// It did not end in time ([`io::ErrorKind::TimedOut`]), or cannot be waited for.
pub fn end_within(child: &mut Child, patience: Duration) -> io::Result<ExitStatus> {
    let ended = ends(child, patience);
    if !matches!(ended, Ok(true)) {
        // One that has ended by now is as good.
        let _ = child.kill();
    }
    let status = child.wait()?;
    match ended? {
        true => Ok(status),
        false => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no end after {patience:?}"),
        )),
    }
}

fn ends(child: &Child, patience: Duration) -> io::Result<bool> {
    let fd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if wait_for(&fd, PollFlags::IN, left) {
            return Ok(true);
        }
        // Else a signal came.
        if left.is_zero() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_ends_or_is_ended() {
        let mut good = Command::new("true").spawn().unwrap();
        assert!(
            end_within(&mut good, Duration::from_secs(60))
                .unwrap()
                .success()
        );
        let mut bad = Command::new("false").spawn().unwrap();
        assert!(
            !end_within(&mut bad, Duration::from_secs(60))
                .unwrap()
                .success()
        );
        let mut hangs = Command::new("sleep").arg("1000").spawn().unwrap();
        let late = end_within(&mut hangs, Duration::from_millis(10)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(!hangs.wait().unwrap().success(), "killed, and reaped");
    }
}
