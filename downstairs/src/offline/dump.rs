//! What a region says of itself, for eyes.

use std::io::Write;
use std::path::Path;

use super::{host, inspect};
use crate::error::Result;
use crate::extent::ExtentNo;
use crate::log::record::What;

/// Writes identity, head, generation table, log records and extent files of the region in `dir`
/// to `out`, as text.
///
/// # Errors
/// It cannot be opened, or `out` fails.
pub fn dump(dir: &Path, out: &mut dyn Write) -> Result<()> {
    let (store, tail) = inspect(dir)?;
    let text = |e| host("write", Path::new("output"))(e);
    let (region, shared) = (store.region(), &store.shared);
    let head = shared.head().state().clone();
    writeln!(out, "region {} of volume {}", region.member, region.volume).map_err(text)?;
    writeln!(
        out,
        "format {}, {} blocks, {} blocks per extent, log {} bytes",
        region.format, head.blocks, region.extent_blocks, region.log_bytes
    )
    .map_err(text)?;
    writeln!(
        out,
        "head: opens {}, epoch {} from byte {}, tail byte {} after {}, checkpointed {} to byte \
         {}, commit {}, synced to byte {}, mixed {:?}, unsure {}, damaged {}, clean {}, \
         member state {} bytes",
        head.opens,
        head.epoch,
        head.epoch_start,
        head.tail,
        head.tail_seq,
        head.checkpointed.seq,
        head.checkpointed_to,
        head.commit,
        head.synced_to,
        head.mixed,
        head.unsure,
        head.damaged,
        head.clean,
        head.member.len()
    )
    .map_err(text)?;
    let floor = store.generation_table().floor();
    writeln!(out, "generations (described from {floor} on):").map_err(text)?;
    for (generation, end) in store.generation_table().rows() {
        writeln!(out, "  {generation} ended at {end}").map_err(text)?;
    }
    writeln!(out, "log: {} records, end {:?}", store.records.len(), tail).map_err(text)?;
    for r in &store.records {
        let (seq, generation) = (r.position.seq, r.position.generation);
        write!(out, "  byte {} {:?} {seq} g{generation}:", r.pos, r.kind).map_err(text)?;
        for op in r.ops.as_slice() {
            let kind = match op.what {
                What::Log { .. } => "write",
                What::Direct { .. } => "write in place",
                What::Discarded => "discard",
            };
            write!(out, " {kind} {}+{}", op.block, op.count).map_err(text)?;
        }
        writeln!(out).map_err(text)?;
    }
    writeln!(out, "extents:").map_err(text)?;
    for no in shared.extents.existing(ExtentNo(0), ExtentNo(u32::MAX)) {
        match shared.extents.get(no) {
            Ok(Some(file)) => {
                let bytes = file.file.allocated().map_err(host("read", dir))?;
                let cleared = file.cleared().seq;
                writeln!(
                    out,
                    "  {}: {bytes} bytes on disk, cleared at {cleared}",
                    no.name()
                )
            }
            Ok(None) => continue,
            Err(e) => writeln!(out, "  {}: {e}", no.name()),
        }
        .map_err(text)?;
    }
    Ok(())
}
