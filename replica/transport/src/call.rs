//! Calls: a request, an answer, for whatever runs on a node, on the port that serves its members.
//!
//! A connection whose first frame is a [`Kind::Call`] carries calls only, one after the other; the
//! handler runs on the connection's own thread and may block. A call that fails or takes too long
//! ends the connection: what was asked may have been done or not, and whoever asks again has to
//! know what that means.
//!
//! Bounds: a request of [`MAX_CALL`], an answer of [`MAX_ANSWER`] bytes, [`IDLE`] between two
//! calls; the server bounds the connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use trivet_protocol::Generation;
use trivet_protocol::frame::{Frame, Header, Kind, Versions};
use trivet_protocol::io::{FrameReader, FrameWriter, ReadError};
use trivet_protocol::limits::{MAX_ANSWER, MAX_CALL, MAX_FRAME_DATA};
use trivet_protocol::message::{self, Refusal, Reply};

use crate::conn::{Reader, Writer};
use crate::error::TransportError;
use crate::peers::Peer;
use crate::security::{Expect, Security};

/// A connection with no call for this long is closed.
pub const IDLE: Duration = Duration::from_secs(60);
/// The other side must take each part within this time.
const TAKE: Duration = Duration::from_secs(10);

/// Answers calls.
pub trait CallHandler: Send + Sync {
    /// The answer, of at most 4 MiB, to a request of at most 1 MiB. Runs on the connection's own
    /// thread and may block, but has to end when what it waits for goes away: the server ends
    /// after its connections. `peer` proved who it is; what it may ask is the handler's to decide.
    fn call(&self, peer: &Peer, request: Bytes) -> Bytes;
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CallError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{address} did not answer within {limit:?}; whether it did what was asked is unknown")]
    Timeout {
        address: SocketAddr,
        limit: Duration,
    },
    #[error("{address} refused: {refusal}")]
    Refused {
        address: SocketAddr,
        refusal: Refusal,
    },
    #[error(
        "the connection to {address} ended during a call: {why}; whether it did what was asked is \
         unknown"
    )]
    Lost { address: SocketAddr, why: String },
    #[error("a request of {len} bytes was not sent: at most {MAX_CALL} are allowed")]
    TooLong { len: usize },
    #[error("{address}: an earlier call failed on this connection; connect again")]
    Over { address: SocketAddr },
}

/// The asking side: one connection, one call at a time.
pub struct Client {
    address: SocketAddr,
    reader: FrameReader<Reader>,
    writer: Writer,
    out: FrameWriter,
    last: u64,
    over: bool,
}

impl Client {
    /// Connects within `timeout`.
    ///
    /// # Errors
    /// [`CallError::Transport`].
    pub fn connect(
        address: SocketAddr,
        security: &Security,
        expect: &Expect,
        timeout: Duration,
    ) -> Result<Client, CallError> {
        let (reader, writer) = security.connect(address, expect, timeout)?.split();
        Ok(Client {
            address,
            reader: FrameReader::new(reader),
            writer,
            out: FrameWriter::opening(Versions::default()),
            last: 0,
            over: false,
        })
    }

    /// Who answers.
    pub fn peer(&self) -> &Peer {
        self.writer.peer()
    }

    /// Asks, and waits at most `timeout` in all.
    ///
    /// # Errors
    /// Except after [`CallError::TooLong`] and [`CallError::Refused`] the connection is over.
    pub fn call(&mut self, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let address = self.address;
        if request.len() > MAX_CALL {
            let len = request.len();
            return Err(CallError::TooLong { len });
        }
        if self.over {
            return Err(CallError::Over { address });
        }
        let answer = self.ask(request, Instant::now() + timeout);
        self.over = !matches!(answer, Ok(_) | Err(Ask::Refused(_)));
        if self.over {
            self.writer.shutdown();
        }
        answer.map_err(|e| match e {
            Ask::Refused(refusal) => CallError::Refused { address, refusal },
            Ask::Late => CallError::Timeout {
                address,
                limit: timeout,
            },
            Ask::Broken(why) => CallError::Lost { address, why },
        })
    }

