//! The frame: everything that travels between an upstairs and a member is one.
//!
//! A fixed header of 104 bytes, then `meta_len` bytes of description, then `data_len` bytes of
//! payload. Integers are little-endian. Lengths are bounded before anything is allocated
//! (invariant 10); header and body each have a CRC-32C. `docs/protocol.md` repeats this table.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `TRV1` |
//! | 4 | 2 | protocol version |
//! | 6 | 2 | kind |
//! | 8 | 4 | length of meta |
//! | 12 | 4 | length of data |
//! | 16 | 8 | generation number of the sender (invariant 1) |
//! | 24 | 16 | claim id of the sender |
//! | 40 | 8 | `seq`: place in the history, or the number of the request |
//! | 48 | 8 | `aux`: by kind |
//! | 56 | 8 | `commit`: from upstairs, the commit position |
//! | 64 | 8 | `trim`: from upstairs, logs need nothing up to here any more |
//! | 72 | 24 | trace context: trace id 16, span id 8; zeros when absent |
//! | 96 | 4 | CRC-32C of meta then data |
//! | 100 | 4 | CRC-32C of bytes 0 to 100 |

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::ids::{Generation, Seq};
use crate::limits::{MAX_FRAME_DATA, MAX_FRAME_META};

/// Bytes in a header.
pub const HEADER_BYTES: usize = 104;
const MAGIC: u32 = u32::from_le_bytes(*b"TRV1");

/// Versions of the protocol; each says what changed. N speaks with N-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// The first.
    One = 1,
}

/// The version that this build speaks by preference.
pub const VERSION: u16 = Version::One as u16;
/// The oldest version that this build understands.
pub const OLDEST_VERSION: u16 = Version::One as u16;

/// The versions that one side understands. The lower of the two newest ones is spoken.
///
/// Whoever connects begins in its oldest version and says its newest in `aux` of its first frame,
/// whose header and meaning are the same in all versions; the answers come in the version agreed
/// on, and everything after that goes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Understood from here on.
    pub oldest: u16,
    /// Spoken by preference.
    pub newest: u16,
}

impl Default for Versions {
    /// What this build understands. Tests give others, to be an older or a newer build.
    fn default() -> Versions {
        Versions {
            oldest: OLDEST_VERSION,
            newest: VERSION,
        }
    }
}

impl Versions {
    /// For a first frame, which is read before anything is agreed on.
    pub const ANY: Versions = Versions {
        oldest: 0,
        newest: u16::MAX,
    };

    /// What to speak with whoever began in version `first` and announced `newest` (zero: only
    /// the one in which it began).
    ///
    /// # Errors
    /// [`FrameError::Version`]: there is none that both understand.
    pub fn agree(&self, first: u16, newest: u64) -> Result<u16, FrameError> {
        let newest = u16::try_from(newest).unwrap_or(u16::MAX).max(first);
        let theirs = if first > self.newest { first } else { newest };
        match newest < self.oldest || first > self.newest {
            true => Err(FrameError::Version {
                theirs,
                ours: *self,
            }),
            false => Ok(newest.min(self.newest)),
        }
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// U to M: `seq` the entry's place, `aux` its generation number; meta and data as
    /// [`crate::Entry`] has them. Not answered by itself.
    Append = 1,
    /// U to M: make everything up to `seq` durable, then say [`Kind::Durable`].
    Sync = 2,
    /// M to U: durable up to `seq`. `aux`: new space that may be written in all since the
    /// connection began, in bytes (see [`crate::message`]).
    Durable = 3,
    /// U to M: `seq` a request number, meta a [`ReadMeta`].
    Read = 4,
    /// M to U: `seq` the request number; meta the checksums, data the blocks.
    ReadOk = 5,
    /// U to M: `seq` a request number, meta a [`crate::message::Request`].
    Request = 6,
    /// M to U: `seq` the request number, meta a [`crate::message::Reply`].
    Reply = 7,
    /// M to U: an entry from the log; `seq`, `aux`, meta, data as in Append. `commit` is the
    /// number of the request that asked for it.
    LogEntry = 8,
    /// U to M: blocks copied by resync or repair; meta and data as an entry's, without a place.
    Copy = 9,
    /// A call for the node itself, first on a connection of its own: `seq` numbers it, meta is
    /// the request, opaque here.
    Call = 16,
    /// A part of the answer to call `seq`, as data; `aux`: bytes of the whole answer.
    Answer = 17,
}

impl Kind {
    fn from_u16(n: u16) -> Option<Kind> {
        use Kind::*;
        [
            Append, Sync, Durable, Read, ReadOk, Request, Reply, LogEntry, Copy, Call, Answer,
        ]
        .into_iter()
        .find(|k| *k as u16 == n)
    }
}

/// Why bytes are not a frame. The connection is of no further use after one of these.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error(
        "the peer speaks TLS and this side does not: start this one with --key and --peers too"
    )]
    Tls,
    #[error("not a Trivet peer: the frame starts with {0:#010x}; check the address and port")]
    Magic(u32),
    #[error(
        "the peer speaks protocol version {theirs}, this side {} to {}: upgrade the older one",
        ours.oldest, ours.newest
    )]
    Version { theirs: u16, ours: Versions },
    #[error("header checksum is wrong: damaged in transit")]
    HeaderCrc,
    #[error("body checksum is wrong: damaged in transit")]
    BodyCrc,
    #[error("unknown frame kind {0}: the peer is newer; upgrade this side")]
    Kind(u16),
    #[error("a frame claims {what} of {len} bytes; at most {max} are allowed")]
    TooLong {
        what: &'static str,
        len: usize,
        max: usize,
    },
}

