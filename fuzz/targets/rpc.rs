//! The stream of a client, cut at any place, through record marking and the heads of calls and
//! replies: no panic, no message longer than the limit, no room reserved beyond it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use trivet_nfs::rpc::message::{CallHead, decode_reply};
use trivet_nfs::rpc::record::{Assembler, MAX_READ, Progress};
use trivet_nfs::xdr::Dec;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let (cuts, mut stream) = data.split_at(data.len().min(8));
    let mut cuts = cuts.iter().cycle();
    let mut input = Assembler::new(LIMIT);
    loop {
        let next = input.next(|v| {
            let want = cuts.next().map_or(1, |c| usize::from(*c) * 7 + 1);
            let n = want.min(v.capacity() - v.len()).min(stream.len());
            if n == 0 {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            v.extend_from_slice(&stream[..n]);
            stream = &stream[n..];
            Ok(n)
        });
        assert!(input.reserved() <= 2 * (LIMIT + MAX_READ));
        match next {
            Ok(Progress::Record(r)) => {
                assert!(r.len() <= LIMIT);
                let _ = decode_reply(&mut Dec::new(r.clone()));
                let _ = CallHead::decode(Bytes::clone(&r));
            }
            Ok(Progress::Starved) | Err(_) => break,
        }
    }
});
