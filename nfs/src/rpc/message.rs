//! ONC RPC messages (RFC 5531): the head of a call, the head of a reply.
//!
//! A call whose head can be read is always answered, by what the RFC has for its defect; a message
//! whose head cannot be read ends its connection. AUTH_NONE and AUTH_SYS are understood.

use bytes::Bytes;

use crate::xdr::{Dec, Enc, XdrError};

/// Bytes of a credential or verifier, at most (RFC 5531, 8.2).
pub const MAX_AUTH_BYTES: u32 = 400;
/// Supplementary groups in AUTH_SYS, at most.
pub const MAX_GROUPS: u32 = 16;
/// Bytes of AUTH_SYS's machine name, at most.
pub const MAX_MACHINE_NAME: u32 = 255;

const CALL: u32 = 0;
const REPLY: u32 = 1;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;

/// Who the caller says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// AUTH_NONE: nobody.
    None,
    /// AUTH_SYS: a user of the calling machine.
    Sys(SysCredential),
}

/// An AUTH_SYS credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SysCredential {
    /// The caller's name for itself.
    pub machine: Vec<u8>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups, at most [`MAX_GROUPS`].
    pub groups: Vec<u32>,
}

/// A call's head; its arguments follow in [`CallHead::args`].
#[derive(Clone, Debug)]
pub struct CallHead {
    /// Number of the call, given by the caller.
    pub xid: u32,
    /// Program.
    pub program: u32,
    /// Version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Who calls.
    pub credential: Credential,
    /// The arguments, still encoded.
    pub args: Dec,
}

/// A message that is not a proper call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// Not even an answer can be addressed: close the connection.
    Unreadable,
    /// RPC version other than 2.
    RpcVersion {
        /// Number of the call.
        xid: u32,
    },
    /// A credential that is malformed or of a kind that is not served.
    Auth {
        /// Number of the call.
        xid: u32,
        /// `auth_stat` of RFC 5531.
        why: AuthStat,
    },
}

/// Why a credential was refused; numbers of RFC 5531.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AuthStat {
    /// The credential cannot be decoded.
    BadCredential = 1,
    /// The kind of credential is not served here.
    RejectedCredential = 2,
    /// A stronger one is needed.
    TooWeak = 5,
}

/// How an accepted call went on the RPC level; numbers of RFC 5531.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptStat {
    /// Results follow.
    Success,
    /// No such program here.
    ProgramUnavailable,
    /// The program is here in other versions.
    ProgramMismatch {
        /// Lowest version served.
        low: u32,
        /// Highest version served.
        high: u32,
    },
    /// No such procedure.
    ProcedureUnavailable,
    /// The arguments cannot be decoded.
    GarbageArgs,
}

impl CallHead {
    /// Decodes the head of a call.
    ///
    /// # Errors
    /// [`HeadError`] says what to answer.
    pub fn decode(message: Bytes) -> Result<CallHead, HeadError> {
        let mut d = Dec::new(message);
        let unreadable = |_: XdrError| HeadError::Unreadable;
        let xid = d.u32().map_err(unreadable)?;
        if d.u32().map_err(unreadable)? != CALL {
            return Err(HeadError::Unreadable);
        }
        if d.u32().map_err(unreadable)? != 2 {
            return Err(HeadError::RpcVersion { xid });
        }
        let program = d.u32().map_err(unreadable)?;
        let version = d.u32().map_err(unreadable)?;
        let procedure = d.u32().map_err(unreadable)?;
        let bad = |_| HeadError::Auth {
            xid,
            why: AuthStat::BadCredential,
        };
        let flavor = d.u32().map_err(bad)?;
        let body = d.payload(MAX_AUTH_BYTES).map_err(bad)?;
        d.u32().map_err(bad)?;
        d.payload(MAX_AUTH_BYTES).map_err(bad)?;
        let credential = match flavor {
            AUTH_NONE => Credential::None,
            AUTH_SYS => Credential::Sys(decode_sys(Dec::new(body)).map_err(bad)?),
            _ => {
                return Err(HeadError::Auth {
                    xid,
                    why: AuthStat::RejectedCredential,
                });
            }
        };
        Ok(CallHead {
            xid,
            program,
            version,
            procedure,
            credential,
            args: d,
        })
    }
}

fn decode_sys(mut d: Dec) -> Result<SysCredential, XdrError> {
    let _stamp = d.u32()?;
    let machine = d.opaque(MAX_MACHINE_NAME)?;
    let uid = d.u32()?;
    let gid = d.u32()?;
    let count = d.u32()?;
    if count > MAX_GROUPS {
        return Err(XdrError::TooLong {
            got: count,
            limit: MAX_GROUPS,
        });
    }
    let groups = (0..count).map(|_| d.u32()).collect::<Result<_, _>>()?;
    Ok(SysCredential {
        machine,
        uid,
        gid,
        groups,
    })
}

