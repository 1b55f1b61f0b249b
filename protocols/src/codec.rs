//! Binary encoding (bincode 2, standard configuration, little endian) and frame headers.
//!
//! The only place that knows bincode. Invariants of [`decode`]:
//! - a length is held against its limit *and* against the bytes that are really there before anything is
//!   allocated for it, so that a value never takes more memory than a small multiple of its own encoding;
//! - trailing bytes are an error, and so is every encoding but the shortest, so that equal values have
//!   equal bytes and hashes.

use bincode::{
    Decode, Encode, config,
    de::read::Reader,
    enc::write::Writer,
    error::{DecodeError as Error, EncodeError},
};

pub(crate) use bincode::{de::Decoder, error::DecodeError};

use crate::limits;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{length} bytes are more than the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    #[error("not a valid encoding: {0}")]
    Malformed(String),
    #[error("not the shortest encoding of its value")]
    NotCanonical,
    #[error("{0} bytes follow the end of the value")]
    Trailing(usize),
    #[error("unknown frame kind {0}")]
    UnknownFrame(u8),
}

impl CodecError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            CodecError::TooLarge { .. } | CodecError::OverLimit(_) => "limits",
            CodecError::Malformed(_) => "malformed",
            CodecError::NotCanonical => "not_canonical",
            CodecError::Trailing(_) => "trailing",
            CodecError::UnknownFrame(_) => "unknown_frame",
        }
    }
}

/// One field of a value is longer, or has more elements, than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {length} is over the limit of {limit}")]
pub struct OverLimit {
    pub what: &'static str,
    pub length: u64,
    pub limit: usize,
}

pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard()).expect("encoding into memory does not fail")
}

/// Decodes a value of at most `LIMIT` bytes, all of `bytes`.
pub fn decode<T: Decode<()> + Encode, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { length: bytes.len(), limit: LIMIT });
    }
    // bincode counts a number at its full width, however short its encoding: hence twice a body.
    let configuration = config::standard().with_limit::<{ 2 * limits::BODY }>();
    let (value, used) = bincode::decode_from_slice(bytes, configuration).map_err(explain)?;
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    bincode::encode_into_writer(&value, Same(bytes), config::standard())
        .map_err(|_| CodecError::NotCanonical)?;
    Ok(value)
}

fn explain(error: Error) -> CodecError {
    match error {
        Error::Io { inner, .. } => match inner.downcast::<OverLimit>() {
            Ok(over) => CodecError::OverLimit(over),
            Err(other) => CodecError::Malformed(other.to_string()),
        },
        Error::UnexpectedEnd { .. } => CodecError::Malformed("it ends too early".into()),
        Error::Other(what) => CodecError::Malformed(what.into()),
        Error::OtherString(what) => CodecError::Malformed(what),
        other => CodecError::Malformed(other.to_string()),
    }
}

/// Fails as soon as what is written differs from the bytes it holds.
struct Same<'a>(&'a [u8]);

impl Writer for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0 = self.0.strip_prefix(bytes).ok_or(EncodeError::Other("different bytes"))?;
        Ok(())
    }
}

fn length<D: Decoder>(from: &mut D, limit: usize, what: &'static str) -> Result<usize, DecodeError> {
    let length = u64::decode(from)?;
    usize::try_from(length).ok().filter(|length| *length <= limit).ok_or_else(|| Error::Io {
        inner: std::io::Error::other(OverLimit { what, length, limit }),
        additional: 0,
    })
}

/// A byte string of at most `limit` bytes.
pub(crate) fn bytes<D: Decoder>(
    from: &mut D,
    limit: usize,
    what: &'static str,
) -> Result<Vec<u8>, DecodeError> {
    let length = length(from, limit, what)?;
    from.claim_bytes_read(length)?;
    let reader = from.reader();
    let value = reader.peek_read(length).ok_or(Error::UnexpectedEnd { additional: length })?.to_vec();
    reader.consume(length);
    Ok(value)
}

/// UTF-8 text of at most `limit` bytes.
pub(crate) fn text<D: Decoder>(
    from: &mut D,
    limit: usize,
    what: &'static str,
) -> Result<String, DecodeError> {
    String::from_utf8(bytes(from, limit, what)?).map_err(|_| Error::OtherString(format!("{what}: not UTF-8")))
}

