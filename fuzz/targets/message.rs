//! Control messages: what decodes is bounded, and means the same after another round.

#![no_main]

use libfuzzer_sys::fuzz_target;
use trivet_protocol::frame::ReadMeta;
use trivet_protocol::message::{Reply, Request, decode, encode};

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = decode::<Request>(input) {
        assert_eq!(decode::<Request>(&encode(&request)), Ok(request));
    }
    if let Ok(reply) = decode::<Reply>(input) {
        if let Reply::Refused(refusal) = &reply {
            let _ = refusal.to_string();
        }
        assert_eq!(decode::<Reply>(&encode(&reply)), Ok(reply));
    }
    let _ = ReadMeta::decode(input);
});
