//! The frame reader: whatever arrives on a socket is a frame or an error, within its bounds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trivet_protocol::frame::HEADER_BYTES;
use trivet_protocol::io::{FrameReader, FrameWriter, ReadError};
use trivet_protocol::limits::{MAX_FRAME_DATA, MAX_FRAME_META};

/// Makes the checksums right, so that the fuzzer gets past them: of the header, and of the body
/// if all of it is there.
fn seal(stream: &mut [u8]) {
    let Some((header, rest)) = stream.split_first_chunk_mut::<HEADER_BYTES>() else {
        return;
    };
    let len = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let body = len(8) as usize + len(12) as usize;
    if let Some(body) = rest.get(..body) {
        header[96..100].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
    let crc = crc32c::crc32c(&header[..100]);
    header[100..].copy_from_slice(&crc.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let mut stream = input.to_vec();
    // The first byte decides, and stays part of the magic number in the other case.
    if input.first() == Some(&b'T') {
        seal(&mut stream);
    }
    let mut reader = FrameReader::new(stream.as_slice());
    let mut used = 0;
    loop {
        let _ = reader.has_buffered_frame();
        match reader.next_frame() {
            Ok(frame) => {
                assert!(frame.meta.len() <= MAX_FRAME_META && frame.data_len() <= MAX_FRAME_DATA);
                // What was read, written again, is what had arrived.
                let mut writer = FrameWriter::default();
                writer.push(&frame, None);
                let mut again = Vec::new();
                let written = writer.write_with(|parts| {
                    let before = again.len();
                    parts.iter().for_each(|p| again.extend_from_slice(p));
                    Ok(again.len() - before)
                });
                assert!(written.is_ok());
                // Version N-1 would be written as N; there is none yet.
                assert_eq!(again, stream[used..used + again.len()]);
                used += again.len();
            }
            Err(ReadError::Closed | ReadError::Io(_) | ReadError::Frame(_)) => break,
        }
    }
});
