//! Every bound of the net that is not a setting, in one place. What crosses the wire is bounded by
//! `argus_protocols::limits`.

use std::time::Duration;

/// Commands from handles to the event loop. A full queue is answered `Busy`.
pub const COMMANDS: usize = 256;
/// Events to the node. A full queue drops the newest event, counted.
pub const EVENTS: usize = 256;
/// Verified inbound queries waiting for the miner. A full queue is answered `busy` to the asker.
pub const INBOUND_QUERIES: usize = 512;
/// Offences on the way to the event loop. A full queue drops, counted.
pub const OFFENCES: usize = 256;
/// Writes on the way to the disk. A full queue drops, counted.
pub const PERSIST_QUEUE: usize = 4096;

/// Lookups in the DHT at once.
pub const LOOKUPS: usize = 128;
/// Callers waiting for one lookup or one dial.
pub const WAITERS: usize = 1024;
/// A lookup answers its caller within this time.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Verified answers that end a lookup early.
pub const LOOKUP_ANSWERS: usize = 3;
/// A lookup with at least one verified answer waits no longer than this for a newer one.
pub const LOOKUP_GRACE: Duration = Duration::from_millis(250);
/// Publishing answers its caller within this time.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15);
/// The own record is put again this often, and sooner after one that reached nobody.
pub const REPUBLISH: Duration = Duration::from_secs(10 * 60);
pub const REPUBLISH_SOON: Duration = Duration::from_secs(3);
/// Dialling a peer by its record's addresses answers within this time.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Any other command is answered within this time.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Records kept in the directory's cache, and for how long before the DHT is asked again.
pub const DIRECTORY: usize = 4096;
pub const DIRECTORY_FRESH: Duration = Duration::from_secs(120);

/// Peers in the address book and addresses of each.
pub const BOOK_PEERS: usize = 512;
pub const BOOK_ADDRESSES: usize = 8;
/// Dials from the book at once, and how many more are begun on each tick whatever those before do.
pub const BOOK_DIALS: usize = 16;
pub const BOOK_DIALS_A_TICK: usize = 4;
/// With fewer connections than this, known peers are dialled again.
pub const FEW_PEERS: usize = 3;
/// Pause between rounds of dialling known peers: doubles from the first to the last.
pub const REDIAL_FIRST: Duration = Duration::from_secs(1);
pub const REDIAL_LAST: Duration = Duration::from_secs(60);

/// The event loop looks at its timers this often.
pub const TICK: Duration = Duration::from_millis(250);
/// A peer without any stream is let go after this time.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(600);
/// Setting up a connection, security and multiplexing included.
pub const CONNECTION_SETUP: Duration = Duration::from_secs(10);
/// Graceful shutdown closes connections within this time.
pub const CLOSE: Duration = Duration::from_secs(2);

/// Outbound query streams at once on one connection. Twice this (both ways) and the other protocols stay
/// below [`MUXED_STREAMS`], beyond which Yamux would end the connection.
pub const STREAMS_OUT: usize = 512;
/// Streams of one Yamux connection.
pub const MUXED_STREAMS: usize = 1280;
/// Memory that the receive windows of one Yamux connection may grow by, beyond 256 KiB a stream.
pub const MUXED_WINDOW_GROWTH: usize = 32 * 1024 * 1024;
/// Inbound streams that are still negotiating on one connection: Yamux lets an honest peer have no more.
pub const NEGOTIATING_STREAMS: usize = 256;
/// Time to agree on a protocol on an inbound stream.
pub const NEGOTIATION: Duration = Duration::from_secs(20);
/// Time for an outbound stream to begin; a query's own deadlines are shorter as a rule.
pub const STREAM_BEGINS: Duration = Duration::from_secs(60);
/// The open frame of a query is there within this time.
pub const OPEN_FRAME: Duration = Duration::from_secs(10);
/// The pieces of a request's body follow each other within this time.
pub const BODY_IDLE: Duration = Duration::from_secs(15);
/// The validator takes what is written to it within this time, unless its idle deadline is longer.
pub const WRITE_IDLE: Duration = Duration::from_secs(15);
/// Query ids remembered against replay.
pub const REPLAY_IDS: usize = 256 * 1024;

/// Peers with penalties, and when those are forgotten.
pub const PENALISED_PEERS: usize = 4096;
/// Relays with which reservations are kept.
pub const RELAYS: usize = 2;
/// Relays known as candidates.
pub const RELAY_CANDIDATES: usize = 64;
