//! What is done to the cluster, and what it cost its clients.
//!
//! Each event begins with a cluster that lacks nothing and ends when it lacks nothing again, with
//! every stream of the client going on; the pause is the longest in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use trivet_bench::rng::Rng;

use crate::beside::Beside;
use crate::cluster::Watch;
use crate::error::{LabError, Result};
use crate::findings::{Findings, Kind};
use crate::lab::{Lab, VOLUME};
use crate::load::Load;
use crate::sys::{self, Stop};

/// Another node is active within this time, or the run ends: far above any bar.
const TAKEN: u64 = 40;
/// Nothing is missing any more within this time.
const WHOLE: u64 = 90;
/// After a pool has space again, nothing is refused any more within this time.
const ROOM: u64 = 30;
/// Nothing was refused for so long: what asks for space asks several times a second.
const QUIET: Duration = Duration::from_secs(2);
/// What of a disk fails, by chance.
const FAILING: [&str; 3] = ["sync", "write,sync", "read,write,sync,alloc,name,open"];
/// What a node says of a disk that it leaves alone from then on.
const GIVEN_UP: &str = "its replica stays out until this process is started anew";

/// One thing that happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Event {
    /// `kill -9` of the active daemon; its host lives.
    Kill,
    /// The same of daemon and supervisor together, as the kernel does when memory is short.
    KillBoth,
    /// The active host loses power: all its processes, its link, and what its disk had not synced.
    LoseNode,
    /// The host of a standby likewise.
    LoseStandby,
    /// All hosts likewise, at once.
    LoseAll,
    /// The active daemon stands still for 1 to 6 s.
    Pause,
    /// The active host's cable.
    CutActive,
    /// A standby's cable.
    CutStandby,
    /// Nothing that the active host sends arrives.
    MuteActive,
    /// Nothing that is sent to the active host arrives.
    DeafActive,
    /// Nothing that a standby sends arrives.
    MuteStandby,
    /// `trivet promote` on another node.
    Move,
    /// `trivet drain` of the active node, and `undrain`.
    Drain,
    /// The active daemon is asked to end, and started again, as in an update.
    RestartActive,
    /// A standby's likewise.
    RestartStandby,
    /// The pool of the active host is full for 1 to 6 s.
    FullActive,
    /// A standby's likewise.
    FullStandby,
    /// The disk of the active host's pool fails for 1 to 6 s: what is written or synced.
    FailActive,
    /// A standby's likewise.
    FailStandby,
    /// The disk of the active host's pool does nothing for 1 to 6 s.
    HangActive,
    /// A standby's likewise.
    HangStandby,
    /// It is demoted, and two nodes are promoted at once. Not drawn: it stops the service first.
    Race,
}

/// The pauses that are promised, in seconds: median and worst.
pub type Bar = (f64, f64);

impl Event {
    /// All, some more often: what a run draws from.
    const DECK: [Event; 24] = [
        Event::Kill,
        Event::Kill,
        Event::KillBoth,
        Event::LoseNode,
        Event::LoseNode,
        Event::LoseStandby,
        Event::LoseAll,
        Event::Pause,
        Event::CutActive,
        Event::CutStandby,
        Event::MuteActive,
        Event::DeafActive,
        Event::MuteStandby,
        Event::Move,
        Event::Move,
        Event::Drain,
        Event::RestartActive,
        Event::RestartStandby,
        Event::FullActive,
        Event::FullStandby,
        Event::FailActive,
        Event::FailStandby,
        Event::HangActive,
        Event::HangStandby,
    ];

    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Event::Kill => "daemon killed, host alive",
            Event::KillBoth => "daemon and supervisor killed",
            Event::LoseNode => "whole node gone and back",
            Event::LoseStandby => "standby node gone and back",
            Event::LoseAll => "all nodes gone and back",
            Event::Pause => "daemon stopped 1 to 6 s",
            Event::CutActive => "active node's cable",
            Event::CutStandby => "a standby's cable",
            Event::MuteActive => "active node cannot send",
            Event::DeafActive => "active node cannot receive",
            Event::MuteStandby => "a standby cannot send",
            Event::Move => "planned move",
            Event::Drain => "drain, undrain",
            Event::RestartActive => "active daemon restarted",
            Event::RestartStandby => "standby daemon restarted",
            Event::FullActive => "active node's pool full",
            Event::FullStandby => "a standby's pool full",
            Event::FailActive => "active node's disk fails",
            Event::FailStandby => "a standby's disk fails",
            Event::HangActive => "active node's disk hangs",
            Event::HangStandby => "a standby's disk hangs",
            Event::Race => "two promotes at once",
        }
    }

    /// What is promised for it.
    pub fn bar(self) -> Option<Bar> {
        match self {
            Event::LoseNode => Some((3.5, 6.0)),
            Event::Kill => Some((1.5, 3.5)),
            Event::Move | Event::Drain => Some((0.3, 1.0)),
            // A read has a patience of 0.3 s, and a replica that stands still leaves after 0.6 s.
            Event::HangActive | Event::HangStandby => Some((1.0, 2.0)),
            _ => None,
        }
    }
}

