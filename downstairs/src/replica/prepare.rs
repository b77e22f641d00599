//! Making ready for a resync: everything here goes to the extent files, the region is marked
//! *mixed*, and takes over the peer's position. It may move a whole log, so it is done by the same
//! jobs as any sync and checkpoint, without the lock: the member answers everybody else meanwhile,
//! and the stream waits, for what follows in it comes after the jump.
//!
//! A crash in between leaves a region that is mixed, or as it was: the resync begins again. A
//! claim, or the end of the connection, ends it likewise.

use super::*;

/// A resync that was asked for and is not begun yet.
pub(super) struct Preparing {
    conn: ConnId,
    request: u64,
    generation: Generation,
    common: Seq,
    table: GenerationTable,
    /// The region is marked, its log is being emptied.
    pub marked: bool,
}

impl Replica {
    /// Begins it; answered when it is done, or cannot be.
    pub(super) fn begin_resync(
        &mut self,
        conn: ConnId,
        header: &Header,
        common: Seq,
        table: GenerationTable,
        out: &mut Vec<Out>,
    ) -> Result<(), Refusal> {
        // What was read from the network as parts is checked as a whole before it is believed.
        let table = GenerationTable::from_parts(table.floor(), table.rows().to_vec())
            .ok_or_else(|| Refusal::BadRequest("a generation table that cannot be".into()))?;
        self.store_mut()?;
        self.preparing = Some(Preparing {
            conn,
            request: header.seq,
            generation: header.generation,
            common,
            table,
            marked: false,
        });
        self.go_on_preparing(out);
        Ok(())
    }

    /// To be called whenever a sync or a checkpoint has ended.
    pub(super) fn go_on_preparing(&mut self, out: &mut Vec<Out>) {
        let Some(mut p) = self.preparing.take() else {
            return;
        };
        let here = self.conns.get(&p.conn).is_some_and(|c| !c.failed);
        if !here || self.stream != Some(p.conn) {
            return;
        }
        let done = self.prepare(&mut p);
        let reply = match done {
            Ok(false) => {
                self.preparing = Some(p);
                return;
            }
            Ok(true) => Reply::Done,
            Err(refusal) => Reply::Refused(refusal),
        };
        self.heed_poison();
        self.reply(p.conn, p.request, &reply, out);
        // What followed in the stream was sent after the jump.
        self.unpark(self.now, out);
    }

    /// Whether the stream of this connection waits for a resync to begin.
    pub(super) fn prepares(&self, conn: ConnId) -> bool {
        self.preparing.as_ref().is_some_and(|p| p.conn == conn)
    }

    /// One step; whether it was the last.
    fn prepare(&mut self, p: &mut Preparing) -> Result<bool, Refusal> {
        self.member.check(p.generation)?;
        if self.syncing || self.checkpointing {
            return Ok(false);
        }
        let store = self.store_mut()?;
        if !p.marked {
            mark(store, p.common).map_err(refusal)?;
            p.marked = true;
            let base = store.mixed().flatten().unwrap_or(Seq::ZERO);
            if base != p.common {
                // What it lists and what its source lists must begin at one place. It says its
                // own when it is greeted again.
                let why = format!("what changed since {} is not known here", p.common);
                return Err(Refusal::Unusable(format!(
                    "{why}; all since {base} is compared"
                )));
            }
        }
        if !store.all_synced() {
            self.sync_wanted = true;
            return Ok(false);
        }
        if !store.log_is_moved() {
            return Ok(false);
        }
        store.adopt(p.table.clone()).map_err(refusal)?;
        Ok(true)
    }
}

/// Cuts off what is not common, where that is possible, and marks the region mixed.
fn mark(store: &mut Store, common: Seq) -> Result<()> {
    if store.mixed().is_none()
        && common < store.end().seq
        && common >= store.checkpointed().seq.max(store.commit())
        && common > Seq::ZERO
    {
        store.cut(common)?;
    }
    store.mark_mixed((common > Seq::ZERO).then_some(common))?;
    // Everything here is common with the peer, or will be compared: nothing of it can be lost by
    // moving it to the extents now.
    store.set_commit(store.end().seq);
    Ok(())
}
