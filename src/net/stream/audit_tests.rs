//! Challenges and openings over real streams: as they should be, and as neither side may do.

use argus_protocols::{
    Challenge, Commitment, Opening, Reason, Rejection,
    codec::{self, FrameKind},
    merkle,
    trajectory::OpenedState,
};

use super::{Auditor, Committed};
use crate::net::{
    Answered, QueryError, StreamError,
    tests::{Node, miner_and_validator},
};

const STATES: u32 = 6;

fn state(index: u32) -> Vec<u8> {
    // More than one chunk.
    vec![index as u8; 300 * 1024]
}

fn leaves() -> Vec<merkle::Hash> {
    (0..STATES).map(|index| merkle::leaf(index, &state(index))).collect()
}

fn opening(challenge: &Challenge) -> Opening {
    let leaves = leaves();
    let open = |index: &u32| OpenedState {
        index: *index,
        state: state(*index),
        path: merkle::path(&leaves, *index as usize).unwrap(),
    };
    Opening { states: challenge.states.iter().map(open).collect() }
}

struct Answering {
    miner: Node,
    validator: Node,
}

impl Answering {
    async fn new() -> Self {
        let (miner, validator) = miner_and_validator("/memory/0").await;
        validator.until_connected(&miner).await;
        Self { miner, validator }
    }

    /// An answer with a commitment: the validator's end of its stream, and the miner's.
    async fn answered(&mut self) -> (Answered, Auditor, Committed) {
        let query = self.validator.query(&self.miner, &b"x"[..]);
        let asking = self.validator.handle.query_to_audit(query, |_| {});
        let answering = async {
            let mut query = self.miner.queries.recv().await.unwrap();
            let body = query.body().await.unwrap();
            query.finish_committed(body, 0, Commitment::of(&leaves()).unwrap()).await.unwrap()
        };
        let (asked, committed) = tokio::join!(asking, answering);
        let (answered, auditor) = asked.unwrap();
        (answered, auditor.unwrap(), committed)
    }

    fn offences(&self, of: &Node) -> u64 {
        let kinds = ["bad_frame", "oversized", "wrong_hash"];
        kinds.iter().map(|kind| of.counter(&format!("argus_net_offences_total{{kind=\"{kind}\"}}"))).sum()
    }
}

#[tokio::test]
async fn what_the_receipt_commits_to_is_opened_on_its_own_stream() {
    let mut answering = Answering::new().await;
    let (answered, auditor, committed) = answering.answered().await;
    let commitment = answered.receipt.trajectory.unwrap();
    assert_eq!(commitment, Commitment::of(&leaves()).unwrap());
    let challenge = Challenge::of_steps(&[1, 3], &commitment);
    let opening = async {
        let (asked, committed) = committed.challenge().await.unwrap().unwrap();
        committed.open(opening(&asked).to_bytes().into()).await.unwrap();
    };
    let (opened, ()) = tokio::join!(auditor.challenge(&challenge), opening);
    let states = opened.unwrap().verify(&challenge, &commitment).unwrap();
    assert!(states.iter().all(|(index, bytes)| *bytes == state(*index)));
    assert_eq!(states.len(), challenge.states.len());
}

#[tokio::test]
async fn a_validator_that_wants_nothing_lets_the_miner_go_at_once() {
    let mut answering = Answering::new().await;
    let (_, auditor, committed) = answering.answered().await;
    let begun = tokio::time::Instant::now();
    drop(auditor);
    assert!(committed.challenge().await.unwrap().is_none());
    assert!(begun.elapsed() < super::audit::CHALLENGE, "it waited to the end");
    // An answer without a commitment leaves nothing open.
    let query = answering.validator.query(&answering.miner, &b"x"[..]);
    let asking = answering.validator.handle.query_to_audit(query, |_| {});
    let plain = async {
        let mut query = answering.miner.queries.recv().await.unwrap();
        let body = query.body().await.unwrap();
        query.finish(body, 0).await.unwrap();
    };
    let (asked, ()) = tokio::join!(asking, plain);
    let (answered, auditor) = asked.unwrap();
    assert!(answered.receipt.trajectory.is_none() && auditor.is_none());
}

