//! Every limit on what crosses the wire, in one place. Sizes in bytes unless the name says otherwise.

/// Frames other than chunks are small: headers, progress, receipts. [`crate::codec::FrameKind::limit`]
/// is tighter still for most kinds.
pub const FRAME: usize = 1024;
/// The largest chunk of a body in one frame.
pub const CHUNK: usize = 256 * 1024;
/// The largest body of a request or an answer, in all its chunks.
pub const BODY: usize = 16 * 1024 * 1024;
/// A signed record as stored in the DHT.
pub const RECORD: usize = 4 * 1024;
/// Addresses in a record.
pub const RECORD_ADDRESSES: usize = 16;
/// One address in its binary form: a relayed one with two DNS names fits.
pub const ADDRESS: usize = 512;
/// A peer id in its binary form (a multihash): 38 for an ed25519 key, 34 for a hashed one.
pub const PEER_ID: usize = 64;
/// Capabilities (models) in a record.
pub const RECORD_CAPABILITIES: usize = 32;
/// Tasks in one capability.
pub const CAPABILITY_TASKS: usize = 16;
/// A record lives this long at most.
pub const RECORD_LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;
/// A model id: printable ASCII without spaces.
pub const MODEL_ID: usize = 64;
/// A prompt or negative prompt, in bytes of UTF-8.
pub const PROMPT: usize = 4 * 1024;
/// Width or height of a picture, pixels. A model's registry entry allows less.
pub const SIDE: u32 = 8192;
/// Denoising steps.
pub const STEPS: u32 = 1000;
/// States of a trajectory: one more than there are steps.
pub const STATES: u32 = STEPS + 1;
/// States that one challenge may ask for: two for each of three steps, the first and the last.
pub const OPENED_STATES: usize = 8;
/// One state, so that as many as may be asked for fit a [`BODY`] with their paths.
pub const STATE: usize = BODY / OPENED_STATES - 1024;
/// Hashes of the longest path in a tree of [`STATES`] leaves.
pub const PATH: usize = 10;
/// How long a miner waits for a challenge after its receipt, milliseconds.
pub const CHALLENGE_MS: u32 = 5_000;
/// How long an opening may take from the challenge to its last byte, milliseconds: states are kept ready.
pub const OPENING_MS: u32 = 15_000;
/// Classifier-free guidance scale.
pub const GUIDANCE: f32 = 100.0;
/// Pixels of a picture in an answer: even noise of so many fits a [`BODY`] as PNG.
pub const ANSWER_PIXELS: u64 = 5 << 20;
/// Pictures that steer one generation.
pub const CONTROLS: usize = 4;
/// How strongly a control picture may steer; 1 is as its network was trained.
pub const CONTROL_SCALE: f32 = 2.0;
/// By how much a picture may grow along each edge.
pub const UPSCALE_FACTORS: [u32; 2] = [2, 4];
/// Pictures in one request for embeddings or classes.
pub const PICTURES: usize = 16;
/// Dimensions of one embedding.
pub const EMBEDDING_DIMENSIONS: usize = 4096;
/// How far the clocks of two nodes may be apart before a query counts as stale, milliseconds.
pub const CLOCK_SKEW_MS: u64 = 30_000;
/// The longest deadline of any kind that a query may ask for, milliseconds.
pub const DEADLINE_MS: u32 = 10 * 60 * 1000;
