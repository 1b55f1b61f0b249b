//! Hostile streams, both ways: each is refused or ends, is counted, and the node lives on.

use argus_protocols::{
    HotkeyPair, Open, Reason, Rejection, ResultHeader, SignedOpen, SignedReceipt,
    codec::{self, FrameKind},
    limits as wire,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::Stream;
use tokio::time::timeout;

use super::InboundQuery;
use crate::net::{
    QueryError, StreamError,
    tests::{Node, PATIENCE, miner_and_validator},
    unix_ms,
};

/// Two nodes; the validator can open streams of its own making.
struct Arena {
    miner: Node,
    validator: Node,
}

impl Arena {
    async fn new() -> Self {
        let (miner, validator) = miner_and_validator("/memory/0").await;
        validator.until_connected(&miner).await;
        Self { miner, validator }
    }

    async fn stream(&self) -> Stream {
        let links = &self.validator.handle.0.asker.links;
        let opened = links.request(&self.miner.peer()).unwrap().await.unwrap();
        opened.stream
    }

    fn open(&self, body: &[u8]) -> Open {
        Open {
            id: argus_protocols::QueryId(rand::random()),
            netuid: 1,
            validator: self.validator.hotkey.hotkey(),
            miner: self.miner.hotkey.hotkey(),
            validator_peer: self.validator.peer().to_bytes(),
            miner_peer: self.miner.peer().to_bytes(),
            issued_at_ms: unix_ms(),
            deadlines: argus_protocols::query::Deadlines {
                first_byte_ms: 30_000,
                idle_ms: 30_000,
                total_ms: 60_000,
            },
            task: 1,
            model: "echo".into(),
            body_length: body.len() as u32,
            body_hash: *blake3::hash(body).as_bytes(),
        }
    }

    fn signed(&self, open: &Open) -> Vec<u8> {
        frame(FrameKind::Open, &SignedOpen::sign(open, &self.validator.hotkey).to_bytes())
    }

    /// Sends bytes on a stream of their own and waits for the refusal, if one comes.
    async fn send(&self, bytes: &[u8]) -> Option<Rejection> {
        let mut stream = self.stream().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        refusal(&mut stream).await
    }

    fn offences(&self, kind: &str) -> u64 {
        self.miner.counter(&format!("argus_net_offences_total{{kind=\"{kind}\"}}"))
    }

    async fn until_offence(&self, kind: &str) {
        self.miner.until_counted(&format!("argus_net_offences_total{{kind=\"{kind}\"}}")).await;
    }

    /// The miner still answers honest queries.
    async fn lives(&mut self) {
        let query = self.validator.query(&self.miner, &b"still there?"[..]);
        let asking = self.validator.handle.query(query, |_| {});
        let answering = async {
            let mut query = self.miner.queries.recv().await.unwrap();
            let body = query.body().await.unwrap();
            query.finish(body, 0).await.unwrap();
        };
        let (answer, ()) = tokio::join!(asking, answering);
        assert_eq!(&answer.unwrap().body[..], b"still there?");
    }
}

fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    raw_frame(kind as u8, payload.len() as u32, payload)
}

fn raw_frame(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

async fn refusal(stream: &mut Stream) -> Option<Rejection> {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.take(64).read_to_end(&mut bytes)).await.unwrap();
    if bytes.is_empty() {
        return None;
    }
    assert_eq!(bytes.len(), 10, "a refusal has a constant size");
    assert_eq!(bytes[0], FrameKind::Rejected as u8);
    Some(Rejection::from_bytes(&bytes[5..]).unwrap())
}

#[tokio::test]
async fn nonsense_in_place_of_an_open_frame_is_refused_and_counted() {
    let mut arena = Arena::new().await;
    let cases = [
        (raw_frame(1, u32::MAX, b""), "oversized"),
        (raw_frame(99, 4, b"oops"), "bad_frame"),
        (frame(FrameKind::Progress, b"oops"), "bad_frame"),
    ];
    for (number, (bytes, offence)) in cases.iter().enumerate() {
        let refusal = arena.send(bytes).await;
        assert_eq!(refusal.map(|r| r.reason), Some(Reason::Invalid), "case {number}");
        arena.until_offence(offence).await;
    }
    arena.lives().await;
}