/// Whether a model id may cross the wire: 1 to [`limits::MODEL_ID`] printable ASCII characters without
/// spaces, so that it can be shown in a terminal and used as a label as it is.
pub fn is_model_id(id: &str) -> bool {
    (1..=limits::MODEL_ID).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic())
}

pub(crate) fn model_id<D: Decoder>(from: &mut D) -> Result<String, DecodeError> {
    let id = text(from, limits::MODEL_ID, "model id")?;
    match is_model_id(&id) {
        true => Ok(id),
        false => Err(malformed("model id: empty, or not printable ASCII without spaces")),
    }
}

/// At most `limit` elements, each read by `element`.
pub(crate) fn list<D: Decoder, T>(
    from: &mut D,
    limit: usize,
    what: &'static str,
    element: impl Fn(&mut D) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let length = length(from, limit, what)?;
    // An element has one byte at least.
    if from.reader().peek_read(length).is_none() {
        return Err(Error::UnexpectedEnd { additional: length });
    }
    let mut values = Vec::with_capacity(length);
    for _ in 0..length {
        values.push(element(from)?);
    }
    Ok(values)
}

pub(crate) fn malformed(what: &'static str) -> DecodeError {
    Error::Other(what)
}

/// A number that is neither infinite nor NaN.
pub(crate) fn finite<D: Decoder>(from: &mut D, what: &'static str) -> Result<f32, DecodeError> {
    let value = f32::decode(from)?;
    match value.is_finite() {
        true => Ok(value),
        false => Err(Error::OtherString(format!("{what}: not a finite number"))),
    }
}

/// The kinds of frames on a query stream. Each frame is `kind u8, length u32 LE, payload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Miner to validator: a [`crate::SignedReceipt`]; the last frame unless the validator goes on.
    Receipt = 7,
    /// Validator to miner, once, after a receipt with a commitment: a [`crate::Challenge`].
    Challenge = 8,
    /// Miner to validator: a [`crate::trajectory::OpeningHeader`], chunks of its body follow.
    Opening = 9,
}

impl FrameKind {
    pub const ALL: [FrameKind; 9] = [
        FrameKind::Open,
        FrameKind::Chunk,
        FrameKind::Accepted,
        FrameKind::Rejected,
        FrameKind::Progress,
        FrameKind::Result,
        FrameKind::Receipt,
        FrameKind::Challenge,
        FrameKind::Opening,
    ];

    /// The largest payload of this kind.
    pub fn limit(self) -> usize {
        match self {
            FrameKind::Open | FrameKind::Receipt => limits::FRAME,
            FrameKind::Chunk => limits::CHUNK,
            // The longest encodings of one u32, of two, and of two and a hash.
            FrameKind::Accepted => 5,
            FrameKind::Rejected => crate::Rejection::LENGTH,
            FrameKind::Progress => 10,
            FrameKind::Result => 42,
            // A number below 251 and so many u32; a u32 and a hash.
            FrameKind::Challenge => 1 + 5 * limits::OPENED_STATES,
            FrameKind::Opening => 37,
        }
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = CodecError;

    fn try_from(kind: u8) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|known| *known as u8 == kind).ok_or(CodecError::UnknownFrame(kind))
    }
}

/// Length of a frame's header.
pub const FRAME_HEADER: usize = 5;

/// The header of a payload, which must be within the kind's limit.
pub fn frame_header(kind: FrameKind, length: usize) -> [u8; FRAME_HEADER] {
    debug_assert!((1..=kind.limit()).contains(&length));
    let length = (length as u32).to_le_bytes();
    [kind as u8, length[0], length[1], length[2], length[3]]
}

/// Reads a header; the length is at least 1 and within the kind's limit when this returns.
pub fn parse_frame_header(header: [u8; FRAME_HEADER]) -> Result<(FrameKind, usize), CodecError> {
    let kind = FrameKind::try_from(header[0])?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > kind.limit() {
        return Err(CodecError::TooLarge { length, limit: kind.limit() });
    }
    if length == 0 {
        // A stream of these would look alive without ever getting anywhere.
        return Err(CodecError::Malformed("a frame without a payload".into()));
    }
    Ok((kind, length))
}
