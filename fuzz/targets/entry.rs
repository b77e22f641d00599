//! Operations, as they come from the wire and from the log.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trivet_protocol::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_OPS, MAX_VOLUME_BLOCKS};
use trivet_protocol::{BLOCK_BYTES, Entry, Op, Seq};

fuzz_target!(|input: &[u8]| {
    let Some((small, meta)) = input.split_first() else {
        return;
    };
    let blocks = if *small == 0 {
        MAX_VOLUME_BLOCKS
    } else {
        u64::from(*small)
    };
    let Ok((ops, sums)) = Entry::decode_meta(meta, blocks) else {
        return;
    };
    assert!(ops.len() <= MAX_BATCH_OPS && sums.len() <= MAX_BATCH_BLOCKS);
    let end = |op: &Op| match *op {
        Op::Write { block, count } => block.0 + u64::from(count),
        Op::Discard { block, count } => block.0 + count,
    };
    assert!(ops.iter().all(|op| end(op) <= blocks));
    let data = Bytes::from(vec![0; sums.len() * BLOCK_BYTES]);
    let entry = Entry::decode(Seq(1), 1, meta, data, blocks);
    let entry = entry.expect("its description was good and its data has the right length");
    let again = Entry::decode_meta(&entry.encode_meta(), blocks);
    assert_eq!(again, Ok((ops, sums)));
});