/// The order of a run: whole decks, shuffled, one after the other.
pub fn order(rng: &mut Rng, count: usize, only: &[Event], except: &[Event]) -> Vec<Event> {
    let mut deck: Vec<Event> = match only.is_empty() {
        true => Event::DECK.to_vec(),
        false => only.to_vec(),
    };
    deck.retain(|e| !except.contains(e));
    let count = if deck.is_empty() { 0 } else { count };
    let mut all = Vec::new();
    while all.len() < count {
        let mut next = deck.clone();
        for n in (1..next.len()).rev() {
            let other = usize::try_from(rng.below(n as u64 + 1)).unwrap_or_default();
            next.swap(n, other);
        }
        all.extend(next);
    }
    all.truncate(count);
    all
}

/// What one event was.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which.
    pub event: Event,
    /// Where it was active before, and after.
    pub nodes: (String, String),
    /// The longest time between two acknowledged durable writes.
    pub pause: Duration,
    /// Until nothing was missing.
    pub whole_after: Duration,
    /// The move that it led to, if one.
    pub timeline: Vec<(String, f64)>,
    /// The same at each program beside the load.
    pub beside: Vec<(String, Duration)>,
    /// Calls that were refused because a pool was full.
    pub refused: u64,
    /// Findings in its course.
    pub findings: u64,
}

/// Does it to them.
pub struct Nemesis<'a> {
    /// The lab.
    pub lab: &'a mut Lab,
    /// How it is.
    pub watch: &'a Watch,
    /// Who notices.
    pub load: &'a Load,
    /// Who else notices.
    pub beside: &'a mut [Beside],
    /// What was wrong.
    pub findings: &'a Findings,
    /// Ctrl-C.
    pub stop: &'a Stop,
    /// Lengths and choices.
    pub rng: Rng,
}

