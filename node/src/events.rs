//! What happened lately, and the command that is told of it.
//!
//! Bounded: the last [`KEPT`] events; [`WAITING`] that the command was not told of yet (more are
//! not told, and that is said once); the command is ended after [`PATIENCE`].

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::child::end_within;
use crate::messages::{Event, EventKind};

/// Events kept.
pub const KEPT: usize = 1000;
const WAITING: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's head.
pub struct Events {
    node: String,
    kept: Mutex<(u64, VecDeque<Event>)>,
    notify: SyncSender<(String, Event)>,
}

impl Events {
    /// Of this node.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(node: &str) -> std::io::Result<Events> {
        let (notify, queue) = sync_channel(WAITING);
        // Ends with the sending side.
        thread::Builder::new()
            .name("notify".into())
            .spawn(move || tell(&queue))?;
        Ok(Events {
            node: node.to_owned(),
            kept: Mutex::default(),
            notify,
        })
    }

    /// Something happened; `command` is the configuration's.
    pub fn happened(
        &self,
        command: Option<&str>,
        kind: EventKind,
        volume: Option<&str>,
        text: String,
    ) {
        tracing::info!(?kind, volume, text, "event");
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let event = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.0 += 1;
            let event = Event {
                number: kept.0,
                // A clock before 1970 is shown as 1970: it is for people only.
                at: at.map_or(0, |d| d.as_secs()),
                node: self.node.clone(),
                volume: volume.map(str::to_owned),
                kind,
                text,
            };
            if kept.1.len() == KEPT {
                kept.1.pop_front();
            }
            kept.1.push_back(event.clone());
            event
        };
        if let Some(command) = command
            && self.notify.try_send((command.to_owned(), event)).is_err()
        {
            tracing::warn!("too many events wait for the notify command; one is not told");
        }
    }

    /// Those after a number.
    pub fn after(&self, number: u64) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let news = kept.1.iter().filter(|e| e.number > number);
        news.cloned().collect()
    }
}

fn tell(queue: &Receiver<(String, Event)>) {
    for (command, event) in queue {
        if let Err(error) = run(&command, &event) {
            tracing::warn!(command, %error, "the notify command failed");
        }
    }
}

fn run(command: &str, event: &Event) -> std::io::Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        // A group of its own: the news of this daemon's death is not to die with it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        let raw = serde_json::to_vec(event)?;
        // A command that does not read has its reasons.
        let _ = input.write_all(&raw);
    }
    match end_within(&mut child, PATIENCE)? {
        status if status.success() => Ok(()),
        status => Err(std::io::Error::other(status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn events_are_numbered_kept_in_bounds_and_told_to_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told");
        let events = Events::start("n").unwrap();
        for i in 0..KEPT + 5 {
            events.happened(None, EventKind::Degraded, Some("v"), i.to_string());
        }
        assert_eq!(events.after(0).len(), KEPT);
        let last = events.after(KEPT as u64 + 4);
        assert_eq!(last.len(), 1);
        let command = format!("cat > {0}.new && mv {0}.new {0}", file.display());
        events.happened(Some(&command), EventKind::Lost, Some("v"), "gone".into());
        let deadline = Instant::now() + Duration::from_secs(10);
        let told = loop {
            match std::fs::read(&file) {
                Ok(raw) => break raw,
                Err(_) if Instant::now() < deadline => thread::yield_now(),
                Err(e) => panic!("not told: {e}"),
            }
        };
        let event: Event = serde_json::from_slice(&told).unwrap();
        assert_eq!(event.kind, EventKind::Lost);
    }
}
