//! Queries between two whole nodes.

use argus_protocols::{Reason, Rejection};
use tokio::time::timeout;

use super::*;
use crate::net::{Deadline, QueryError, QueryProgress, TransportKind};

async fn echo_over(listen: &str, kind: TransportKind) {
    let (mut miner, validator) = miner_and_validator(listen).await;
    miner.echo();
    for size in [1, 1024, 8 * 1024, 300_000, 16 * 1024 * 1024] {
        let body: Bytes = vec![size as u8; size].into();
        let mut seen = Vec::new();
        let query = validator.query(&miner, body.clone());
        let answered = validator.handle.query(query, |progress| seen.push(progress)).await.unwrap();
        assert_eq!(answered.body, body);
        assert_eq!(answered.header.compute_ms, 7);
        assert_eq!(answered.receipt.miner, miner.hotkey.hotkey());
        assert_eq!(answered.receipt.validator, validator.hotkey.hotkey());
        assert!(answered.first_byte <= answered.total);
        let steps = [1, 2, 3].map(|step| QueryProgress::Step { step, of: 3 });
        assert_eq!(seen[0], QueryProgress::Accepted { queue_position: 0 });
        assert_eq!(seen[1..], steps);
    }
    let snapshot = validator.handle.snapshot().await.unwrap();
    assert_eq!(snapshot.peers[0].transport, kind);
}

#[tokio::test]
async fn over_memory() {
    echo_over("/memory/0", TransportKind::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp() {
    echo_over("/ip4/127.0.0.1/tcp/0", TransportKind::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic() {
    echo_over("/ip4/127.0.0.1/udp/0/quic-v1", TransportKind::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_all_come_back() {
    let (mut miner, validator) = miner_and_validator("/ip4/127.0.0.1/tcp/0").await;
    miner.echo();
    let body = picture(64 * 1024);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (handle, query) = (validator.handle.clone(), validator.query(&miner, body.clone()));
        asked.spawn(async move { handle.query(query, |_| {}).await });
    }
    while let Some(answered) = asked.join_next().await {
        assert_eq!(answered.unwrap().unwrap().body, body);
    }
    let idle = |snapshot: &Snapshot| snapshot.streams == Default::default();
    miner.until("all streams are closed", idle).await;
    validator.until("all streams are closed", idle).await;
}

#[tokio::test]
async fn a_rejection_reaches_the_asker_also_before_its_body_was_read() {
    let (mut miner, validator) = miner_and_validator("/memory/0").await;
    let query = validator.query(&miner, vec![1; 8 * 1024 * 1024]);
    let asking = validator.handle.query(query, |_| {});
    let rejecting = async {
        let query = miner.queries.recv().await.unwrap();
        assert_eq!(query.open().body_length, 8 * 1024 * 1024);
        query.reject(Rejection::busy(1234)).await;
    };
    let (answer, ()) = tokio::join!(asking, rejecting);
    match answer {
        Err(QueryError::Rejected(rejection)) => assert_eq!(rejection, Rejection::busy(1234)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dropping_the_query_cancels_the_work() {
    let (mut miner, validator) = miner_and_validator("/memory/0").await;
    let asking = tokio::spawn({
        let (handle, query) = (validator.handle.clone(), validator.query(&miner, &b"draw"[..]));
        async move { handle.query(query, |_| {}).await }
    });
    let mut query = miner.queries.recv().await.unwrap();
    query.body().await.unwrap();
    query.accept(0).await.unwrap();
    let early = timeout(Duration::from_millis(50), query.closed()).await;
    assert!(early.is_err(), "the validator is still there");
    asking.abort();
    timeout(PATIENCE, query.closed()).await.unwrap();
    assert_eq!(miner.counter("argus_net_offences_total"), 0);
}

#[tokio::test]
async fn each_deadline_has_its_own_end() {
    let (mut miner, validator) = miner_and_validator("/memory/0").await;
    let deadlines = |first_byte_ms, idle_ms, total_ms| Deadlines { first_byte_ms, idle_ms, total_ms };
    let long = 60_000;
    let cases = [
        (deadlines(300, long, long), Deadline::FirstByte, 0),
        (deadlines(long, 300, long), Deadline::Idle, 1),
        (deadlines(long, long, 1_000), Deadline::Total, 1),
    ];
    validator.handle.lookup(&miner.hotkey.hotkey()).await.unwrap();
    for (deadlines, expected, accepts) in cases {
        let mut query = validator.query(&miner, &b"slow"[..]);
        query.deadlines = deadlines;
        let asking = validator.handle.query(query, |_| {});
        let answering = async {
            let mut query = miner.queries.recv().await.unwrap();
            query.body().await.unwrap();
            for _ in 0..accepts {
                query.accept(0).await.unwrap();
            }
            query.closed().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = asking => match answer {
                Err(QueryError::TimedOut(deadline)) => assert_eq!(deadline, expected),
                other => panic!("{expected}: {other:?}"),
            },
            () = answering => unreachable!(),
        }
    }
}

#[tokio::test]
async fn a_miner_that_takes_nothing_is_busy() {
    let (mut miner, validator) = miner_and_validator("/memory/0").await;
    // Nobody takes queries: closed for ever.
    miner.queries.close();
    while miner.queries.try_recv().is_ok() {}
    let answer = validator.handle.query(validator.query(&miner, &b"x"[..]), |_| {}).await;
    assert_eq!(answer.unwrap_err().reason(), Reason::Busy);
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_sent() {
    let (miner, validator) = miner_and_validator("/memory/0").await;
    let mut query = validator.query(&miner, &b"x"[..]);
    query.model = "m".repeat(100);
    let answer = validator.handle.query(query, |_| {}).await;
    assert_eq!(answer.unwrap_err().label(), "not_sent");
    let own = validator.query(&validator, &b"x"[..]);
    let record = validator.record(unix_ms()).await;
    validator.handle.publish(record).await.unwrap();
    let answer = validator.handle.query(own, |_| {}).await;
    assert_eq!(answer.unwrap_err().reason(), Reason::Invalid);
}

#[tokio::test]
async fn a_peer_has_only_so_many_streams() {
    let mut recipe = Recipe::memory();
    recipe.settings.limits.inbound_queries_per_peer = 2;
    let mut miner = recipe.start().await;
    let validator = Recipe::memory().joins(&miner).start().await;
    miner.until_routed().await;
    miner.handle.publish(miner.record(unix_ms()).await).await.unwrap();
    let mut asked = tokio::task::JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        let (handle, query) = (validator.handle.clone(), validator.query(&miner, &b"x"[..]));
        asked.spawn(async move { handle.query(query, |_| {}).await });
        held.push(miner.queries.recv().await.unwrap());
    }
    let third = validator.handle.query(validator.query(&miner, &b"x"[..]), |_| {}).await;
    assert_eq!(third.unwrap_err().reason(), Reason::Busy);
    assert_eq!(miner.counter(r#"argus_net_offences_total{kind="too_many_streams"}"#), 1);
    for query in held {
        query.reject(Rejection::new(Reason::Failed)).await;
    }
    while let Some(answer) = asked.join_next().await {
        assert_eq!(answer.unwrap().unwrap_err().reason(), Reason::Failed);
    }
}
