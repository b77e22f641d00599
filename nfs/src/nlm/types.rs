//! NLM version 4 on the wire (RFC 1813, appendix II).

use std::net::IpAddr;

use trivet_fs::lock::{LockHeld, LockOwner, LockRange};

use crate::xdr::{Dec, Enc, XdrResult};

/// Program number.
pub const PROGRAM: u32 = 100_021;
/// The version for 64-bit files.
pub const VERSION: u32 = 4;
/// Bytes of names and opaque objects (LM_MAXSTRLEN, MAXNETOBJ_SZ).
const MAX_OBJECT: u32 = 1024;
/// Bytes of a client's name that we keep; the address is added to it.
pub const MAX_NAME: usize = 200;
/// Bytes of an owner handle that we keep.
pub const MAX_OWNER: usize = 255;

/// `nlm4_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum Stat {
    Granted = 0,
    Denied = 1,
    DeniedNoLocks = 2,
    Blocked = 3,
    Deadlock = 5,
    RoFs = 6,
    StaleFh = 7,
    FBig = 8,
    Failed = 9,
}

/// `nlm4_lock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The client's name for itself.
    pub caller: Vec<u8>,
    /// Of the file.
    pub handle: Vec<u8>,
    /// Of the owner.
    pub owner: Vec<u8>,
    /// The client's number of the owner.
    pub svid: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes; 0 is "to the end".
    pub len: u64,
}

impl Lock {
    /// Decodes one.
    ///
    /// # Errors
    /// As the items decode.
    pub fn get(d: &mut Dec) -> XdrResult<Lock> {
        Ok(Lock {
            caller: d.opaque(MAX_OBJECT)?,
            handle: d.opaque(MAX_OBJECT)?,
            owner: d.opaque(MAX_OBJECT)?,
            svid: d.u32()?,
            offset: d.u64()?,
            len: d.u64()?,
        })
    }

    /// Encodes it.
    pub fn put(&self, e: &mut Enc) {
        e.opaque(&self.caller)
            .opaque(&self.handle)
            .opaque(&self.owner);
        e.u32(self.svid).u64(self.offset).u64(self.len);
    }

    /// The bytes that it covers.
    pub fn range(&self) -> LockRange {
        LockRange::from_len(self.offset, self.len)
    }

    /// Its owner in the lock table; `None` if a name is longer than what is kept.
    pub fn owner_at(&self, address: IpAddr) -> Option<LockOwner> {
        (self.caller.len() <= MAX_NAME && self.owner.len() <= MAX_OWNER).then(|| LockOwner::Nlm {
            host: host_name(&self.caller, address),
            handle: self.owner.clone(),
            svid: self.svid,
        })
    }
}

/// How the lock table names a client: two machines may call themselves the same.
pub fn host_name(caller: &[u8], address: IpAddr) -> Vec<u8> {
    [caller, b"@", address.to_string().as_bytes()].concat()
}

/// The client's own name and address in the name that [`host_name`] made.
pub fn split_host(host: &[u8]) -> Option<(&[u8], IpAddr)> {
    let at = host.iter().rposition(|b| *b == b'@')?;
    let address = std::str::from_utf8(&host[at + 1..]).ok()?.parse().ok()?;
    Some((&host[..at], address))
}

/// A cookie: what the client recognises the answer by.
///
/// # Errors
/// As the item decodes.
pub fn get_cookie(d: &mut Dec) -> XdrResult<Vec<u8>> {
    d.opaque(MAX_OBJECT)
}

/// `nlm4_notify`: a client's name and state.
///
/// # Errors
/// As the items decode.
pub fn get_notify(d: &mut Dec) -> XdrResult<(Vec<u8>, u32)> {
    Ok((d.opaque(MAX_OBJECT)?, d.u32()?))
}

/// `nlm4_share`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The client's name for itself.
    pub caller: Vec<u8>,
    /// Of the file.
    pub handle: Vec<u8>,
    /// Of the owner.
    pub owner: Vec<u8>,
    /// What others are denied: 1 reading, 2 writing.
    pub deny: u32,
    /// What is wanted: 1 reading, 2 writing.
    pub access: u32,
}

impl Share {
    /// Decodes one.
    ///
    /// # Errors
    /// As the items decode.
    pub fn get(d: &mut Dec) -> XdrResult<Share> {
        Ok(Share {
            caller: d.opaque(MAX_OBJECT)?,
            handle: d.opaque(MAX_OBJECT)?,
            owner: d.opaque(MAX_OBJECT)?,
            deny: d.u32()? & 3,
            access: d.u32()? & 3,
        })
    }
}

/// `nlm4_holder`.
pub fn put_holder(e: &mut Enc, held: &LockHeld) {
    let (svid, owner): (u32, &[u8]) = match &held.owner {
        LockOwner::Local { pid, .. } => (*pid, b""),
        LockOwner::Nlm { svid, handle, .. } => (*svid, handle),
    };
    e.bool(held.kind == trivet_fs::lock::LockKind::Exclusive);
    e.u32(svid).opaque(owner).u64(held.range.start);
    e.u64(match held.range.end {
        u64::MAX => 0,
        end => end - held.range.start,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_its_name_and_address() {
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        let host = host_name(b"pve@1", a);
        assert_eq!(split_host(&host), Some((&b"pve@1"[..], a)));
        assert_eq!(split_host(b"nobody"), None);
    }

    #[test]
    fn a_length_that_passes_the_end_of_numbers_means_to_the_end() {
        let mut l = Lock {
            caller: b"c".to_vec(),
            handle: vec![],
            owner: vec![1; MAX_OWNER],
            svid: 1,
            offset: u64::MAX - 5,
            len: 100,
        };
        assert_eq!(l.range().end, u64::MAX);
        assert!(l.owner_at("::1".parse().unwrap()).is_some());
        l.owner.push(0);
        assert!(l.owner_at("::1".parse().unwrap()).is_none());
    }
}
