//! Scrubs: begun by chance, by stories, and at the end of every world, where one has to find
//! everything whole, or make it so.

use trivet_downstairs::store::ScrubJob;
use trivet_replica::upstairs::{Finding, Matter, ScrubStatus};

use super::*;

impl World {
    pub(super) fn scrub_done(
        &mut self,
        node: usize,
        boot: u64,
        conn: ConnId,
        id: u64,
        job: Box<ScrubJob>,
    ) {
        let until = self.nodes[node].paused_until;
        let event = Event::ScrubDone(node, boot, conn, id, job);
        let Some(Event::ScrubDone(.., job)) = self.put_off(until, event) else {
            return;
        };
        if !self.boot_ok(node, boot) {
            return;
        }
        let found = job.run();
        let mut out = Vec::new();
        if let Some(r) = &mut self.nodes[node].replica {
            r.scrub_done((conn, id), &job, found, &mut out);
        }
        self.perform(node, out);
    }

    /// The upstairs scrubs, if it serves and does not do so already.
    pub fn scrub(&mut self, up: usize) {
        let rate = (1 + self.rng.below(100)) << 20;
        self.with_up(up, |core, now| {
            // It may be over, or under way: then there is nothing to begin.
            let _ = core.scrub(now, rate);
        });
    }

    /// In some reigns, some time after they began.
    pub(super) fn scrub_later(&mut self, up: usize) {
        if self.rng.one_in(2) {
            let inc = self.ups[up].incarnation;
            let nanos = self.rng.below(2_000 * MS);
            self.after(nanos, Event::Scrub(up, inc));
        }
    }

    pub fn scrub_of(&self, up: usize) -> Option<ScrubStatus> {
        let core = self.ups[up].core.as_ref()?;
        core.status(Now(0)).scrub
    }

    /// A scrub tells of nothing that did not happen: replicas in sync that are at the same place of
    /// the history differ only where a disk was harmed, and copies are bad only where it was, or
    /// where a read failed.
    pub(super) fn found_by_scrub(&mut self, finding: &Finding) {
        let harmless = matches!(finding.matter, Matter::Damaged | Matter::NoGoodCopy);
        let known = self.harmed || harmless && self.reads_failed;
        if !known {
            let why = format!("I7: a scrub found what nobody did: {finding:?}");
            self.check(Err(why));
        }
    }

    /// Once everything is well again, one last scrub; true when it is over.
    pub(super) fn last_scrub(&mut self) -> bool {
        let Some(up) = self.active() else {
            return false;
        };
        let inc = self.ups[up].incarnation;
        if self.scrubbed_by != Some((up, inc)) {
            self.with_up(up, |core, now| {
                core.stop_scrub(now);
            });
            self.scrubbed_by = Some((up, inc));
            self.scrub(up);
        }
        self.scrub_of(up).is_some_and(|s| !s.running)
    }

    /// What the last scrub of a world must say.
    pub(super) fn last_scrub_is_good(&self, up: usize) -> Result<(), String> {
        let Some(s) = self.scrub_of(up).filter(|s| !s.running && !s.stopped) else {
            return Err("liveness: the last scrub came to no end".into());
        };
        let whole = s.left == 0 && s.wrong == s.repaired && (self.harmed || s.wrong == 0);
        match whole && s.place == BLOCKS {
            true => Ok(()),
            false => Err(format!("I7: what the last scrub says: {s:?}")),
        }
    }
}
