//! Record marking (RFC 5531, 11): from a stream of bytes to whole RPC messages.
//!
//! Where payload bytes move: they are received into a buffer, and a message is a counted slice of
//! that buffer. Copied are only the first bytes of a message whose end had not arrived with them
//! (at most one receive of the small size, [`FIRST_READ`], for a message larger than that), and
//! messages in several fragments, which no known client sends.
//!
//! Bounds: a record above the limit is refused by its header, before anything is allocated; the
//! room for a record is reserved but not touched before its bytes arrive; nothing is kept for a
//! connection that owes no bytes. What a crash leaves behind: nothing.

use std::io;

use bytes::{Buf, Bytes};
use thiserror::Error;

/// Bytes received at once while the size of the next message is unknown, at first.
pub const FIRST_READ: usize = 8 << 10;
/// The same, when many small messages come at once.
pub const MAX_READ: usize = 256 << 10;
/// Fragments of one message, at most.
const MAX_FRAGMENTS: u32 = 64;

/// Why a connection cannot go on.
#[derive(Debug, Error)]
pub enum RecordError {
    /// A header claims more than is allowed.
    #[error("a record of {claimed} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Bytes claimed.
        claimed: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Too many pieces.
    #[error("a record in more than {MAX_FRAGMENTS} fragments")]
    TooManyFragments,
    /// The other side closed.
    #[error("closed by the client")]
    Closed,
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
}

/// What [`Assembler::next`] found.
#[derive(Debug)]
pub enum Progress {
    /// A whole message.
    Record(Bytes),
    /// The socket has no more bytes for now.
    Starved,
}

/// Puts messages together.
#[derive(Debug)]
pub struct Assembler {
    /// Received, starting at a fragment header; messages are sliced off its front.
    whole: Bytes,
    /// The start of a fragment of which more is to come. Empty if `whole` is not.
    part: Vec<u8>,
    /// Earlier fragments of the present message.
    fragments: Vec<u8>,
    fragment_count: u32,
    read_size: usize,
    limit: usize,
}

impl Assembler {
    /// Accepts messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Assembler {
        Assembler {
            whole: Bytes::new(),
            part: Vec::new(),
            fragments: Vec::new(),
            fragment_count: 0,
            read_size: FIRST_READ,
            limit,
        }
    }

    /// Whether part of a message has been received.
    pub fn owes(&self) -> bool {
        !self.part.is_empty() || !self.whole.is_empty() || self.fragment_count > 0
    }

    /// Bytes received of messages that have not been handed out.
    pub fn held(&self) -> usize {
        self.part.len() + self.whole.len() + self.fragments.len()
    }

    /// Bytes of memory reserved for a message of which part has been received.
    pub fn reserved(&self) -> usize {
        self.part.capacity() + self.fragments.capacity()
    }

    /// The next message. `receive` appends to the vector within its capacity, and returns how
    /// many bytes came (0: closed) or `WouldBlock`.
    ///
    /// # Errors
    /// [`RecordError`]: the connection is of no more use.
    pub fn next(
        &mut self,
        mut receive: impl FnMut(&mut Vec<u8>) -> io::Result<usize>,
    ) -> Result<Progress, RecordError> {
        loop {
            while let Some(header) = header_of(&self.whole) {
                self.check(header)?;
                if self.whole.len() < 4 + header.bytes {
                    break;
                }
                self.whole.advance(4);
                let body = self.whole.split_to(header.bytes);
                if let Some(record) = self.fragment(body, header)? {
                    return Ok(Progress::Record(record));
                }
            }
            if !self.whole.is_empty() {
                // Copy: the head of a message of which more is to come.
                self.part = Vec::with_capacity(self.room(&self.whole));
                self.part.extend_from_slice(&self.whole);
            }
            self.whole = Bytes::new();
            if !self.fill(&mut receive)? {
                return Ok(Progress::Starved);
            }
        }
    }

    /// Receives into `part` until a whole fragment is there, then makes it `whole`.
    fn fill(
        &mut self,
        receive: &mut impl FnMut(&mut Vec<u8>) -> io::Result<usize>,
    ) -> Result<bool, RecordError> {
        loop {
            let room = self.room(&self.part);
            if self.part.capacity() < room {
                // Only a part that was begun in a smaller buffer moves here.
                self.part.reserve_exact(room - self.part.len());
            }
            match receive(&mut self.part) {
                Ok(0) => return Err(RecordError::Closed),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.part.is_empty() {
                        self.part = Vec::new();
                    }
                    return Ok(false);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            }
            if let Some(header) = header_of(&self.part) {
                self.check(header)?;
                if self.part.len() >= 4 + header.bytes {
                    self.adapt();
                    self.whole = Bytes::from(std::mem::take(&mut self.part));
                    return Ok(true);
                }
            }
        }
    }

    /// Capacity wanted for a buffer that starts with `begun`.
    fn room(&self, begun: &[u8]) -> usize {
        match header_of(begun) {
            // A large message is received to its end and no further, so that its buffer holds
            // nothing else.
            Some(h) if 4 + h.bytes > self.read_size => 4 + h.bytes,
            _ => self.read_size,
        }
    }

    /// Small messages that come in crowds are received in crowds; after a large one, only a head
    /// is received, so that the next large one can go to its own buffer.
    fn adapt(&mut self) {
        let used = self.part.len();
        if used > MAX_READ {
            self.read_size = FIRST_READ;
        } else if used == self.part.capacity() && used >= self.read_size {
            self.read_size = (self.read_size * 2).min(MAX_READ);
        } else if used < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(FIRST_READ);
        }
    }

    fn check(&self, header: Header) -> Result<(), RecordError> {
        let claimed = self.fragments.len() + header.bytes;
        if claimed > self.limit {
            return Err(RecordError::TooLarge {
                claimed,
                limit: self.limit,
            });
        }
        Ok(())
    }

    fn fragment(&mut self, body: Bytes, header: Header) -> Result<Option<Bytes>, RecordError> {
        if header.last && self.fragment_count == 0 {
            return Ok(Some(body));
        }
        self.fragment_count += 1;
        if self.fragment_count > MAX_FRAGMENTS {
            return Err(RecordError::TooManyFragments);
        }
        self.fragments.extend_from_slice(&body);
        if !header.last {
            return Ok(None);
        }
        self.fragment_count = 0;
        Ok(Some(Bytes::from(std::mem::take(&mut self.fragments))))
    }
}