#[tokio::test]
async fn garbage_is_refused_and_truncation_counted() {
    let mut arena = Arena::new().await;
    let refusal = arena.send(&frame(FrameKind::Open, b"not an open frame at all")).await;
    assert_eq!(refusal.unwrap().reason, Reason::Invalid);
    assert_eq!(arena.offences("bad_frame"), 1);
    let whole = arena.signed(&arena.open(b"x"));
    let mut stream = arena.stream().await;
    stream.write_all(&whole[..whole.len() / 2]).await.unwrap();
    stream.close().await.unwrap();
    assert_eq!(super::tests::refusal(&mut stream).await, None);
    assert_eq!(arena.miner.counter(r#"argus_net_queries_received_total{kind="truncated"}"#), 1);
    arena.lives().await;
}

#[tokio::test]
async fn signatures_and_connections_must_match() {
    let mut arena = Arena::new().await;
    let open = arena.open(b"x");
    let mut forged = SignedOpen::sign(&open, &arena.validator.hotkey);
    forged.signature.0[7] ^= 1;
    let refusal = arena.send(&frame(FrameKind::Open, &forged.to_bytes())).await;
    assert_eq!(refusal.unwrap().reason, Reason::Unauthorised);

    // Overheard from somebody else's connection.
    let mut foreign = arena.open(b"x");
    foreign.validator_peer = libp2p::PeerId::random().to_bytes();
    let refusal = arena.send(&arena.signed(&foreign)).await;
    assert_eq!(refusal.unwrap().reason, Reason::Unauthorised);
    assert_eq!(arena.offences("bad_signature"), 2);
    arena.lives().await;
}

#[tokio::test]
async fn an_open_frame_works_once_and_not_for_long() {
    let mut arena = Arena::new().await;
    let bytes = arena.signed(&arena.open(b"x"));
    let _first = {
        let mut stream = arena.stream().await;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let query = timeout(PATIENCE, arena.miner.queries.recv()).await.unwrap();
        (stream, query.unwrap())
    };
    let refusal = arena.send(&bytes).await;
    assert_eq!(refusal.unwrap().reason, Reason::Invalid);
    assert_eq!(arena.offences("replay"), 1);

    let mut stale = arena.open(b"x");
    stale.issued_at_ms -= 2 * wire::CLOCK_SKEW_MS;
    let refusal = arena.send(&arena.signed(&stale)).await;
    assert_eq!(refusal.unwrap().reason, Reason::Invalid);

    let mut elsewhere = arena.open(b"x");
    elsewhere.netuid = 2;
    let refusal = arena.send(&arena.signed(&elsewhere)).await;
    assert_eq!(refusal.unwrap().reason, Reason::Incapable);
    assert_eq!(arena.offences("bad_signature"), 0, "honest mistakes are no offence");
    arena.lives().await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_let_go() {
    let mut arena = Arena::new().await;
    let refusal = arena.send(&[1]).await;
    assert_eq!(refusal, None);
    assert_eq!(arena.offences("slow_loris"), 1);
    arena.lives().await;
}

#[tokio::test]
async fn bodies_must_be_what_was_announced() {
    let mut arena = Arena::new().await;
    let announced = [5u8; 100];
    let chunk = |bytes: &[u8]| frame(FrameKind::Chunk, bytes);
    let cases: [(Vec<u8>, bool, &str); 5] = [
        (chunk(&[6; 100]), false, "hash"),
        (chunk(&[5; 101]), false, "protocol"),
        (raw_frame(2, wire::CHUNK as u32 + 1, &[5; 10]), false, "protocol"),
        (raw_frame(2, 0, &[]), false, "protocol"),
        // Whoever closes in the middle may have changed its mind.
        (chunk(&[5; 99]), true, "closed"),
    ];
    for (body, close, reason) in cases {
        let mut stream = arena.stream().await;
        let mut bytes = arena.signed(&arena.open(&announced));
        bytes.extend_from_slice(&body);
        stream.write_all(&bytes).await.unwrap();
        if close {
            stream.close().await.unwrap();
        } else {
            stream.flush().await.unwrap();
        }
        let mut query = timeout(PATIENCE, arena.miner.queries.recv()).await.unwrap().unwrap();
        let error = timeout(PATIENCE, query.body()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        // Each alone is forgiven; together they would end in a block.
        arena.miner.until("counted", |_| true).await;
        if arena.offences("oversized") == 2 {
            arena = Arena::new().await;
        }
    }
    arena.lives().await;
}

#[tokio::test]
async fn talking_out_of_turn_ends_the_work() {
    let arena = &mut Arena::new().await;
    let mut stream = arena.stream().await;
    let mut bytes = arena.signed(&arena.open(b"x"));
    bytes.extend_from_slice(&frame(FrameKind::Chunk, b"x"));
    bytes.extend_from_slice(&frame(FrameKind::Chunk, b"and more"));
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut query = timeout(PATIENCE, arena.miner.queries.recv()).await.unwrap().unwrap();
    query.body().await.unwrap();
    timeout(PATIENCE, query.closed()).await.unwrap();
    assert_eq!(arena.offences("oversized"), 1);
}

/// What a dishonest miner does with a query.
async fn dishonest<F>(act: F) -> QueryError
where
    F: AsyncFnOnce(&mut InboundQuery),
{
    let mut arena = Arena::new().await;
    let query = arena.validator.query(&arena.miner, &b"x"[..]);
    let asking = arena.validator.handle.query(query, |_| {});
    let answering = async {
        let mut query = arena.miner.queries.recv().await.unwrap();
        query.body().await.unwrap();
        act(&mut query).await;
        let _ = query.frames.close().await;
        // Keeps the stream until the asker has made up its mind.
        query.closed().await;
    };
    let (answer, ()) = tokio::join!(asking, answering);
    let error = answer.unwrap_err();
    let counted = arena.validator.counter("argus_net_offences_total{kind=\"bad_receipt\"}")
        + arena.validator.counter("argus_net_offences_total{kind=\"wrong_hash\"}")
        + arena.validator.counter("argus_net_offences_total{kind=\"oversized\"}")
        + arena.validator.counter("argus_net_offences_total{kind=\"bad_frame\"}");
    assert_eq!(counted == 1, matches!(error, QueryError::Protocol(_)), "{error}");
    error
}

fn result(query: &mut InboundQuery, body: &[u8], hashed: &[u8]) -> [u8; 32] {
    let header = ResultHeader {
        body_length: hashed.len() as u32,
        body_hash: *blake3::hash(hashed).as_bytes(),
        compute_ms: 0,
    };
    query.frames.push(FrameKind::Result, &codec::encode(&header));
    query.frames.push(FrameKind::Chunk, body);
    header.body_hash
}

#[tokio::test]
async fn answers_must_have_their_hash_and_length() {
    let wrong = dishonest(async |query| {
        result(query, b"aaaa", b"bbbb");
    })
    .await;
    assert!(wrong.to_string().contains("hash"), "{wrong}");
    let long = dishonest(async |query| {
        result(query, b"aaaaa", b"bbbb");
    })
    .await;
    assert!(long.to_string().contains("longer"), "{long}");
    let short = dishonest(async |query| {
        result(query, b"aaa", b"bbbb");
    })
    .await;
    assert!(matches!(short, QueryError::Closed), "{short}");
}

#[tokio::test]
async fn receipts_must_hold() {
    let forged = dishonest(async |query| {
        let hash = result(query, b"aaaa", b"aaaa");
        let receipt = query.receipt(hash);
        let mut signed = SignedReceipt::sign(&receipt, &query.hotkey);
        signed.signature.0[3] ^= 1;
        query.frames.push(FrameKind::Receipt, &signed.to_bytes());
    })
    .await;
    assert!(forged.to_string().contains("receipt"), "{forged}");
    let foreign = dishonest(async |query| {
        let hash = result(query, b"aaaa", b"aaaa");
        let stranger = HotkeyPair::generate();
        let mut receipt = query.receipt(hash);
        receipt.miner = stranger.hotkey();
        let signed = SignedReceipt::sign(&receipt, &stranger);
        query.frames.push(FrameKind::Receipt, &signed.to_bytes());
    })
    .await;
    assert!(foreign.to_string().contains("receipt"), "{foreign}");
    let of_another_answer = dishonest(async |query| {
        result(query, b"aaaa", b"aaaa");
        let signed = SignedReceipt::sign(&query.receipt([0; 32]), &query.hotkey);
        query.frames.push(FrameKind::Receipt, &signed.to_bytes());
    })
    .await;
    assert!(of_another_answer.to_string().contains("response"), "{of_another_answer}");
}

#[tokio::test]
async fn frames_must_come_in_order_and_the_end_must_come() {
    let early = dishonest(async |query| {
        let signed = SignedReceipt::sign(&query.receipt([0; 32]), &query.hotkey);
        query.frames.push(FrameKind::Receipt, &signed.to_bytes());
    })
    .await;
    assert!(early.to_string().contains("out of place"), "{early}");
    let nothing = dishonest(async |_| {}).await;
    assert!(matches!(nothing, QueryError::Closed), "{nothing}");
    let nonsense = dishonest(async |query| query.frames.push(FrameKind::Progress, b"nonsense")).await;
    assert!(nonsense.to_string().contains("undecodable"), "{nonsense}");
}

#[tokio::test]
async fn an_empty_or_huge_answer_is_not_sent() {
    let mut arena = Arena::new().await;
    let query = arena.validator.query(&arena.miner, &b"x"[..]);
    let asking = arena.validator.handle.query(query, |_| {});
    let answering = async {
        let mut query = arena.miner.queries.recv().await.unwrap();
        query.body().await.unwrap();
        query.finish(vec![0; wire::BODY + 1].into(), 0).await
    };
    let (answer, sent) = tokio::join!(asking, answering);
    assert_eq!(sent.unwrap_err(), StreamError::Size(wire::BODY + 1));
    assert_eq!(answer.unwrap_err().reason(), Reason::Failed);
}