#[tokio::test]
async fn what_is_no_challenge_is_refused_and_counted() {
    let bad_state = codec::encode(&Challenge { states: vec![0, STATES] });
    let falling = codec::encode(&Challenge { states: vec![2, 1] });
    let cases: [(FrameKind, Vec<u8>, bool); 5] = [
        (FrameKind::Challenge, bad_state, true),
        (FrameKind::Challenge, falling, true),
        (FrameKind::Challenge, b"nonsense".to_vec(), true),
        (FrameKind::Chunk, vec![0; 100], false),
        (FrameKind::Accepted, vec![0], false),
    ];
    let mut answering = Answering::new().await;
    for (number, (kind, payload, is_told)) in cases.into_iter().enumerate() {
        let (_, mut auditor, committed) = answering.answered().await;
        let before = answering.offences(&answering.miner);
        auditor.frames.push(kind, &payload);
        auditor.frames.flush().await.unwrap();
        let refused = committed.challenge().await.map(|found| found.is_some()).unwrap_err();
        assert!(matches!(refused, StreamError::Protocol(_)), "case {number}: {refused}");
        let answer = auditor.frames.frame().await;
        let rejection = answer.ok().and_then(|(_, payload)| Rejection::from_bytes(&payload).ok());
        assert_eq!(rejection.map(|r| r.reason), is_told.then_some(Reason::Invalid), "case {number}");
        assert_eq!(answering.offences(&answering.miner), before + 1, "case {number}");
        if number == 2 {
            answering = Answering::new().await;
        }
    }
}

/// The same challenge twice on one stream: the second one finds nobody.
#[tokio::test]
async fn a_replayed_challenge_is_not_answered() {
    let mut answering = Answering::new().await;
    let (_, mut auditor, committed) = answering.answered().await;
    let challenge = Challenge { states: vec![0, 1] };
    for _ in 0..2 {
        auditor.frames.push(FrameKind::Challenge, &codec::encode(&challenge));
    }
    auditor.frames.flush().await.unwrap();
    let (asked, committed) = committed.challenge().await.unwrap().unwrap();
    let small = Opening { states: Vec::new() };
    let _ = committed.open(small.to_bytes().into()).await;
    assert_eq!(asked, challenge);
    let mut openings = 0;
    while let Ok((kind, _)) = auditor.frames.frame().await {
        openings += usize::from(kind == FrameKind::Opening);
    }
    assert!(openings <= 1);
}

#[tokio::test]
async fn a_miner_that_refuses_lies_or_goes_away_is_told_apart() {
    let mut answering = Answering::new().await;
    let challenge = Challenge { states: vec![0, 1] };

    let (_, auditor, committed) = answering.answered().await;
    let refusing = async {
        let (_, committed) = committed.challenge().await.unwrap().unwrap();
        committed.refuse(Rejection::new(Reason::Failed)).await;
    };
    let (opened, ()) = tokio::join!(auditor.challenge(&challenge), refusing);
    assert!(matches!(opened, Err(QueryError::Rejected(r)) if r.reason == Reason::Failed));

    let (_, auditor, committed) = answering.answered().await;
    let leaving = async { drop(committed.challenge().await.unwrap()) };
    let (opened, ()) = tokio::join!(auditor.challenge(&challenge), leaving);
    assert!(matches!(opened, Err(QueryError::Closed)));

    // Nonsense, and more than it announced: both count against it.
    let (_, auditor, committed) = answering.answered().await;
    let raving = async {
        let (_, committed) = committed.challenge().await.unwrap().unwrap();
        committed.open(b"nonsense"[..].into()).await.unwrap();
    };
    let (opened, ()) = tokio::join!(auditor.challenge(&challenge), raving);
    assert!(matches!(opened, Err(QueryError::Protocol(_))));
    let (_, auditor, committed) = answering.answered().await;
    let flooding = async {
        let (_, mut committed) = committed.challenge().await.unwrap().unwrap();
        let frames = &mut committed.query.frames;
        let header = argus_protocols::trajectory::OpeningHeader { body_length: 3, body_hash: [0; 32] };
        frames.push(FrameKind::Opening, &codec::encode(&header));
        frames.push(FrameKind::Chunk, &[0; 100]);
        frames.flush().await.unwrap();
        committed.query.closed().await;
    };
    let (opened, ()) = tokio::join!(auditor.challenge(&challenge), flooding);
    assert!(matches!(opened, Err(QueryError::Protocol(_))));
    assert_eq!(answering.offences(&answering.validator), 2);
}
