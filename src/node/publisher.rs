//! Keeps this node's hotkey record true: a new one whenever an address or a capability changes, and well
//! before the old one expires.

use std::{sync::Arc, time::Duration};

use argus_protocols::{Capability, HotkeyPair, Multiaddr, Record, Role, SignedRecord, limits};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{clock::unix_ms, net};

/// Records live this long; they are renewed at half of it.
const LIFETIME: Duration = Duration::from_secs(6 * 60 * 60);
/// Address changes come in bursts (each listener, each observed address): wait for the burst to end.
const SETTLE: Duration = Duration::from_millis(300);
/// After a failure to publish (nobody in the DHT yet).
const RETRY: Duration = Duration::from_secs(5);

/// What the record says besides who signs it.
pub struct Publisher {
    pub handle: net::Handle,
    pub pair: Arc<HotkeyPair>,
    pub role: Role,
    pub netuid: u16,
    pub addresses: watch::Receiver<Vec<Multiaddr>>,
    pub capabilities: watch::Receiver<Vec<Capability>>,
}

impl Publisher {
    /// Publishes until shutdown, or until the node's other parts are gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let wait = match self.publish().await {
                Ok(()) => LIFETIME / 2,
                Err(error) => {
                    tracing::debug!(%error, "the hotkey record is not published yet");
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                Ok(()) = self.addresses.changed() => tokio::time::sleep(SETTLE).await,
                Ok(()) = self.capabilities.changed() => {}
                else => return,
            }
        }
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        let mut addresses = self.addresses.borrow_and_update().clone();
        let capabilities = self.capabilities.borrow_and_update().clone();
        addresses.truncate(limits::RECORD_ADDRESSES);
        anyhow::ensure!(!addresses.is_empty(), "no address that others could reach");
        let now = unix_ms();
        let record = Record {
            hotkey: self.pair.hotkey(),
            peer: self.handle.peer(),
            addresses,
            role: self.role,
            netuid: self.netuid,
            capabilities,
            sequence: now,
            expires_at_ms: now + LIFETIME.as_millis() as u64,
        };
        let signed = SignedRecord::sign(&record, &self.pair)?;
        self.handle.publish(signed).await?;
        tracing::info!(
            addresses = record.addresses.len(),
            models = record.capabilities.len(),
            "published the hotkey record"
        );
        Ok(())
    }
}
