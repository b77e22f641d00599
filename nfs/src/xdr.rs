//! XDR (RFC 4506): the few forms that RPC, MOUNT, NFS, NLM and portmap use.
//!
//! Invariants:
//! - A [`Dec`] never reads outside its buffer and never allocates because of a length it was told:
//!   every variable-length item is checked against a limit given by the caller and against what is
//!   left of the message first (invariant 10).
//! - Payloads are not copied: [`Dec::payload`] hands out a counted slice of the receive buffer.
//! - Booleans are 0 or 1. Fill bytes are skipped, whatever they hold.

use bytes::Bytes;
use thiserror::Error;

/// Why a message could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XdrError {
    /// The message ends before the item does.
    #[error("message ends {missing} bytes too early")]
    Truncated {
        /// Bytes that the item still wanted.
        missing: usize,
    },
    /// A length is greater than the protocol allows.
    #[error("length {got} is above the limit of {limit}")]
    TooLong {
        /// What the message claims.
        got: u32,
        /// What the protocol allows.
        limit: u32,
    },
    /// A boolean, an enum or a discriminant has a value that the protocol does not know.
    #[error("value {0} is not one that the protocol knows")]
    BadValue(u32),
}

/// Result of decoding.
pub type XdrResult<T> = Result<T, XdrError>;

/// Reads items from one message.
#[derive(Clone, Debug)]
pub struct Dec {
    buf: Bytes,
    pos: usize,
}

impl Dec {
    /// Starts at the beginning of `buf`.
    pub fn new(buf: Bytes) -> Dec {
        Dec { buf, pos: 0 }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &[u8] {
        self.buf.get(self.pos..).unwrap_or_default()
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    fn take(&mut self, n: usize) -> XdrResult<&[u8]> {
        let left = self.buf.len() - self.pos;
        if n > left {
            return Err(XdrError::Truncated { missing: n - left });
        }
        let at = self.pos;
        self.pos += n;
        Ok(&self.buf[at..at + n])
    }

    fn skip_fill(&mut self, len: usize) -> XdrResult<()> {
        self.take(len.wrapping_neg() & 3).map(|_| ())
    }

    /// An unsigned 32-bit integer.
    ///
    /// # Errors
    /// [`XdrError::Truncated`].
    pub fn u32(&mut self) -> XdrResult<u32> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// An unsigned 64-bit integer.
    ///
    /// # Errors
    /// [`XdrError::Truncated`].
    pub fn u64(&mut self) -> XdrResult<u64> {
        let high = u64::from(self.u32()?);
        Ok(high << 32 | u64::from(self.u32()?))
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`XdrError::BadValue`] unless it is 0 or 1.
    pub fn bool(&mut self) -> XdrResult<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(XdrError::BadValue(other)),
        }
    }

    /// `n` bytes of fixed-length opaque data.
    ///
    /// # Errors
    /// [`XdrError::Truncated`].
    pub fn fixed<const N: usize>(&mut self) -> XdrResult<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        self.skip_fill(N)?;
        Ok(out)
    }

    /// Variable-length opaque data or a string, as a counted slice of the message: no copy.
    ///
    /// # Errors
    /// [`XdrError::TooLong`] above `limit`, [`XdrError::Truncated`].
    pub fn payload(&mut self, limit: u32) -> XdrResult<Bytes> {
        let got = self.u32()?;
        if got > limit {
            return Err(XdrError::TooLong { got, limit });
        }
        let at = self.pos;
        self.take(got as usize)?;
        self.skip_fill(got as usize)?;
        Ok(self.buf.slice(at..at + got as usize))
    }

    /// Short variable-length opaque data or a string, copied so that it keeps no receive buffer
    /// alive.
    ///
    /// # Errors
    /// As [`Dec::payload`].
    pub fn opaque(&mut self, limit: u32) -> XdrResult<Vec<u8>> {
        let got = self.u32()?;
        if got > limit {
            return Err(XdrError::TooLong { got, limit });
        }
        let out = self.take(got as usize)?.to_vec();
        self.skip_fill(got as usize)?;
        Ok(out)
    }
}

/// Writes items to the end of a message.
#[derive(Debug, Default)]
pub struct Enc {
    buf: Vec<u8>,
}

impl Enc {
    /// An empty message.
    pub fn new() -> Enc {
        Enc::default()
    }

    /// An empty message with room for `n` bytes.
    pub fn with_capacity(n: usize) -> Enc {
        Enc {
            buf: Vec::with_capacity(n),
        }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// The message.
    pub fn into_vec(self) -> Vec<u8> {
        self.buf
    }

    /// Forgets everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.buf.truncate(len);
    }

    /// An unsigned 32-bit integer.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.buf.extend_from_slice(&v.to_be_bytes());
        self
    }

    /// An unsigned 64-bit integer.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.buf.extend_from_slice(&v.to_be_bytes());
        self
    }

    /// A boolean.
    pub fn bool(&mut self, v: bool) -> &mut Self {
        self.u32(u32::from(v))
    }

    /// Fixed-length opaque data.
    pub fn fixed(&mut self, v: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(v);
        self.fill(v.len())
    }

    /// Variable-length opaque data or a string; at most 4 GiB - 1, which callers' limits ensure.
    pub fn opaque(&mut self, v: &[u8]) -> &mut Self {
        self.u32(v.len() as u32).fixed(v)
    }

    /// Already encoded items.
    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(v);
        self
    }

    /// Overwrites the integer at byte `at`, which must have been written before.
    pub fn patch_u32(&mut self, at: usize, v: u32) {
        if let Some(place) = self.buf.get_mut(at..at + 4) {
            place.copy_from_slice(&v.to_be_bytes());
        }
    }

    fn fill(&mut self, len: usize) -> &mut Self {
        self.buf
            .extend_from_slice(&[0; 3][..len.wrapping_neg() & 3]);
        self
    }
}

/// Bytes that `len` bytes of opaque data take on the wire, without the length in front.
pub fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dec(b: &[u8]) -> Dec {
        Dec::new(Bytes::copy_from_slice(b))
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut e = Enc::new();
        e.u32(7)
            .u64(1 << 40)
            .bool(true)
            .opaque(b"abcde")
            .fixed(b"xy");
        assert_eq!(e.len() % 4, 0);
        let mut d = dec(e.bytes());
        assert_eq!(d.u32(), Ok(7));
        assert_eq!(d.u64(), Ok(1 << 40));
        assert_eq!(d.bool(), Ok(true));
        assert_eq!(d.payload(5).unwrap(), Bytes::from_static(b"abcde"));
        assert_eq!(d.fixed::<2>(), Ok(*b"xy"));
        assert!(d.is_empty());
    }

    #[test]
    fn a_length_is_believed_only_within_its_limit_and_the_message() {
        let mut e = Enc::new();
        e.u32(0xffff_fff0);
        assert_eq!(
            dec(e.bytes()).opaque(64),
            Err(XdrError::TooLong {
                got: 0xffff_fff0,
                limit: 64
            })
        );
        assert_eq!(
            dec(&[0, 0, 0, 9, 1, 2]).opaque(64),
            Err(XdrError::Truncated { missing: 7 })
        );
        // The fill is part of the item: three bytes missing is a truncated message.
        assert!(dec(&[0, 0, 0, 1, 1]).opaque(64).is_err());
    }

    #[test]
    fn booleans_are_zero_or_one() {
        assert_eq!(dec(&[0, 0, 0, 2]).bool(), Err(XdrError::BadValue(2)));
    }
}
