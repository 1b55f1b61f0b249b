//! Every bound of the HTTP side, in one place. Sizes in bytes unless the name says otherwise.

use std::time::Duration;

/// Body of an image request: two prompts, every byte of which JSON may write as six.
pub const IMAGE_BODY: usize = 64 * 1024;
/// Body of a request with pictures, as base64 or as files.
pub const PICTURE_BODY: usize = 24 * 1024 * 1024;
/// Parts of a form.
pub const FORM_PARTS: usize = 64;
/// Body of a request on the admin port.
pub const ADMIN_BODY: usize = 16 * 1024;
/// How much of a body that is over its limit is read and thrown away, so that a client that writes
/// everything before it reads still gets its answer.
pub const DRAIN_BODY: usize = 64 * 1024 * 1024;
/// Request line and headers.
pub const HEAD: usize = 64 * 1024;

/// Pictures one image request may ask for (`n`), as OpenAI has it.
pub const IMAGES: u32 = 10;
/// Pictures of one request that are made at the same time.
pub const IMAGES_AT_ONCE: usize = 4;
/// Requests with pictures whose bodies are in memory at the same time.
pub const PICTURE_BODIES_AT_ONCE: usize = 8;
/// Of those, how many decode their pictures at the same time.
pub const DECODES_AT_ONCE: usize = 2;
/// One encoded picture of a request.
pub const PICTURE: usize = 8 * 1024 * 1024;
/// Longer side of a picture of a request, pixels.
pub const PICTURE_SIDE: u32 = 8192;
/// Area of a picture of a request, pixels.
pub const PICTURE_PIXELS: u64 = 4096 * 4096;
/// Area that a picture to be looked at is scaled down to before it travels, pixels: 16 of these fit one query even as
/// noise, and no embedding model looks at more than 336 × 336.
pub const PICTURE_TRAVELS: u64 = 512 * 512;

/// Keys in the ledger, revoked ones included.
pub const KEYS: usize = 10_000;
/// Characters in a key's name.
pub const KEY_NAME: usize = 64;
/// Most requests a minute that a key may be given.
pub const RATE: u32 = 100_000;
/// Most requests at once that a key may be given.
pub const CONCURRENT: u32 = 1_000;
/// Most credits that a key may be given, thousandths.
pub const CREDITS: u64 = 1_000_000_000_000;

/// Connections from one address; loopback (a reverse proxy) is exempt.
pub const CONNECTIONS_PER_ADDRESS: usize = 128;
/// Connections to the admin port.
pub const ADMIN_CONNECTIONS: usize = 16;
/// Progress messages between the work and the client's stream; more than these are dropped.
pub const PROGRESS: usize = 32;

/// For the request line and headers, and for an idle connection's next request.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// For a whole body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take not a single byte of an answer.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a streamed request waits for its first event, so that an early failure still gets its own
/// HTTP status.
pub const FIRST_EVENT: Duration = Duration::from_secs(2);
/// Between keep-alive comments of a stream.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
