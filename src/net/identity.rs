//! The node's own libp2p identity, an ed25519 key. Hotkeys are something else: records bind the two.

use libp2p::{PeerId, identity::Keypair};

use super::NetError;

/// A node key. Never printed; written to a file by the node alone (0600).
#[derive(Clone)]
pub struct NodeKey(Keypair);

impl NodeKey {
    pub fn generate() -> Self {
        Self(Keypair::generate_ed25519())
    }

    /// From the form of [`NodeKey::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NetError> {
        Keypair::from_protobuf_encoding(bytes).map(Self).map_err(|e| NetError::NodeKey(e.to_string()))
    }

    /// libp2p's protobuf encoding, secret included.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_protobuf_encoding().expect("an ed25519 key has an encoding")
    }

    pub fn peer(&self) -> PeerId {
        self.0.public().to_peer_id()
    }

    pub(super) fn keypair(&self) -> &Keypair {
        &self.0
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({})", self.peer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_bytes_and_is_not_printed() {
        let key = NodeKey::generate();
        let again = NodeKey::from_bytes(&key.to_bytes()).unwrap();
        assert_eq!(key.peer(), again.peer());
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.peer()));
        assert_eq!(NodeKey::from_bytes(b"garbage").unwrap_err().reason(), "node_key");
    }
}
