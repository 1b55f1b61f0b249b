//! Trajectory audits: what a miner commits to with a picture made by diffusion, what a validator asks to see
//! of it afterwards, and what it is shown.
//!
//! A run of n steps has n + 1 states of its sampler, from the noise to the latents of the picture. The
//! commitment is in the receipt, so the miner has signed it before it can know which states it must open.
//! An opening is believed only as [`Opening::verify`] gives it back.

use std::fmt;

use bincode::{Decode, Encode};

use crate::{
    codec::{self, CodecError, DecodeError, Decoder},
    limits,
    merkle::{self, Hash},
};

/// A miner's word for all states of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, serde::Serialize)]
pub struct Commitment {
    /// Of the tree whose leaf i is state i.
    #[serde(serialize_with = "hex_root")]
    pub root: Hash,
    /// One more than the run's steps: 2 to [`limits::STATES`].
    pub states: u32,
}

fn hex_root<S: serde::Serializer>(root: &Hash, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(root))
}

impl<Context> Decode<Context> for Commitment {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        let commitment = Self { root: Decode::decode(from)?, states: Decode::decode(from)? };
        match (2..=limits::STATES).contains(&commitment.states) {
            true => Ok(commitment),
            false => Err(codec::malformed("a trajectory without steps, or of too many")),
        }
    }
}

impl Commitment {
    /// Commits to states by the hashes of their leaves, as [`merkle::leaf`] makes them; `None` for fewer
    /// than two or more than [`limits::STATES`].
    pub fn of(leaves: &[Hash]) -> Option<Self> {
        let states = u32::try_from(leaves.len()).ok()?;
        let root = merkle::root(leaves)?;
        (2..=limits::STATES).contains(&states).then_some(Self { root, states })
    }

    /// Steps of the run.
    pub fn steps(&self) -> u32 {
        self.states - 1
    }
}

/// Which states a validator wants to see: the payload of a Challenge frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Challenge {
    /// Indices of states, rising; 1 to [`limits::OPENED_STATES`].
    pub states: Vec<u32>,
}

impl<Context> Decode<Context> for Challenge {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        let states = codec::list(from, limits::OPENED_STATES, "states to open", u32::decode)?;
        match !states.is_empty() && states.is_sorted_by(|a, b| a < b) {
            true => Ok(Self { states }),
            false => Err(codec::malformed("states to open: none, or not rising")),
        }
    }
}

impl Challenge {
    /// What must be seen to check `steps` of a run: the state before and after each, the first of all, which
    /// follows from the request, and the last, which becomes the picture.
    pub fn of_steps(steps: &[u32], commitment: &Commitment) -> Self {
        let mut states: Vec<u32> = steps.iter().flat_map(|step| [*step, step + 1]).collect();
        states.extend([0, commitment.steps()]);
        states.retain(|state| *state < commitment.states);
        states.sort_unstable();
        states.dedup();
        states.truncate(limits::OPENED_STATES);
        Self { states }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::FRAME }>(bytes)
    }
}

/// Announces the states that were asked for; its body (an encoded [`Opening`]) follows in chunks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpeningHeader {
    pub body_length: u32,
    /// BLAKE3 of the body.
    pub body_hash: [u8; 32],
}

impl OpeningHeader {
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let header: Self = codec::decode::<Self, { limits::FRAME }>(bytes)?;
        match header.body_length as usize {
            0 => Err(CodecError::Malformed("an opening without a body".into())),
            length if length > limits::BODY => Err(CodecError::TooLarge { length, limit: limits::BODY }),
            _ => Ok(header),
        }
    }
}

/// One state with the proof that it is the one that was committed to.
#[derive(Clone, PartialEq, Eq, Encode)]
pub struct OpenedState {
    pub index: u32,
    /// As `SPEC.md` lays it out: numbers of type f32, little endian.
    pub state: Vec<u8>,
    pub path: Vec<Hash>,
}

impl<Context> Decode<Context> for OpenedState {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            index: Decode::decode(from)?,
            state: codec::bytes(from, limits::STATE, "state")?,
            path: codec::list(from, limits::PATH, "path", Hash::decode)?,
        })
    }
}

impl fmt::Debug for OpenedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenedState({}, {} bytes, {} hashes)", self.index, self.state.len(), self.path.len())
    }
}

/// The states that were asked for, as they came.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Opening {
    pub states: Vec<OpenedState>,
}

impl<Context> Decode<Context> for Opening {
    fn decode<D: Decoder<Context = Context>>(from: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { states: codec::list(from, limits::OPENED_STATES, "opened states", Decode::decode)? })
    }
}

/// Why an opening is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    #[error("other states were opened than were asked for")]
    Indices,
    #[error("state {0} is not the one that was committed to")]
    Path(u32),
}

impl OpeningError {
    /// A stable label for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            OpeningError::Indices => "opening_indices",
            OpeningError::Path(_) => "opening_path",
        }
    }
}

impl Opening {
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { limits::BODY }>(bytes)
    }

    /// The states by their indices, if they are exactly those asked for and each leads to the root that the
    /// miner signed.
    pub fn verify(
        self,
        challenge: &Challenge,
        commitment: &Commitment,
    ) -> Result<Vec<(u32, Vec<u8>)>, OpeningError> {
        if !self.states.iter().map(|opened| &opened.index).eq(&challenge.states) {
            return Err(OpeningError::Indices);
        }
        let check = |opened: OpenedState| {
            let OpenedState { index, state, path } = opened;
            let root = merkle::root_by(merkle::leaf(index, &state), index, commitment.states, &path);
            if root == Some(commitment.root) { Ok((index, state)) } else { Err(OpeningError::Path(index)) }
        };
        self.states.into_iter().map(check).collect()
    }
}
