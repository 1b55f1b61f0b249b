//! A miner's side of a stream as the validator reads it: frames one after the other until one is refused.
#![no_main]

use argus_protocols::{
    Challenge, CodecError, Rejection, ResultHeader, SignedOpen, SignedReceipt,
    codec::{self, FRAME_HEADER, FrameKind},
    query::{Accepted, Progress},
    trajectory::OpeningHeader,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER>() {
        let Ok((kind, length)) = codec::parse_frame_header(*header) else {
            return;
        };
        assert!((1..=kind.limit()).contains(&length));
        assert_eq!(codec::frame_header(kind, length), *header);
        let Some((payload, after)) = after.split_at_checked(length) else {
            return;
        };
        let again: Result<Vec<u8>, CodecError> = match kind {
            FrameKind::Open => SignedOpen::from_bytes(payload).map(|v| v.to_bytes()),
            FrameKind::Chunk => Ok(payload.to_vec()),
            FrameKind::Accepted => Accepted::decode(payload).map(|v| codec::encode(&v)),
            FrameKind::Rejected => Rejection::from_bytes(payload).map(|v| v.to_bytes().to_vec()),
            FrameKind::Progress => Progress::decode(payload).map(|v| codec::encode(&v)),
            FrameKind::Result => ResultHeader::decode(payload).map(|v| codec::encode(&v)),
            FrameKind::Challenge => Challenge::decode(payload).map(|v| codec::encode(&v)),
            FrameKind::Opening => OpeningHeader::decode(payload).map(|v| codec::encode(&v)),
            FrameKind::Receipt => SignedReceipt::from_bytes(payload).map(|v| v.to_bytes()),
        };
        match again {
            Ok(again) => assert_eq!(again, payload),
            Err(_) => return,
        }
        rest = after;
    }
});
