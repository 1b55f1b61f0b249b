//! The wall clock, for the edges of the node. Cores take times as arguments.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time, milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