/// A frame's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The sender's generation, or [`Generation::NONE`] before it has one.
    pub generation: Generation,
    /// By kind.
    pub seq: u64,
    /// By kind.
    pub aux: u64,
    /// Commit position of the sender, or by kind.
    pub commit: Seq,
    /// Trim position of the sender.
    pub trim: Seq,
    /// Trace id and span id.
    pub trace: [u8; 24],
}

impl Header {
    /// A header with only a kind, a generation and a number.
    pub fn new(kind: Kind, generation: Generation, seq: u64) -> Header {
        Header {
            kind,
            generation,
            seq,
            aux: 0,
            commit: Seq(0),
            trim: Seq(0),
            trace: [0; 24],
        }
    }
}

/// A frame in memory. Cloning shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Fixed part.
    pub header: Header,
    /// Description.
    pub meta: Bytes,
    /// Payload segments; concatenated on the wire. A received frame has at most one.
    pub data: Vec<Bytes>,
}

/// A checked header, and how much follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The fixed part.
    pub header: Header,
    /// Bytes of meta to come, within bounds.
    pub meta_len: usize,
    /// Bytes of data to come, within bounds.
    pub data_len: usize,
    /// The version in which it was sent.
    pub version: u16,
    crc: u32,
}

impl Preamble {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// Anything that makes the rest of the stream meaningless.
    pub fn decode(raw: &[u8; HEADER_BYTES], ours: Versions) -> Result<Preamble, FrameError> {
        let u16_at = |i: usize| u16::from_le_bytes([raw[i], raw[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([raw[i], raw[i + 1], raw[i + 2], raw[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        if u32_at(0) != MAGIC {
            // A handshake or an alert of TLS 1.x.
            if matches!(raw[0], 0x15 | 0x16) && raw[1] == 3 {
                return Err(FrameError::Tls);
            }
            return Err(FrameError::Magic(u32_at(0)));
        }
        let theirs = u16_at(4);
        if !(ours.oldest..=ours.newest).contains(&theirs) {
            return Err(FrameError::Version { theirs, ours });
        }
        if u32_at(100) != crc32c::crc32c(&raw[..100]) {
            return Err(FrameError::HeaderCrc);
        }
        let kind = Kind::from_u16(u16_at(6)).ok_or(FrameError::Kind(u16_at(6)))?;
        let bounded = |what, len: u32, max| {
            let len = len as usize;
            if len > max {
                Err(FrameError::TooLong { what, len, max })
            } else {
                Ok(len)
            }
        };
        let meta_len = bounded("meta", u32_at(8), MAX_FRAME_META)?;
        let data_len = bounded("data", u32_at(12), MAX_FRAME_DATA)?;
        let mut trace = [0; 24];
        trace.copy_from_slice(&raw[72..96]);
        let claim = u128::from(u64_at(24)) | u128::from(u64_at(32)) << 64;
        let header = Header {
            kind,
            generation: Generation {
                number: u64_at(16),
                claim,
            },
            seq: u64_at(40),
            aux: u64_at(48),
            commit: Seq(u64_at(56)),
            trim: Seq(u64_at(64)),
            trace,
        };
        Ok(Preamble {
            header,
            meta_len,
            data_len,
            version: theirs,
            crc: u32_at(96),
        })
    }

    /// Bytes that follow the header.
    pub fn body_len(&self) -> usize {
        self.meta_len + self.data_len
    }

    /// Makes the frame of a body of exactly [`Preamble::body_len`] bytes. No copy: meta and data
    /// are slices of `body`.
    ///
    /// # Errors
    /// [`FrameError::BodyCrc`].
    pub fn finish(self, mut body: Bytes) -> Result<Frame, FrameError> {
        debug_assert_eq!(body.len(), self.body_len());
        if crc32c::crc32c(&body) != self.crc {
            return Err(FrameError::BodyCrc);
        }
        let meta = body.split_to(self.meta_len);
        let data = if body.is_empty() {
            Vec::new()
        } else {
            vec![body]
        };
        Ok(Frame {
            header: self.header,
            meta,
            data,
        })
    }
}

impl Frame {
    /// A frame without payload.
    pub fn bare(kind: Kind, generation: Generation, seq: u64) -> Frame {
        Frame {
            header: Header::new(kind, generation, seq),
            meta: Bytes::new(),
            data: Vec::new(),
        }
    }

    /// Bytes of payload.
    pub fn data_len(&self) -> usize {
        self.data.iter().map(Bytes::len).sum()
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_BYTES + self.meta.len() + self.data_len()
    }

    /// The payload in one piece; free for a received frame.
    pub fn contiguous_data(&self) -> Bytes {
        match self.data.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut out = BytesMut::with_capacity(self.data_len());
                many.iter().for_each(|s| out.put_slice(s));
                out.freeze()
            }
        }
    }

    /// CRC-32C of the body. The same for every replica: computed once per entry.
    pub fn body_crc(&self) -> u32 {
        self.data.iter().fold(crc32c::crc32c(&self.meta), |crc, s| {
            crc32c::crc32c_append(crc, s)
        })
    }

    /// The header as it goes on the wire in this version, given the body's CRC.
    pub fn encode_header(&self, version: u16, body_crc: u32) -> [u8; HEADER_BYTES] {
        let h = &self.header;
        let mut raw = [0u8; HEADER_BYTES];
        raw[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        raw[4..6].copy_from_slice(&version.to_le_bytes());
        raw[6..8].copy_from_slice(&(h.kind as u16).to_le_bytes());
        raw[8..12].copy_from_slice(&(self.meta.len() as u32).to_le_bytes());
        raw[12..16].copy_from_slice(&(self.data_len() as u32).to_le_bytes());
        raw[16..24].copy_from_slice(&h.generation.number.to_le_bytes());
        raw[24..40].copy_from_slice(&h.generation.claim.to_le_bytes());
        raw[40..48].copy_from_slice(&h.seq.to_le_bytes());
        raw[48..56].copy_from_slice(&h.aux.to_le_bytes());
        raw[56..64].copy_from_slice(&h.commit.0.to_le_bytes());
        raw[64..72].copy_from_slice(&h.trim.0.to_le_bytes());
        raw[72..96].copy_from_slice(&h.trace);
        raw[96..100].copy_from_slice(&body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&raw[..100]);
        raw[100..104].copy_from_slice(&crc.to_le_bytes());
        raw
    }
}

/// What a [`Kind::Read`] asks for, 16 bytes: first block u64, count u32, reserved u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMeta {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u32,
}

impl ReadMeta {
    /// To bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u64_le(self.block);
        out.put_u32_le(self.count);
        out.put_u32_le(0);
        out.freeze()
    }

    /// From bytes; `None` if the length is wrong.
    pub fn decode(raw: &[u8]) -> Option<ReadMeta> {
        let raw: &[u8; 16] = raw.try_into().ok()?;
        let (block, rest) = raw.split_first_chunk::<8>()?;
        let count = rest.first_chunk::<4>()?;
        Some(ReadMeta {
            block: u64::from_le_bytes(*block),
            count: u32::from_le_bytes(*count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Frame {
        Frame {
            header: Header {
                kind: Kind::Append,
                generation: Generation {
                    number: 7,
                    claim: 1 << 100 | 5,
                },
                seq: 11,
                aux: 6,
                commit: Seq(9),
                trim: Seq(3),
                trace: [1; 24],
            },
            meta: Bytes::from_static(b"meta"),
            data: vec![Bytes::from_static(b"da"), Bytes::from_static(b"ta")],
        }
    }

    #[test]
    fn a_frame_goes_there_and_back() {
        let f = sample();
        let raw = f.encode_header(VERSION, f.body_crc());
        let pre = Preamble::decode(&raw, Versions::default()).unwrap();
        assert_eq!(pre.header, f.header);
        let back = pre.finish(Bytes::from_static(b"metadata")).unwrap();
        assert_eq!(back.contiguous_data(), f.contiguous_data());
        assert_eq!(
            pre.finish(Bytes::from_static(b"metadatA")),
            Err(FrameError::BodyCrc)
        );
    }

    #[test]
    fn golden_header() {
        let f = sample();
        let raw = f.encode_header(VERSION, f.body_crc());
        let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, include_str!("golden/frame-header-v1.hex").trim());
    }

    #[test]
    fn one_flipped_bit_anywhere_is_noticed() {
        let f = sample();
        let raw = f.encode_header(VERSION, f.body_crc());
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = raw;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Preamble::decode(&bad, Versions::default()).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn the_lower_of_both_newest_versions_is_spoken() {
        let ours = Versions {
            oldest: 2,
            newest: 3,
        };
        // (began in, announced) by the other side.
        let cases = [
            (1, 2, 2),
            (2, 2, 2),
            (2, 3, 3),
            (2, 4, 3),
            (3, 9, 3),
            (2, 0, 2),
        ];
        for (first, newest, spoken) in cases {
            assert_eq!(ours.agree(first, newest), Ok(spoken), "{first} {newest}");
        }
        assert_eq!(ours.agree(2, u64::MAX), Ok(3));
        for (first, newest, theirs) in [(1, 0, 1), (0, 1, 1), (4, 5, 4), (4, 0, 4)] {
            let told = FrameError::Version { theirs, ours };
            assert_eq!(ours.agree(first, newest), Err(told), "{first} {newest}");
        }
        let raw = sample().encode_header(4, 0);
        let told = Preamble::decode(&raw, ours).unwrap_err().to_string();
        assert!(told.contains("version 4, this side 2 to 3"), "{told}");
    }
}
