//! Scrub: the upstairs asks all replicas in sync about a range at one place of the history, and
//! compares what they say.

use trivet_protocol::limits::MAX_SCRUB_BLOCKS;
use trivet_protocol::message::Scrubbed;

use super::*;

impl Replica {
    /// `held`: looked at here and now, under the lock.
    pub(super) fn scrub_asked(
        &mut self,
        (conn, id): (ConnId, u64),
        generation: Generation,
        (block, count, held): (u64, u32, bool),
        out: &mut Vec<Out>,
    ) {
        match self.plan_scrub(generation, block, count) {
            Ok(job) if held => {
                self.reply(conn, id, &Reply::Scrubbed(job.run_held()), out);
            }
            Ok(job) => out.push(Out::Scrub(conn, id, job)),
            Err(refusal) => self.reply(conn, id, &Reply::Refused(refusal), out),
        }
    }

    fn plan_scrub(&mut self, g: Generation, block: u64, count: u32) -> Result<ScrubJob, Refusal> {
        self.member.check(g)?;
        if count == 0 || count > MAX_SCRUB_BLOCKS {
            return Err(Refusal::BadRequest(format!(
                "{count} blocks to be looked at"
            )));
        }
        let store = self.whole_store()?;
        store.begin_scrub(Block(block), count).map_err(refusal)
    }

    /// A look was run.
    pub fn scrub_done(
        &mut self,
        (conn, id): (ConnId, u64),
        job: &ScrubJob,
        found: Scrubbed,
        out: &mut Vec<Out>,
    ) {
        let Some(store) = self.store() else { return };
        let found = match store.untouched(job) {
            true => found,
            false => Scrubbed::Overtaken,
        };
        self.reply(conn, id, &Reply::Scrubbed(found), out);
    }

    /// A look that nobody has time for.
    pub fn scrub_refused(&mut self, conn: ConnId, id: u64, out: &mut Vec<Out>) {
        let why = "too many looks at this region wait for its disk".to_owned();
        self.reply(conn, id, &Reply::Refused(Refusal::BadRequest(why)), out);
    }
}
