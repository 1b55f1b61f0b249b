//! Binary encoding (bincode 2, standard configuration, little endian) and frame headers.
//!
//! The only place that knows bincode. Every decode has a byte limit that holds *before* allocation, and
//! trailing bytes are an error.

use bincode::{Decode, Encode, config};

use crate::limits;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{length} bytes are more than the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error("not a valid encoding: {0}")]
    Malformed(String),
    #[error("{0} bytes follow the end of the value")]
    Trailing(usize),
    #[error("unknown frame kind {0}")]
    UnknownFrame(u8),
}

pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard()).expect("encoding into memory does not fail")
}

/// Decodes a value of at most `LIMIT` bytes, all of `bytes`.
pub fn decode<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge {
            length: bytes.len(),
            limit: LIMIT,
        });
    }
    let (value, used) = bincode::decode_from_slice(bytes, config::standard().with_limit::<LIMIT>())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

/// The kinds of frames on a query stream. Each frame is `kind u8, length u32 LE, payload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Validator to miner: a [`crate::SignedOpen`]. First and once.
    Open = 1,
    /// Either way: raw bytes of the body announced before.
    Chunk = 2,
    /// Miner to validator: [`crate::query::Accepted`].
    Accepted = 3,
    /// Miner to validator: a [`crate::Rejection`], at any time before the result; the last frame.
    Rejected = 4,
    /// Miner to validator: [`crate::query::Progress`].
    Progress = 5,
    /// Miner to validator: a [`crate::ResultHeader`], chunks of its body follow.
    Result = 6,
    /// Miner to validator: a [`crate::SignedReceipt`]; the last frame.
    Receipt = 7,
}

impl FrameKind {
    /// The largest payload of this kind.
    pub fn limit(self) -> usize {
        match self {
            FrameKind::Chunk => limits::CHUNK,
            _ => limits::FRAME,
        }
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = CodecError;

    fn try_from(kind: u8) -> Result<Self, CodecError> {
        Ok(match kind {
            1 => FrameKind::Open,
            2 => FrameKind::Chunk,
            3 => FrameKind::Accepted,
            4 => FrameKind::Rejected,
            5 => FrameKind::Progress,
            6 => FrameKind::Result,
            7 => FrameKind::Receipt,
            other => return Err(CodecError::UnknownFrame(other)),
        })
    }
}

/// Length of a frame's header.
pub const FRAME_HEADER: usize = 5;

pub fn frame_header(kind: FrameKind, length: usize) -> [u8; FRAME_HEADER] {
    debug_assert!(length <= kind.limit());
    let length = (length as u32).to_le_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// Reads a header; the length is within the kind's limit when this returns.
pub fn parse_frame_header(header: [u8; FRAME_HEADER]) -> Result<(FrameKind, usize), CodecError> {
    let kind = FrameKind::try_from(header[0])?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > kind.limit() {
        return Err(CodecError::TooLarge {
            length,
            limit: kind.limit(),
        });
    }
    Ok((kind, length))
}
