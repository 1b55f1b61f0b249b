//! Gossipsub as this network uses it: every message signed and strictly checked, validated by the
//! application before it is passed on, peers scored. Topics come with the parts that gossip.

use std::time::Duration;

use libp2p::{
    gossipsub::{
        self, AllowAllSubscriptionFilter, IdentityTransform, MaxCountSubscriptionFilter, MessageAuthenticity,
        MessageId, PeerScoreParams, PeerScoreThresholds, ValidationMode,
    },
    identity::Keypair,
};

use super::NetError;

/// Gossip carries digests and evidence, never pictures.
const MESSAGE: usize = 64 * 1024;
/// Topics a peer may subscribe to.
const TOPICS: usize = 64;

pub(super) type Behaviour =
    gossipsub::Behaviour<IdentityTransform, MaxCountSubscriptionFilter<AllowAllSubscriptionFilter>>;

pub(super) fn behaviour(key: &Keypair) -> Result<Behaviour, NetError> {
    let fail = |text: String| NetError::Transport(format!("gossip cannot be set up: {text}"));
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix("/argus/gossip/1")
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        // By content: the same words by two senders are two messages, repeated words of one are one.
        .message_id_fn(|message| {
            let mut hasher = blake3::Hasher::new();
            if let Some(source) = &message.source {
                hasher.update(&source.to_bytes());
            }
            hasher.update(message.topic.as_str().as_bytes());
            hasher.update(&message.data);
            MessageId::new(&hasher.finalize().as_bytes()[..20])
        })
        .max_transmit_size(MESSAGE)
        .max_publish_messages(64)
        .connection_handler_queue_len(1024)
        .heartbeat_interval(Duration::from_secs(1))
        .duplicate_cache_time(Duration::from_secs(120))
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let filter = MaxCountSubscriptionFilter {
        filter: AllowAllSubscriptionFilter {},
        max_subscribed_topics: TOPICS,
        max_subscriptions_per_request: 2 * TOPICS,
    };
    let authenticity = MessageAuthenticity::Signed(key.clone());
    let mut behaviour = gossipsub::Behaviour::new_with_subscription_filter(authenticity, config, filter)
        .map_err(|e| fail(e.to_string()))?;
    behaviour.with_peer_score(scoring(), thresholds()).map_err(fail)?;
    Ok(behaviour)
}

fn scoring() -> PeerScoreParams {
    PeerScoreParams {
        // The application's score is minus a peer's penalty points.
        app_specific_weight: 1.0,
        // Whole networks run on one machine; elsewhere ten nodes behind one address are enough.
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_threshold: 10.0,
        ip_colocation_factor_whitelist: ["127.0.0.1", "::1"]
            .iter()
            .map(|ip| ip.parse().expect("a constant address parses"))
            .collect(),
        behaviour_penalty_weight: -10.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: gossipsub::score_parameter_decay(Duration::from_secs(600)),
        ..PeerScoreParams::default()
    }
}

/// In penalty points: gossip stops before the peer is blocked altogether.
fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: -20.0,
        publish_threshold: -40.0,
        graylist_threshold: -80.0,
        accept_px_threshold: 10.0,
        opportunistic_graft_threshold: 5.0,
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        gossipsub::{Event, IdentTopic, MessageAcceptance},
        swarm::SwarmEvent,
    };
    use libp2p_swarm_test::SwarmExt;

    use super::*;

    fn swarm() -> libp2p::Swarm<Behaviour> {
        libp2p::Swarm::new_ephemeral_tokio(|key| behaviour(&key).unwrap())
    }

    #[tokio::test]
    async fn messages_travel_signed_and_bad_peers_are_scored_down() {
        let (mut alice, mut bob) = (swarm(), swarm());
        let topic = IdentTopic::new("test");
        alice.behaviour_mut().subscribe(&topic).unwrap();
        bob.behaviour_mut().subscribe(&topic).unwrap();
        bob.listen().with_memory_addr_external().await;
        alice.connect(&mut bob).await;
        let alice_id = *alice.local_peer_id();
        let bob_id = *bob.local_peer_id();

        let sender = tokio::spawn(async move {
            loop {
                if let SwarmEvent::Behaviour(Event::Subscribed { .. }) = alice.next_swarm_event().await {
                    break;
                }
            }
            let hello = alice.behaviour_mut().publish(topic.clone(), b"hello".to_vec());
            assert!(hello.is_ok(), "{hello:?}");
            // An offence counted by the penalties is felt by gossip.
            assert!(alice.behaviour_mut().set_application_score(&bob_id, -100.0));
            assert!(alice.behaviour().peer_score(&bob_id).unwrap() <= -100.0);
            loop {
                alice.next_swarm_event().await;
            }
        });
        let message = loop {
            if let SwarmEvent::Behaviour(Event::Message { message, message_id, propagation_source }) =
                bob.next_swarm_event().await
            {
                bob.behaviour_mut().report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    MessageAcceptance::Accept,
                );
                break message;
            }
        };
        // Strict validation: only a signed message has a source.
        assert_eq!(message.source, Some(alice_id));
        assert_eq!(message.data, b"hello");
        sender.abort();
    }
}
