//! A stored lock's bytes: kind u8 | reserved u8 | start u64 | end u64 | svid u32 | length of the
//! host u16 | length of the handle u16 | host | handle.

use super::{LockFamily, LockHeld, LockKind, LockOwner, LockRange};
use crate::error::{FsError, FsResult};
use crate::format::{u16_at, u32_at, u64_at};

const HEAD: usize = 26;
/// Bytes of a host's name or of an owner handle.
pub(crate) const MAX_PART: usize = 255;

/// The item, for an NLM client's lock; others are not stored.
pub(crate) fn encode(lock: &LockHeld) -> Option<Vec<u8>> {
    let LockOwner::Nlm { host, handle, svid } = &lock.owner else {
        return None;
    };
    let mut b = vec![u8::from(lock.kind == LockKind::Exclusive), 0];
    b.extend_from_slice(&lock.range.start.to_le_bytes());
    b.extend_from_slice(&lock.range.end.to_le_bytes());
    b.extend_from_slice(&svid.to_le_bytes());
    b.extend_from_slice(&(host.len() as u16).to_le_bytes());
    b.extend_from_slice(&(handle.len() as u16).to_le_bytes());
    b.extend_from_slice(host);
    b.extend_from_slice(handle);
    Some(b)
}

/// From the item's bytes.
pub(crate) fn decode(b: &[u8]) -> FsResult<LockHeld> {
    let (host, handle) = (usize::from(u16_at(b, 22)), usize::from(u16_at(b, 24)));
    if b.len() != HEAD + host + handle || host > MAX_PART || handle > MAX_PART {
        return Err(FsError::Damaged {
            block: 0,
            why: "an impossible stored lock",
        });
    }
    let kind = match b[0] {
        0 => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    Ok(LockHeld {
        family: LockFamily::Range,
        owner: LockOwner::Nlm {
            host: b[HEAD..HEAD + host].to_vec(),
            handle: b[HEAD + host..].to_vec(),
            svid: u32_at(b, 18),
        },
        kind,
        range: LockRange {
            start: u64_at(b, 2),
            end: u64_at(b, 10),
        },
    })
}
