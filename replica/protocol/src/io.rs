//! Frames over a byte stream: one reader and one writer, used by both ends.
//!
//! Copies of payload in user space: the writer makes none (it gathers); the reader copies small
//! bodies once out of its buffer, and reads large ones straight into the memory in which they
//! stay.

use std::io::{self, IoSlice, Read};

use bytes::Bytes;
use thiserror::Error;

use crate::frame::{Frame, FrameError, HEADER_BYTES, Preamble, Versions};

/// Bytes buffered per connection: many small frames arrive with one system call.
const BUFFER: usize = 128 * 1024;
/// Bodies longer than this are read into memory of their own.
const LARGE: usize = 32 * 1024;

/// Why no frame could be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The peer closed the connection between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What arrived is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl ReadError {
    /// Whether it is about who we are or what we speak, and so stays until somebody acts.
    pub fn is_refusal(&self) -> bool {
        match self {
            ReadError::Closed => false,
            ReadError::Io(e) => e.kind() == io::ErrorKind::PermissionDenied,
            ReadError::Frame(e) => matches!(
                e,
                FrameError::Tls | FrameError::Magic(_) | FrameError::Version { .. }
            ),
        }
    }
}

/// Reads frames; bounded to its buffer and one frame.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    versions: Versions,
    /// Of the last frame; zero before the first.
    version: u16,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> FrameReader<R> {
    /// A reader of this stream.
    pub fn new(inner: R) -> FrameReader<R> {
        FrameReader::with_versions(inner, Versions::default())
    }

    /// A reader that understands these versions.
    pub fn with_versions(inner: R, versions: Versions) -> FrameReader<R> {
        FrameReader {
            inner,
            versions,
            version: 0,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// The stream itself, for its options; what was read ahead is not in it any more.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The version in which the last frame was sent; zero before the first.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// From now on only these are understood.
    pub fn set_versions(&mut self, versions: Versions) {
        self.versions = versions;
    }

    /// Whether another whole frame is in the buffer already, so that reading it will not wait.
    pub fn has_buffered_frame(&self) -> bool {
        let have = &self.buffer[self.start..self.end];
        have.first_chunk::<HEADER_BYTES>().is_some_and(|raw| {
            Preamble::decode(raw, self.versions)
                .is_ok_and(|p| have.len() >= HEADER_BYTES + p.body_len())
        })
    }

    fn fill(&mut self, need: usize) -> Result<(), ReadError> {
        if self.start + need > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < need {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) if self.end == self.start => return Err(ReadError::Closed),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// [`ReadError`]; the stream is then of no further use.
    pub fn next_frame(&mut self) -> Result<Frame, ReadError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        self.fill(HEADER_BYTES)?;
        let mut raw = [0; HEADER_BYTES];
        raw.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
        let preamble = Preamble::decode(&raw, self.versions)?;
        self.version = preamble.version;
        self.start += HEADER_BYTES;
        let len = preamble.body_len();
        let body = if len <= LARGE {
            self.small_body(len)?
        } else {
            self.large_body(len)?
        };
        Ok(preamble.finish(body)?)
    }

    /// The one copy in user space on this side.
    fn small_body(&mut self, len: usize) -> Result<Bytes, ReadError> {
        if len > 0 {
            self.fill(len)?;
        }
        let body = Bytes::copy_from_slice(&self.buffer[self.start..self.start + len]);
        self.start += len;
        Ok(body)
    }

    /// No copy, but for what was in the buffer already.
    fn large_body(&mut self, len: usize) -> Result<Bytes, ReadError> {
        let mut body = Vec::with_capacity(len);
        let have = len.min(self.end - self.start);
        body.extend_from_slice(&self.buffer[self.start..self.start + have]);
        self.start += have;
        let missing = (len - have) as u64;
        self.inner.by_ref().take(missing).read_to_end(&mut body)?;
        if body.len() < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(body.into())
    }
}

/// Frames on their way out: gathers as many as fit one system call, and keeps what a short write
/// left over.
#[derive(Debug)]
pub struct FrameWriter {
    parts: std::collections::VecDeque<Bytes>,
    bytes: usize,
    version: u16,
    /// To be said in the next frame, which is the first.
    announce: Option<u16>,
}

impl Default for FrameWriter {
    /// For answers, and for whoever speaks one version only.
    fn default() -> FrameWriter {
        FrameWriter {
            parts: std::collections::VecDeque::new(),
            bytes: 0,
            version: Versions::default().oldest,
            announce: None,
        }
    }
}

/// Slices given to one system call, at most (the kernel's IOV_MAX is 1024).
const MAX_PARTS: usize = 256;

impl FrameWriter {
    /// For whoever connects: begins in its oldest version and says its newest (see [`Versions`]).
    pub fn opening(versions: Versions) -> FrameWriter {
        FrameWriter {
            version: versions.oldest,
            announce: Some(versions.newest),
            ..FrameWriter::default()
        }
    }

    /// What is queued from now on goes in this version.
    pub fn set_version(&mut self, version: u16) {
        self.version = version;
    }

    /// Queues a frame; `crc` is its body's CRC, where known already.
    pub fn push(&mut self, frame: &Frame, crc: Option<u32>) {
        let crc = crc.unwrap_or_else(|| frame.body_crc());
        let header = match self.announce.take() {
            Some(newest) => {
                let mut first = frame.clone();
                first.header.aux = newest.into();
                first.encode_header(self.version, crc)
            }
            None => frame.encode_header(self.version, crc),
        };
        self.parts.push_back(Bytes::copy_from_slice(&header));
        if !frame.meta.is_empty() {
            self.parts.push_back(frame.meta.clone());
        }
        self.parts
            .extend(frame.data.iter().filter(|d| !d.is_empty()).cloned());
        self.bytes += frame.wire_len();
    }

    /// Nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Hands what is queued to `write` (a gathering write that says how many bytes it took)
    /// until nothing is left or it fails; what was not taken stays queued.
    ///
    /// # Errors
    /// What `write` says; `WouldBlock` is not the end of the stream.
    pub fn write_with(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.parts.is_empty() {
            let slices: Vec<IoSlice<'_>> = self
                .parts
                .iter()
                .take(MAX_PARTS)
                .map(|p| IoSlice::new(p))
                .collect();
            match write(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.taken(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn taken(&mut self, mut n: usize) {
        self.bytes -= n;
        while let Some(part) = self.parts.front_mut() {
            if n < part.len() {
                let _ = part.split_to(n);
                return;
            }
            n -= part.len();
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Header, Kind};
    use crate::ids::Generation;

    fn frame(i: u64, data: usize) -> Frame {
        let header = Header::new(
            Kind::Append,
            Generation {
                number: 1,
                claim: 2,
            },
            i,
        );
        let data = if data == 0 {
            vec![]
        } else {
            vec![Bytes::from(vec![i as u8; data])]
        };
        Frame {
            header,
            meta: Bytes::from(vec![7; 24]),
            data,
        }
    }

    /// Gives out a few bytes at a time.
    struct Dribble(Vec<u8>, usize, usize);
    impl Read for Dribble {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.2.min(buf.len()).min(self.0.len() - self.1);
            buf[..n].copy_from_slice(&self.0[self.1..self.1 + n]);
            self.1 += n;
            Ok(n)
        }
    }

    #[test]
    fn frames_survive_short_writes_and_short_reads() {
        let sizes = [0, 4096, 1 << 20, 0, 40_000, 4096];
        let frames: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(i, s)| frame(i as u64, *s))
            .collect();
        for step in [1000usize, 77_777, 10_000_000] {
            let mut writer = FrameWriter::default();
            frames.iter().for_each(|f| writer.push(f, None));
            let total = writer.len();
            let mut wire = Vec::new();
            writer
                .write_with(|parts| {
                    let all: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
                    let n = (step * 3).min(all.len());
                    wire.extend_from_slice(&all[..n]);
                    Ok(n)
                })
                .unwrap();
            assert_eq!((wire.len(), writer.len()), (total, 0));
            let mut reader = FrameReader::new(Dribble(wire, 0, step.max(100)));
            for f in &frames {
                assert_eq!(&reader.next_frame().unwrap(), f);
            }
            assert!(matches!(reader.next_frame(), Err(ReadError::Closed)));
        }
    }

    #[test]
    fn a_frame_cut_short_is_an_error_and_not_an_end() {
        let mut writer = FrameWriter::default();
        writer.push(&frame(1, 100_000), None);
        let mut wire = Vec::new();
        writer
            .write_with(|p| {
                wire.extend_from_slice(&p[0]);
                Ok(p[0].len())
            })
            .unwrap();
        wire.truncate(wire.len() - 1);
        let mut reader = FrameReader::new(wire.as_slice());
        assert!(matches!(reader.next_frame(), Err(ReadError::Io(_))));
    }
}
