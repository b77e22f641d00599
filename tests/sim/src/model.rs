//! What must hold, whatever happens: the checker beside the simulated world.
//!
//! Every operation is known by (generation number, sequence number), which belongs to one writer
//! (invariant 1). A history is a generation table; its content is the fold of its operations.

use std::collections::{BTreeMap, BTreeSet};

use trivet_protocol::{GenerationTable, Seq};

/// Content of a block: the tag that fills it, 0 for unwritten.
pub type Tag = u64;

/// One operation as the model keeps it.
#[derive(Clone, Debug, Default)]
pub struct ModelOp {
    /// First block, number of blocks, tag of the first (the next block has the next tag); a tag
    /// of 0 discards.
    pub parts: Vec<(u64, u64, Tag)>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Model {
    ops: BTreeMap<(u64, u64), ModelOp>,
    /// The history that was acknowledged as durable: generation of each place, from 1 on.
    acked: Vec<u64>,
    /// Highest generation that ever served.
    served: u64,
    /// Acknowledgements checked.
    pub acks: u64,
    /// Reads checked.
    pub reads: u64,
    /// Activations checked.
    pub activations: u64,
}

/// The invariant that was broken, and how.
pub type Violation = String;

impl Model {
    /// An upstairs ordered an operation.
    pub fn ordered(&mut self, generation: u64, seq: Seq, op: ModelOp) -> Result<(), Violation> {
        if self.ops.insert((generation, seq.0), op).is_some() {
            return Err(format!("I1: ({generation}, {seq}) was ordered twice"));
        }
        Ok(())
    }

    /// The generation of each place of a history, from 1 on; `None` for one that nobody ordered.
    fn lineage(&self, table: &GenerationTable, upto: Seq) -> Result<Vec<u64>, Violation> {
        (1..=upto.0)
            .map(|s| {
                let g = table
                    .generation_of(Seq(s))
                    .ok_or_else(|| format!("model: table {table:?} has forgotten place {s}"))?;
                if !self.ops.contains_key(&(g, s)) {
                    return Err(format!(
                        "I4: ({g}, #{s}) is in a history but was never ordered"
                    ));
                }
                Ok(g)
            })
            .collect()
    }

    /// A history was chosen by an activation (invariants 3 and 4); returns its content.
    pub fn activated(
        &mut self,
        generation: u64,
        table: &GenerationTable,
        blocks: u64,
    ) -> Result<Vec<Tag>, Violation> {
        self.activations += 1;
        if generation <= self.served {
            return Err(format!(
                "I1: generation {generation} serves after {}",
                self.served
            ));
        }
        self.served = generation;
        let end = table.end().seq;
        let lineage = self.lineage(table, end)?;
        if lineage.len() < self.acked.len() || lineage[..self.acked.len()] != self.acked[..] {
            let at = lineage
                .iter()
                .zip(&self.acked)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(format!(
                "I3: generation {generation} serves a history of {} operations ({:?}); {} were \
                 acknowledged as durable; they part after #{at}",
                lineage.len(),
                table.rows(),
                self.acked.len()
            ));
        }
        Ok(self.content(&lineage, blocks))
    }

    fn content(&self, lineage: &[u64], blocks: u64) -> Vec<Tag> {
        let mut content = vec![0; blocks as usize];
        for (i, g) in lineage.iter().enumerate() {
            if let Some(op) = self.ops.get(&(*g, i as u64 + 1)) {
                apply(&mut content, op);
            }
        }
        content
    }

    /// Content of a history.
    pub fn content_of(&self, table: &GenerationTable, blocks: u64) -> Result<Vec<Tag>, Violation> {
        Ok(self.content(&self.lineage(table, table.end().seq)?, blocks))
    }

    /// Somebody acknowledged something: nobody newer may have served before (invariants 1, 2).
    pub fn acknowledged(&mut self, generation: u64, what: &str) -> Result<(), Violation> {
        self.acks += 1;
        if generation < self.served {
            return Err(format!(
                "I2: generation {generation} acknowledged a {what} after {} began to serve",
                self.served
            ));
        }
        Ok(())
    }

    /// A flush up to here was acknowledged (invariants 3 and 4).
    pub fn durable(
        &mut self,
        generation: u64,
        table: &GenerationTable,
        upto: Seq,
    ) -> Result<(), Violation> {
        self.acknowledged(generation, "flush")?;
        let from = self.acked.len() as u64;
        for s in (from + 1)..=upto.0 {
            let g = table
                .generation_of(Seq(s))
                .ok_or_else(|| format!("model: forgotten place {s}"))?;
            self.acked.push(g);
        }
        Ok(())
    }

    /// Places acknowledged as durable.
    pub fn acked(&self) -> usize {
        self.acked.len()
    }
}

/// Lays an operation over content.
pub fn apply(content: &mut [Tag], op: &ModelOp) {
    for (block, count, tag) in &op.parts {
        for i in 0..*count {
            content[(block + i) as usize] = if *tag == 0 { 0 } else { tag + i };
        }
    }
}

/// What the blocks of one reign held over time, to judge reads by.
#[derive(Debug, Default)]
pub struct Versions {
    blocks: Vec<Vec<(Seq, Tag)>>,
}

impl Versions {
    /// Content at the beginning of a reign.
    pub fn new(content: &[Tag], at: Seq) -> Versions {
        Versions {
            blocks: content.iter().map(|t| vec![(at, *t)]).collect(),
        }
    }

    /// The next reign of the same process: its reads go on, and may be answered as of before.
    pub fn go_on(&mut self, content: &[Tag], at: Seq) {
        for (versions, tag) in self.blocks.iter_mut().zip(content) {
            if versions.last().is_none_or(|(_, last)| last != tag) {
                versions.push((at, *tag));
            }
        }
    }

    /// An operation was ordered.
    pub fn ordered(&mut self, seq: Seq, op: &ModelOp) {
        for (block, count, tag) in &op.parts {
            for i in 0..*count {
                let tag = if *tag == 0 { 0 } else { tag + i };
                self.blocks[(block + i) as usize].push((seq, tag));
            }
        }
    }

    /// Everything that a block held, oldest first.
    pub fn of(&self, block: u64) -> &[(Seq, Tag)] {
        &self.blocks[block as usize]
    }

    /// Whether a read that began after `since` was ordered may have seen `tag`.
    pub fn allowed(&self, block: u64, since: Seq, tag: Tag) -> Result<(), Violation> {
        let versions = &self.blocks[block as usize];
        let newest = versions.iter().rposition(|(s, _)| *s <= since).unwrap_or(0);
        let may: BTreeSet<Tag> = versions[newest..].iter().map(|v| v.1).collect();
        if may.contains(&tag) {
            return Ok(());
        }
        Err(format!(
            "I2: block {block} read as {tag:#x} where one of {may:x?} was due"
        ))
    }
}