#[derive(Clone, Copy)]
struct Header {
    last: bool,
    bytes: usize,
}

fn header_of(b: &[u8]) -> Option<Header> {
    let word = u32::from_be_bytes(b.get(..4)?.try_into().ok()?);
    Some(Header {
        last: word >> 31 == 1,
        bytes: (word & 0x7fff_ffff) as usize,
    })
}

/// The mark in front of a message of `len` bytes that is sent in one fragment.
pub fn mark(len: usize) -> u32 {
    (len as u32 & 0x7fff_ffff) | 0x8000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that hands out its bytes in pieces of the given sizes, then blocks.
    fn stream<'a>(
        mut bytes: &'a [u8],
        mut sizes: impl Iterator<Item = usize> + 'a,
    ) -> impl FnMut(&mut Vec<u8>) -> io::Result<usize> + 'a {
        move |v| {
            let room = v.capacity() - v.len();
            let n = sizes.next().unwrap_or(1).min(room).min(bytes.len());
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            v.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            Ok(n)
        }
    }

    fn record(body: &[u8], last: bool) -> Vec<u8> {
        let word = body.len() as u32 | u32::from(last) << 31;
        [&word.to_be_bytes(), body].concat()
    }

    fn all(a: &mut Assembler, mut f: impl FnMut(&mut Vec<u8>) -> io::Result<usize>) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Progress::Record(r) = a.next(&mut f).unwrap() {
            out.push(r);
        }
        out
    }

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let bodies: Vec<Vec<u8>> = [0usize, 1, 5, 4096, 9000, 300_000, 7]
            .iter()
            .map(|&n| (0..n).map(|i| (i * 7 + n) as u8).collect())
            .collect();
        let bytes: Vec<u8> = bodies.iter().flat_map(|b| record(b, true)).collect();
        for size in [1, 3, 4, 5, 100, 4096, 8192, 65_536, 1 << 20] {
            let mut a = Assembler::new(1 << 20);
            let got = all(&mut a, stream(&bytes, std::iter::repeat(size)));
            assert_eq!(got, bodies, "pieces of {size}");
            assert!(!a.owes());
        }
    }

    #[test]
    fn fragments_are_joined_and_counted() {
        let bytes = [
            record(b"ab", false),
            record(b"", false),
            record(b"cd", true),
            record(b"x", true),
        ]
        .concat();
        let mut a = Assembler::new(100);
        let got = all(&mut a, stream(&bytes, std::iter::repeat(3)));
        assert_eq!(got, [&b"abcd"[..], b"x"]);
        let many = record(b"", false).repeat(MAX_FRAGMENTS as usize + 1);
        let mut a = Assembler::new(100);
        let e = a.next(stream(&many, std::iter::repeat(999))).unwrap_err();
        assert!(matches!(e, RecordError::TooManyFragments));
    }

    #[test]
    fn a_claim_above_the_limit_is_refused_by_its_header_alone() {
        for word in [0x8000_0065u32, 0xffff_ffff, 0x7fff_ffff] {
            let head = word.to_be_bytes();
            let mut a = Assembler::new(100);
            let e = a.next(stream(&head, std::iter::repeat(4))).unwrap_err();
            assert!(matches!(e, RecordError::TooLarge { limit: 100, .. }));
            assert!(a.reserved() <= FIRST_READ);
        }
        // Also as the sum of fragments.
        let bytes = [record(&[0; 60], false), record(&[0; 60], true)].concat();
        let mut a = Assembler::new(100);
        assert!(a.next(stream(&bytes, std::iter::repeat(999))).is_err());
    }

    #[test]
    fn an_idle_connection_holds_no_buffer() {
        let bytes = record(&[1; 50_000], true);
        let mut a = Assembler::new(1 << 20);
        assert_eq!(
            all(&mut a, stream(&bytes, std::iter::repeat(7000))).len(),
            1
        );
        assert_eq!(a.reserved(), 0);
    }
}
