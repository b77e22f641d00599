//! A scrub as it is asked for, reported and told of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trivet_protocol::{BLOCK_BYTES, MemberId};
use trivet_replica::upstairs::{Finding, Matter, ScrubStatus};

use crate::error::{NodeError, Result};
use crate::messages::{Answer, EventKind};
use crate::node::Node;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubAsk {
    /// Begin one, or let the one that goes on read so much: bytes per second and replica.
    Start(u64),
    /// End the one that goes on.
    Stop,
}

/// A scrub that goes on, or the last one since the volume became active where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Tells it from others.
    pub id: u64,
    /// It goes on.
    pub running: bool,
    /// It was ended by command before its end.
    pub stopped: bool,
    /// How far into the volume it is, in bytes.
    pub place: u64,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Bytes that were read on each replica in sync, and compared.
    pub looked: u64,
    /// Blocks of which a copy was not as it should be.
    pub wrong_blocks: u64,
    /// Of those: repaired, and found good after that.
    pub repaired_blocks: u64,
    /// Of those: not repaired.
    pub left_blocks: u64,
    /// Bytes of replicas that could not be looked at, by member.
    pub unseen: Vec<(MemberId, u64)>,
    /// The first that was found.
    pub findings: Vec<ScrubFinding>,
    /// Milliseconds that it has run, or ran.
    pub elapsed_ms: u64,
    /// Milliseconds since it ended.
    pub ended_ms: u64,
}

/// Something that a scrub found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFinding {
    /// First block of the volume, of 4 KiB.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// What is the matter: `damaged`, `differs`, `no_majority`, `no_good_copy`.
    pub matter: String,
    /// Whose copies.
    pub members: Vec<MemberId>,
}

impl From<Finding> for ScrubFinding {
    fn from(f: Finding) -> ScrubFinding {
        let matter = match f.matter {
            Matter::Damaged => "damaged",
            Matter::Differs => "differs",
            Matter::NoMajority => "no_majority",
            Matter::NoGoodCopy => "no_good_copy",
        };
        ScrubFinding {
            block: f.block,
            count: f.count,
            matter: matter.to_owned(),
            members: f.members,
        }
    }
}

impl From<ScrubStatus> for ScrubReport {
    fn from(s: ScrubStatus) -> ScrubReport {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
        ScrubReport {
            id: s.id,
            running: s.running,
            stopped: s.stopped,
            place: bytes(s.place),
            size: bytes(s.blocks),
            looked: bytes(s.looked),
            wrong_blocks: s.wrong,
            repaired_blocks: s.repaired,
            left_blocks: s.left,
            unseen: s.unseen.into_iter().map(|(m, n)| (m, bytes(n))).collect(),
            findings: s.findings.into_iter().map(ScrubFinding::from).collect(),
            elapsed_ms: s.elapsed_ms,
            ended_ms: s.ended_ms,
        }
    }
}

impl ScrubReport {
    /// What became of it, in one line.
    pub fn outcome(&self) -> String {
        let mib = self.looked >> 20;
        let end = if self.stopped { "stopped" } else { "done" };
        let found = match (self.wrong_blocks, self.left_blocks) {
            (0, _) if self.looked == 0 && !self.unseen.is_empty() => "nothing is known".to_owned(),
            (0, _) if self.unseen.is_empty() => "all copies are good and alike".to_owned(),
            (0, _) => "nothing bad in what was looked at".to_owned(),
            (wrong, 0) => format!("{wrong} blocks had a bad copy, all repaired"),
            (wrong, left) => {
                format!("{wrong} blocks had a bad copy, {left} of them NOT REPAIRED")
            }
        };
        let unseen = match self.unseen.len() {
            0 => String::new(),
            1 => "; one replica was not looked at everywhere".to_owned(),
            n => format!("; {n} replicas were not looked at everywhere"),
        };
        format!("{end}, {mib} MiB of each replica read: {found}{unseen}")
    }
}

/// What is worth an event, by what was known before: a scrub's end, and that it finds something
/// that it cannot repair.
pub(crate) fn news(before: Option<&ScrubReport>, now: Option<&ScrubReport>) -> Option<String> {
    let now = now?;
    let ran = before.is_none_or(|b| b.running || b.id != now.id);
    let left = before.filter(|b| b.id == now.id);
    if !now.running {
        return ran.then(|| format!("scrub {}", now.outcome()));
    }
    let first = now.left_blocks > 0 && left.is_none_or(|b| b.left_blocks == 0);
    first.then(|| "a scrub finds blocks that it cannot repair; `trivet status` tells more".into())
}

/// Does what is asked for, on the volume that is active here.
pub(crate) fn scrub(node: &Arc<Node>, volume: &str, what: ScrubAsk) -> Result<Answer> {
    let refused = |why: String| NodeError::Refused {
        volume: volume.to_owned(),
        why,
    };
    let (upstairs, _) = node.role(volume)?.handles()?;
    match what {
        ScrubAsk::Start(rate) => {
            let begun = upstairs.with(|u, now| match u.set_scrub_rate(rate) {
                true => Ok(false),
                false => u.scrub(now, rate).map(|()| true),
            });
            if begun.map_err(|e| refused(e.to_string()))? {
                let text = format!("a scrub begins, {} MiB/s", rate >> 20);
                node.event(EventKind::Scrub, Some(volume), text);
            }
        }
        ScrubAsk::Stop => {
            if !upstairs.with(|u, now| u.stop_scrub(now)) {
                return Err(refused(
                    "no scrub of it goes on; `trivet scrub` begins one".into(),
                ));
            }
        }
    }
    let scrub = upstairs.status().scrub;
    Ok(scrub.map_or(Answer::Done, |s| Answer::Scrub(Box::new(s.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_of_the_end_once_and_of_what_cannot_be_repaired_once() {
        let running = |left| ScrubReport {
            running: true,
            elapsed_ms: 50,
            left_blocks: left,
            wrong_blocks: left,
            ..ScrubReport::default()
        };
        let ended = |left| ScrubReport {
            running: false,
            elapsed_ms: 100,
            ..running(left)
        };
        let told = |a: Option<&ScrubReport>, b: &ScrubReport| news(a, Some(b));
        assert_eq!(news(None, None), None);
        assert_eq!(told(None, &running(0)), None);
        let end = told(Some(&running(0)), &ended(0));
        assert!(end.is_some_and(|t| t.contains("all copies are good")));
        assert_eq!(told(Some(&ended(0)), &ended(0)), None);
        // Another one after it, begun and over between two looks.
        let quick = ScrubReport { id: 7, ..ended(0) };
        assert!(told(Some(&ended(0)), &quick).is_some());
        assert!(told(Some(&running(0)), &running(3)).is_some_and(|t| t.contains("cannot repair")));
        assert_eq!(told(Some(&running(3)), &running(5)), None);
        let end = told(Some(&running(5)), &ended(5));
        assert!(end.is_some_and(|t| t.contains("5 of them NOT REPAIRED")));
    }
}