/// Writes the head of a call.
pub fn encode_call(
    e: &mut Enc,
    xid: u32,
    (program, version, procedure): (u32, u32, u32),
    cred: &Credential,
) {
    e.u32(xid).u32(CALL).u32(2);
    e.u32(program).u32(version).u32(procedure);
    match cred {
        Credential::None => {
            e.u32(AUTH_NONE).u32(0);
        }
        Credential::Sys(c) => {
            let mut b = Enc::new();
            b.u32(0).opaque(&c.machine).u32(c.uid).u32(c.gid);
            b.u32(c.groups.len() as u32);
            for g in &c.groups {
                b.u32(*g);
            }
            e.u32(AUTH_SYS).opaque(b.bytes());
        }
    }
    e.u32(AUTH_NONE).u32(0);
}

/// Writes the head of an accepted call's reply; results follow if it is a success.
pub fn encode_accepted(e: &mut Enc, xid: u32, stat: AcceptStat) {
    e.u32(xid).u32(REPLY).u32(0).u32(AUTH_NONE).u32(0);
    match stat {
        AcceptStat::Success => e.u32(0),
        AcceptStat::ProgramUnavailable => e.u32(1),
        AcceptStat::ProgramMismatch { low, high } => e.u32(2).u32(low).u32(high),
        AcceptStat::ProcedureUnavailable => e.u32(3),
        AcceptStat::GarbageArgs => e.u32(4),
    };
}

/// Writes the reply to a call whose head is defective; `None` if there is no answer to it.
pub fn encode_denied(e: &mut Enc, error: HeadError) -> Option<()> {
    match error {
        HeadError::Unreadable => return None,
        HeadError::RpcVersion { xid } => e.u32(xid).u32(REPLY).u32(1).u32(0).u32(2).u32(2),
        HeadError::Auth { xid, why } => e.u32(xid).u32(REPLY).u32(1).u32(1).u32(why as u32),
    };
    Some(())
}

/// Reads the head of a reply: its xid, and whether results follow.
///
/// # Errors
/// [`XdrError`] if this is not a reply.
pub fn decode_reply(d: &mut Dec) -> Result<(u32, Result<(), u32>), XdrError> {
    let xid = d.u32()?;
    match d.u32()? {
        REPLY => {}
        other => return Err(XdrError::BadValue(other)),
    }
    if d.u32()? != 0 {
        return Ok((xid, Err(u32::MAX)));
    }
    d.u32()?;
    d.payload(MAX_AUTH_BYTES)?;
    match d.u32()? {
        0 => Ok((xid, Ok(()))),
        stat => Ok((xid, Err(stat))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(cred: &Credential) -> Vec<u8> {
        let mut e = Enc::new();
        encode_call(&mut e, 9, (100_003, 3, 1), cred);
        e.u32(77);
        e.into_vec()
    }

    #[test]
    fn a_call_is_read_back_with_its_credential() {
        let sys = Credential::Sys(SysCredential {
            machine: b"pve1".to_vec(),
            uid: 5,
            gid: 6,
            groups: vec![7, 8],
        });
        for cred in [Credential::None, sys] {
            let mut head = CallHead::decode(Bytes::from(call(&cred))).unwrap();
            assert_eq!((head.xid, head.program, head.version), (9, 100_003, 3));
            assert_eq!(head.credential, cred);
            assert_eq!(head.args.u32(), Ok(77));
        }
    }

    #[test]
    fn every_cut_of_a_call_is_refused_without_a_panic() {
        let whole = call(&Credential::Sys(SysCredential::default()));
        for n in 0..whole.len() - 4 {
            assert!(CallHead::decode(Bytes::copy_from_slice(&whole[..n])).is_err());
        }
    }

    #[test]
    fn an_unknown_flavor_and_an_oversized_credential_are_auth_errors() {
        let mut b = call(&Credential::None);
        b[27] = 6;
        let want = HeadError::Auth {
            xid: 9,
            why: AuthStat::RejectedCredential,
        };
        assert_eq!(CallHead::decode(Bytes::from(b)).unwrap_err(), want);
        let mut b = call(&Credential::None);
        b[28..32].copy_from_slice(&401u32.to_be_bytes());
        let want = HeadError::Auth {
            xid: 9,
            why: AuthStat::BadCredential,
        };
        assert_eq!(CallHead::decode(Bytes::from(b)).unwrap_err(), want);
    }
}
