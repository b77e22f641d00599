//! Connections that carry renewals and nothing else (invariant 2).
//!
//! Each has a thread of its own, which answers from the [`Pledge`] alone. It waits for no lock that
//! is held over a disk, and for no socket that carries data: as long as this process gets a
//! processor at all, a lease is renewed, however the disk behind the member is doing.
//!
//! Bounds: one frame at a time; the holder takes its answer within the server's usual time.

use std::io::Read;

use bytes::Bytes;
use trivet_protocol::Generation;
use trivet_protocol::frame::{Frame, Header, Kind};
use trivet_protocol::io::FrameReader;
use trivet_protocol::message::{self, Reply, Request};

use super::boot_time;
use crate::pledge::Pledge;

/// Answers renewals until the connection ends. `asked` hears of each one that was granted; `send`
/// sends a frame and says whether that worked.
pub(super) fn attend<R: Read>(
    pledge: &Pledge,
    first: u64,
    reader: &mut FrameReader<R>,
    asked: impl Fn(),
    send: impl Fn(&Frame) -> bool,
) -> Result<(), String> {
    // Best effort: without the privilege the thread runs as any other.
    let _ = rustix::process::setpriority_process(None, -10);
    if !send(&reply(Generation::NONE, first, &Reply::Done)) {
        return Ok(());
    }
    loop {
        let Ok(frame) = reader.next_frame() else {
            return Ok(());
        };
        let request = message::decode::<Request>(&frame.meta);
        if frame.header.kind != Kind::Request || request != Ok(Request::Renew) {
            return Err("a connection for renewals carries something else".into());
        }
        let (g, id) = (frame.header.generation, frame.header.seq);
        let positions = (frame.header.commit, frame.header.trim);
        let answer = match pledge.renew(boot_time(), g, positions) {
            Ok(()) => Reply::Renewed,
            Err(refusal) => Reply::Refused(refusal),
        };
        if !send(&reply(g, id, &answer)) {
            return Ok(());
        }
        asked();
    }
}

fn reply(g: Generation, id: u64, reply: &Reply) -> Frame {
    Frame {
        header: Header::new(Kind::Reply, g, id),
        meta: message::encode(reply),
        data: Vec::<Bytes>::new(),
    }
}