impl Nemesis<'_> {
    /// One event, from whole to whole.
    ///
    /// # Errors
    /// The cluster does not become whole again, the lab fails, or Ctrl-C.
    pub fn run(&mut self, event: Event) -> Result<Record> {
        let before = self.findings.all();
        let refused = self.load.refused();
        let view = self.whole("the cluster lacks nothing")?;
        self.load.mark();
        self.beside.iter_mut().for_each(Beside::mark);
        let began = Instant::now();
        let done = self.apply(event, &view.active, view.report.generation);
        if let Err(LabError::Late { what, last, .. }) = &done {
            let words = format!("{}: {what}: {last}", event.name());
            self.findings.add(Kind::NotWhole, words);
        }
        done?;
        let after = self.whole(event.name())?;
        let whole_after = began.elapsed();
        let now = Instant::now();
        let goes_on =
            |n: &Self| n.load.alive_since(now) && n.beside.iter().all(|b| b.pulse.last() > now);
        self.until("every stream goes on", WHOLE, goes_on)?;
        let pause = self.load.pause();
        let worst = |b: &Beside| (b.name.clone(), b.pulse.worst());
        let beside = self.beside.iter().map(worst).collect();
        self.load.look(self.stop, event.name())?;
        let moved = after.report.generation > view.report.generation;
        let timeline = after.last_move.filter(|_| moved).map(|m| m.timeline);
        Ok(Record {
            event,
            nodes: (view.active, after.active),
            pause,
            whole_after,
            timeline: timeline.unwrap_or_default(),
            beside,
            refused: self.load.refused() - refused,
            findings: self.findings.all() - before,
        })
    }

    fn until(&self, what: &str, seconds: u64, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        self.watch.until(self.stop, what, seconds, |_| is_so(self))
    }

    fn whole(&self, after: &str) -> Result<crate::cluster::View> {
        let mut seen = None;
        let waited = self
            .watch
            .until(self.stop, "nothing is missing", WHOLE, |w| {
                seen = w.view().filter(|v| v.whole);
                seen.is_some()
            });
        if let Err(LabError::Late { last, .. }) = &waited {
            let words = format!("after {after}: {last}");
            self.findings.add(Kind::NotWhole, words);
        }
        waited?;
        seen.ok_or(LabError::Interrupted)
    }

    /// Until a later reign serves.
    fn taken(&self, generation: u64) -> Result<()> {
        self.until("another reign serves", TAKEN, |n| {
            let v = n.watch.view();
            v.is_some_and(|v| v.report.generation > generation)
        })
    }

    fn apply(&mut self, event: Event, active: &str, generation: u64) -> Result<()> {
        let standby = self.standby(active);
        let next = self.other_exporter(active);
        match event {
            Event::Kill => self.kill(active, generation, false),
            Event::KillBoth => self.kill(active, generation, true),
            Event::LoseNode => self.lose(active, Some(generation)),
            Event::LoseStandby => self.lose(&standby, None),
            Event::LoseAll => self.lose_all(generation),
            Event::Pause => self.pause(active),
            Event::CutActive => self.cut(active),
            Event::CutStandby => self.cut(&standby),
            Event::MuteActive => self.one_way(active, true),
            Event::DeafActive => self.one_way(active, false),
            Event::MuteStandby => self.one_way(&standby, true),
            Event::Move => {
                self.command(&["promote", VOLUME, "--node", &next, "--yes"])?;
                self.taken(generation)
            }
            Event::Drain => {
                self.command(&["drain", active])?;
                self.taken(generation)?;
                self.command(&["undrain", active])
            }
            Event::RestartActive => {
                self.lab.host(active)?.stop_serving()?;
                self.taken(generation)?;
                self.lab.host(active)?.serve()
            }
            Event::RestartStandby => {
                let host = self.lab.host(&standby)?;
                host.stop_serving()?;
                host.serve()
            }
            Event::FullActive => self.full(active),
            Event::FullStandby => self.full(&standby),
            Event::FailActive => self.fail(active),
            Event::FailStandby => self.fail(&standby),
            Event::HangActive => self.hang(active),
            Event::HangStandby => self.hang(&standby),
            Event::Race => self.race(generation),
        }
    }

    fn standby(&mut self, active: &str) -> String {
        let mut others = self.lab.hosts.iter().filter(|h| h.name != active);
        let which = usize::try_from(self.rng.below(2)).unwrap_or_default();
        others
            .nth(which)
            .map(|h| h.name.clone())
            .unwrap_or_default()
    }

    /// One that can be active, and is not.
    fn other_exporter(&mut self, active: &str) -> String {
        let mut others = self.lab.exporters();
        others.retain(|n| n != active);
        let which = self.rng.below(others.len().max(1) as u64);
        others
            .into_iter()
            .nth(usize::try_from(which).unwrap_or_default())
            .unwrap_or_default()
    }

    /// Two claims at once, of a volume that nobody has. Each that is told that it won had a
    /// reign of its own, the second one after the first, or there was one winner.
    fn race(&mut self, generation: u64) -> Result<()> {
        self.command(&["demote", VOLUME, "--yes"])?;
        let mut nodes = self.lab.exporters();
        while nodes.len() > 2 {
            let out = self.rng.below(nodes.len() as u64);
            nodes.remove(usize::try_from(out).unwrap_or_default());
        }
        let lab = &*self.lab;
        let promote = |node: &str| lab.at_client(&["promote", VOLUME, "--node", node, "--yes"]);
        let told: Vec<_> = std::thread::scope(|s| {
            let begun: Vec<_> = nodes.iter().map(|n| s.spawn(|| promote(n))).collect();
            begun.into_iter().map(|b| b.join()).collect()
        });
        let mut won = BTreeSet::new();
        let mut said = String::new();
        for (node, told) in nodes.iter().zip(told) {
            let (ok, out, err) =
                told.map_err(|_| LabError::Unable("a thread of the race ended badly".into()))??;
            let number = out.split("generation ").nth(1).unwrap_or_default();
            let number = number
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
            said.push_str(&format!("{node}: {out}{err} "));
            if ok && !won.insert(number) {
                self.findings
                    .add(Kind::TwoActive, format!("in a race: {said}"));
            }
        }
        if won.is_empty() {
            // Each had promises of some members and none of a majority, and was told who had the
            // others: safe, and for the person to try again.
            println!("no winner: {said}");
            let node = nodes.first().map_or("", String::as_str);
            let again = ["promote", VOLUME, "--node", node, "--yes", "--wait"];
            self.command(&again)?;
        }
        self.taken(generation)?;
        // A node remembers its last reign: no two have had the same one.
        let mut reigns = BTreeMap::new();
        for report in self.watch.reports() {
            let volume = report.volumes.iter().find(|v| v.name == VOLUME);
            let Some(last) = volume.and_then(|v| v.role.last_move.as_ref()) else {
                continue;
            };
            if let Some(other) = reigns.insert(last.generation, report.node.clone()) {
                let words = format!("{other} and {} reigned as {}", report.node, last.generation);
                self.findings.add(Kind::TwoActive, words);
            }
        }
        Ok(())
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from * 1000 + self.rng.below((to - from) * 1000))
    }

    fn command(&self, words: &[&str]) -> Result<()> {
        let (ok, _, said) = self.lab.at_client(words)?;
        if !ok {
            let words = format!("trivet {}: {said}", words.join(" "));
            self.findings.add(Kind::Answer, words);
        }
        Ok(())
    }

    fn kill(&mut self, active: &str, generation: u64, both: bool) -> Result<()> {
        let (daemon, supervisor) = self.lab.host(active)?.daemon();
        let victims = [supervisor.filter(|_| both), daemon];
        for pid in victims.into_iter().flatten() {
            sys::signal(pid, Signal::KILL);
        }
        self.taken(generation)?;
        let host = self.lab.host(active)?;
        if both || supervisor.is_none() {
            host.wait_served()?;
            host.serve()?;
        }
        Ok(())
    }

    fn lose(&mut self, name: &str, taken_from: Option<u64>) -> Result<()> {
        self.lab.cable(name, false)?;
        self.power_cut(name)?;
        match taken_from {
            Some(generation) => self.taken(generation)?,
            None => {
                let away = self.seconds(1, 8);
                self.stop.sleep(away)?;
            }
        }
        let away = self.seconds(0, 3);
        self.stop.sleep(away)?;
        self.power_on(name)
    }

    /// What was acknowledged is on the disks, or lost. The cables go first: what one of them still
    /// acknowledges is heard by nobody.
    fn lose_all(&mut self, generation: u64) -> Result<()> {
        let names: Vec<String> = self.lab.hosts.iter().map(|h| h.name.clone()).collect();
        for name in &names {
            self.lab.cable(name, false)?;
        }
        for name in &names {
            self.power_cut(name)?;
        }
        let away = self.seconds(0, 3);
        self.stop.sleep(away)?;
        for name in &names {
            self.power_on(name)?;
        }
        self.taken(generation)
    }

    fn power_cut(&mut self, name: &str) -> Result<()> {
        let keep = [0, 50, 100];
        let which = usize::try_from(self.rng.below(keep.len() as u64)).unwrap_or_default();
        let keep = keep.get(which).copied().unwrap_or_default();
        let seed = self.rng.below(u64::MAX);
        let lost = self.lab.host(name)?.power_cut(seed, keep)?;
        println!("{name} without power: {lost}");
        Ok(())
    }

    fn power_on(&mut self, name: &str) -> Result<()> {
        self.lab.cable(name, true)?;
        let host = self.lab.host(name)?;
        host.power_on()?;
        host.serve()
    }

    fn pause(&mut self, active: &str) -> Result<()> {
        let (daemon, _) = self.lab.host(active)?.daemon();
        let still = self.seconds(1, 6);
        if let Some(pid) = daemon {
            sys::signal(pid, Signal::STOP);
            let slept = self.stop.sleep(still);
            sys::signal(pid, Signal::CONT);
            slept?;
        }
        Ok(())
    }

    fn cut(&mut self, name: &str) -> Result<()> {
        self.lab.cable(name, false)?;
        let away = self.seconds(1, 8);
        let slept = self.stop.sleep(away);
        self.lab.cable(name, true)?;
        slept
    }

    fn one_way(&mut self, name: &str, from: bool) -> Result<()> {
        self.lab.lose(name, from)?;
        let away = self.seconds(1, 8);
        let slept = self.stop.sleep(away);
        self.lab.lose_nothing()?;
        slept
    }

    /// What needs space is refused then, and for as long as the replica has none to promise: its
    /// reserve is made whole by its next checkpoint.
    fn full(&mut self, name: &str) -> Result<()> {
        let away = self.seconds(1, 6);
        let before = self.load.refused();
        self.load.scarce(true);
        self.lab.host(name)?.disk.fill()?;
        let slept = self.stop.sleep(away);
        self.lab.host(name)?.disk.empty()?;
        slept?;
        let freed = Instant::now();
        let quiet = |n: &Self| n.load.quiet_since(freed) > QUIET;
        self.until("nothing is refused any more", ROOM, quiet)?;
        self.load.scarce(false);
        if self.load.refused() == before {
            let words = format!("{name}'s pool was full, and a file grew all the same");
            self.findings.add(Kind::Answer, words);
        }
        Ok(())
    }

    fn fail(&mut self, name: &str) -> Result<()> {
        let which = usize::try_from(self.rng.below(FAILING.len() as u64)).unwrap_or_default();
        let what = FAILING.get(which).copied().unwrap_or("sync");
        let away = self.seconds(1, 6);
        let host = self.lab.host(name)?;
        let log = host.log();
        let from = std::fs::metadata(&log).map_or(0, |m| m.len());
        host.disk.command(&format!("fail {what} EIO"))?;
        let slept = self.stop.sleep(away);
        self.felt(name, " seen=0]")?;
        self.lab.host(name)?.disk.command("clear")?;
        slept?;
        // A disk that has failed ten times is left alone, and its node says what it waits for.
        let given_up = || said_since(&log, from).contains(GIVEN_UP);
        self.until("its replica is well, or given up", WHOLE, |n| {
            n.watch.view().is_some_and(|v| v.whole) || given_up()
        })?;
        if given_up() {
            println!("the disk of {name} was given up: its daemon is started anew");
            let host = self.lab.host(name)?;
            host.stop_serving()?;
            host.serve()?;
        }
        Ok(())
    }

    fn hang(&mut self, name: &str) -> Result<()> {
        let away = self.seconds(1, 6);
        self.lab.host(name)?.disk.command("hang write,sync,alloc")?;
        let slept = self.stop.sleep(away);
        self.felt(name, " hanging=0 ")?;
        self.lab.host(name)?.disk.command("release")?;
        slept
    }

    /// The disk had work to do meanwhile, or nothing was tried.
    fn felt(&mut self, name: &str, nothing: &str) -> Result<()> {
        let status = self.lab.host(name)?.disk.command("status")?;
        if status.contains(nothing) {
            let words = format!("{name}'s disk was to fail, and nobody used it: {status}");
            self.findings.add(Kind::Answer, words);
        }
        Ok(())
    }
}

/// What was added to a log.
fn said_since(log: &Path, from: u64) -> String {
    let mut said = Vec::new();
    let read = std::fs::File::open(log).and_then(|mut f| {
        f.seek(SeekFrom::Start(from))?;
        f.read_to_end(&mut said)
    });
    // One that cannot be read says nothing, which the wait's end tells.
    read.map_or(String::new(), |_| {
        String::from_utf8_lossy(&said).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_order_and_a_deck_holds_every_event() {
        let draw = |seed| order(&mut Rng::new(seed), Event::DECK.len(), &[], &[]);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let mut drawn = draw(7);
        drawn.sort();
        let mut deck = Event::DECK.to_vec();
        deck.sort();
        assert_eq!(drawn, deck);
        let only = order(&mut Rng::new(1), 5, &[Event::Move], &[]);
        let rest = order(&mut Rng::new(1), 40, &[], &[Event::DeafActive]);
        assert!(rest.len() == 40 && !rest.contains(&Event::DeafActive));
        assert_eq!(only, vec![Event::Move; 5]);
    }
}
