//! What a region reads from its disk: log records, extent metadata, the head.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trivet_downstairs::extent::layout::{GROUP, Group, META, decode_header};
use trivet_downstairs::head::HeadState;
use trivet_downstairs::log::record::{HEADER, Header, MAX_RECORD};
use trivet_protocol::{Position, VolumeId};

/// Bytes at the start of a log record that its checksum does not cover.
const LOG_UNSUMMED: usize = 12;
const SEED: u32 = 7;

fn log_record(input: &[u8]) {
    let Some((header, _)) = input.split_first_chunk::<HEADER>() else {
        return;
    };
    let mut header = *header;
    let sum = crc32c::crc32c_append(SEED, &header[LOG_UNSUMMED..]);
    header[8..12].copy_from_slice(&sum.to_le_bytes());
    let pos = u64::from_le_bytes(header[16..24].try_into().unwrap_or_default());
    if let Some(record) = Header::decode(&header, SEED, pos) {
        assert!(u64::from(record.total_len) <= MAX_RECORD);
        assert!(u64::from(record.total_len) >= HEADER as u64);
        assert!(Header::decode(&header, SEED, pos.wrapping_add(1)).is_none());
        assert!(Header::decode(&header, SEED + 1, pos).is_none());
    }
}

fn extent_metadata(input: &[u8]) {
    let Some((sector, _)) = input.split_first_chunk::<META>() else {
        return;
    };
    let mut sector = *sector;
    let volume = VolumeId::from_bytes([1; 16]);
    let _ = decode_header(&sector, SEED, volume, 0, 1024);
    let sum = crc32c::crc32c_append(SEED, &sector[12..]);
    sector[8..12].copy_from_slice(&sum.to_le_bytes());
    let _ = decode_header(&sector, SEED, volume, 0, 1024);
    let sum = crc32c::crc32c_append(SEED, &sector[4..]);
    sector[..4].copy_from_slice(&sum.to_le_bytes());
    if let Some(group) = Group::decode(&sector, SEED, 0, 0, Position::default()) {
        assert_eq!(group.sums.len(), GROUP as usize);
        let again = group.encode(SEED, 0, 0);
        let back = Group::decode(&again, SEED, 0, 0, Position::default());
        assert!(back.is_some_and(|b| b.changed == group.changed && b.sums == group.sums));
    }
}

fuzz_target!(|input: &[u8]| {
    log_record(input);
    extent_metadata(input);
    if let Ok(head) = HeadState::decode(input) {
        let again = HeadState::decode(&head.encode());
        assert_eq!(again.map(|h| h.encode()).ok(), Some(head.encode()));
    }
});