    fn ask(&mut self, request: Bytes, until: Instant) -> Result<Bytes, Ask> {
        self.last += 1;
        let header = Header::new(Kind::Call, Generation::NONE, self.last);
        let frame = Frame {
            header,
            meta: request,
            data: Vec::new(),
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Ask::Late);
        }
        self.writer.set_write_timeout(left)?;
        self.reader.get_ref().set_deadline(Some(until))?;
        // The first answer said which version to speak.
        if self.reader.version() != 0 {
            self.out.set_version(self.reader.version());
        }
        self.out.push(&frame, None);
        self.out.write_with(|parts| self.writer.write(parts))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Bytes, Ask> {
        let mut answer = BytesMut::new();
        loop {
            let frame = self.reader.next_frame()?;
            // Number 0: the connection as such is refused.
            let whole = frame.header.kind == Kind::Reply && frame.header.seq == 0;
            if frame.header.seq != self.last && !whole {
                return Err(Ask::Broken("it answered another call".into()));
            }
            match frame.header.kind {
                Kind::Answer => {}
                Kind::Reply => match message::decode::<Reply>(&frame.meta) {
                    Ok(Reply::Refused(refusal)) => return Err(Ask::Refused(refusal)),
                    Ok(_) => return Err(Ask::Broken("it did not answer a call".into())),
                    Err(e) => return Err(Ask::Broken(e)),
                },
                _ => return Err(Ask::Broken("it did not answer a call".into())),
            }
            let whole = usize::try_from(frame.header.aux).unwrap_or(usize::MAX);
            let part = frame.contiguous_data();
            let have = answer.len() + part.len();
            if whole > MAX_ANSWER || have > whole {
                return Err(Ask::Broken(format!("its answer has {whole} bytes")));
            }
            if have == whole && answer.is_empty() {
                return Ok(part);
            }
            if part.is_empty() {
                return Err(Ask::Broken("its answer does not go on".into()));
            }
            answer.extend_from_slice(&part);
            if have == whole {
                return Ok(answer.freeze());
            }
        }
    }
}

enum Ask {
    Late,
    Refused(Refusal),
    Broken(String),
}

impl From<std::io::Error> for Ask {
    fn from(e: std::io::Error) -> Ask {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        match e.kind() {
            TimedOut | WouldBlock => Ask::Late,
            _ => Ask::Broken(e.to_string()),
        }
    }
}

impl From<ReadError> for Ask {
    fn from(e: ReadError) -> Ask {
        match e {
            ReadError::Io(e) => e.into(),
            other => Ask::Broken(other.to_string()),
        }
    }
}

/// Answers the calls of one connection, from its `first` frame to its end, through `out`.
///
/// # Errors
/// Why it ended, other than by the peer's wish, for the log.
pub fn serve(
    handler: Option<&dyn CallHandler>,
    first: Frame,
    reader: &mut FrameReader<Reader>,
    writer: &Writer,
    mut out: FrameWriter,
) -> Result<(), ReadError> {
    writer.set_write_timeout(TAKE)?;
    let mut frame = first;
    loop {
        let seq = frame.header.seq;
        let refused = |why: &str| refusal(seq, Refusal::BadRequest(why.into()));
        let answer = match (frame.header.kind, handler) {
            (Kind::Call, Some(handler)) if frame.data.is_empty() => {
                answer(seq, handler.call(writer.peer(), frame.meta))
            }
            (Kind::Call, Some(_)) => refused("a call has no data"),
            (Kind::Call, None) => refused("this node answers no calls"),
            _ => refused("only calls may follow a call on its connection"),
        };
        answer.iter().for_each(|f| out.push(f, None));
        out.write_with(|parts| writer.write(parts))?;
        reader.get_ref().set_deadline(Some(Instant::now() + IDLE))?;
        frame = match reader.next_frame() {
            Ok(frame) => frame,
            Err(ReadError::Closed) => return Ok(()),
            // Nothing to be done for so long: the peer connects again when there is.
            Err(ReadError::Io(e)) if e.kind() == std::io::ErrorKind::TimedOut => return Ok(()),
            Err(e) => return Err(e),
        };
    }
}

fn answer(seq: u64, answer: Bytes) -> Vec<Frame> {
    let whole = answer.len();
    if whole > MAX_ANSWER {
        tracing::error!(whole, "the answer to a call is too long and was not sent");
        let why = format!("the answer has {whole} bytes, at most {MAX_ANSWER} are allowed");
        return refusal(seq, Refusal::BadRequest(why));
    }
    let part = |at: usize| {
        let end = whole.min(at + MAX_FRAME_DATA);
        let mut header = Header::new(Kind::Answer, Generation::NONE, seq);
        header.aux = whole as u64;
        let data = match at == end {
            true => Vec::new(),
            false => vec![answer.slice(at..end)],
        };
        Frame {
            header,
            meta: Bytes::new(),
            data,
        }
    };
    (0..whole.max(1))
        .step_by(MAX_FRAME_DATA)
        .map(part)
        .collect()
}

fn refusal(seq: u64, refusal: Refusal) -> Vec<Frame> {
    vec![Frame {
        header: Header::new(Kind::Reply, Generation::NONE, seq),
        meta: message::encode(&Reply::Refused(refusal)),
        data: Vec::new(),
    }]
}
