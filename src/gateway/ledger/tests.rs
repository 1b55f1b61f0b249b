use super::*;

const DEFAULTS: Defaults = Defaults { requests_per_minute: 60, concurrent: 4 };

fn ledger() -> (tempfile::TempDir, Arc<Ledger>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = reopen(&dir);
    (dir, ledger)
}

fn reopen(dir: &tempfile::TempDir) -> Arc<Ledger> {
    Arc::new(Ledger::open(Store::open(dir.path()).unwrap(), DEFAULTS).unwrap())
}

fn with_credits(credits: u64) -> NewKey {
    NewKey { credits: Some(Credits(credits)), rate: Some(limits::RATE), ..NewKey::named("test") }
}

#[test]
fn a_key_opens_until_it_is_revoked() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(NewKey::named("one")).unwrap();
    assert_eq!(ledger.holder(&made.key).unwrap().id, made.view.id);
    let mut almost = made.key.clone();
    almost.pop();
    assert_eq!(ledger.holder(&almost).unwrap_err(), Refusal::UnknownKey);
    assert_eq!(ledger.holder("").unwrap_err(), Refusal::UnknownKey);
    ledger.revoke(&made.view.id).unwrap();
    assert_eq!(ledger.holder(&made.key).unwrap_err(), Refusal::Revoked);
    assert!(matches!(
        ledger.change(&made.view.id, KeyChange { unlimited: true, ..KeyChange::default() }),
        Err(LedgerError::Revoked(_))
    ));
    ledger.forget(&made.view.id).unwrap();
    assert_eq!(ledger.holder(&made.key).unwrap_err(), Refusal::UnknownKey);
    assert!(matches!(ledger.get(&made.view.id), Err(LedgerError::NotFound(_))));
}

#[test]
fn the_store_has_no_key_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let ledger = Ledger::open(store.clone(), DEFAULTS).unwrap();
    let made = ledger.create(NewKey::named("one")).unwrap();
    for (key, value) in store.scan(Table::Keys, &[], 10).unwrap() {
        for bytes in [key, value] {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.contains(&made.key[6..]));
            assert!(!hex::encode(&bytes).contains(&made.key[6..]));
        }
    }
}

#[test]
fn keys_credits_and_usage_survive_a_restart() {
    let (dir, ledger) = ledger();
    let made = ledger.create(with_credits(5_000)).unwrap();
    let gone = ledger.create(NewKey::named("gone")).unwrap();
    ledger.revoke(&gone.view.id).unwrap();
    let reservation = ledger.admit(&made.key, Instant::now()).unwrap().reserve(4_000).unwrap();
    reservation.charge(Sold::Image, 1, 1_000);
    reservation.charge(Sold::Embedding, 2, 400);
    drop(reservation);
    drop(ledger);
    let ledger = reopen(&dir);
    let view = ledger.holder(&made.key).unwrap();
    assert_eq!(view.credits_left, Some(Credits(3_600)));
    assert_eq!((view.usage.requests, view.usage.images, view.usage.embeddings), (1, 1, 2));
    assert!(view.usage.last_used_ms.is_some());
    assert_eq!(ledger.holder(&gone.key).unwrap_err(), Refusal::Revoked);
}

#[test]
fn a_damaged_key_does_not_close_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let made = Ledger::open(store.clone(), DEFAULTS).unwrap().create(NewKey::named("one")).unwrap();
    store.put(Table::Keys, &[7; 32], b"{", Durability::Synced).unwrap();
    store.put(Table::Keys, b"short", b"{}", Durability::Synced).unwrap();
    let ledger = Ledger::open(store, DEFAULTS).unwrap();
    assert_eq!(ledger.list().len(), 1);
    ledger.holder(&made.key).unwrap();
}

#[test]
fn what_is_not_charged_goes_back() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(with_credits(3_000)).unwrap();
    let now = Instant::now();
    let first = ledger.admit(&made.key, now).unwrap().reserve(2_000).unwrap();
    let Err(Refusal::Credits { needed, left }) = ledger.admit(&made.key, now).unwrap().reserve(2_000) else {
        panic!("3 credits are not enough for twice 2")
    };
    assert_eq!((needed, left), (Credits(2_000), Credits(1_000)));
    drop(first);
    assert_eq!(ledger.holder(&made.key).unwrap().credits_left, Some(Credits(3_000)));
    assert_eq!(ledger.holder(&made.key).unwrap().usage.spent_thousandths, 0);
}

#[test]
fn a_reservation_never_pays_more_than_was_put_aside() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(with_credits(1_000)).unwrap();
    let reservation = ledger.admit(&made.key, Instant::now()).unwrap().reserve(1_000).unwrap();
    reservation.charge(Sold::Image, 1, 1_000);
    reservation.charge(Sold::Image, 1, 1_000);
    drop(reservation);
    let view = ledger.holder(&made.key).unwrap();
    assert_eq!((view.credits_left, view.usage.spent_thousandths), (Some(Credits(0)), 1_000));
}

#[test]
fn threads_side_by_side_cannot_overspend() {
    let (_dir, ledger) = ledger();
    let new = NewKey { concurrent: Some(100), ..with_credits(10_000) };
    let made = ledger.create(new).unwrap();
    let paid = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let Ok(admission) = ledger.admit(&made.key, Instant::now()) else {
                        continue;
                    };
                    let Ok(reservation) = admission.reserve(1_000) else {
                        continue;
                    };
                    reservation.charge(Sold::Image, 1, 1_000);
                    paid.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(paid.into_inner(), 10);
    let view = ledger.holder(&made.key).unwrap();
    assert_eq!(view.credits_left, Some(Credits(0)));
    assert_eq!(view.usage.images, 10);
}

#[test]
fn the_rate_is_a_bucket_that_fills_evenly() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(NewKey { rate: Some(6), ..NewKey::named("six a minute") }).unwrap();
    let start = Instant::now();
    for _ in 0..6 {
        ledger.admit(&made.key, start).unwrap();
    }
    let Err(Refusal::Rate { per_minute, retry_after }) = ledger.admit(&made.key, start) else {
        panic!("the seventh is too many")
    };
    assert_eq!(per_minute, 6);
    assert!(retry_after > Duration::from_secs(9) && retry_after <= Duration::from_secs(10));
    assert!(ledger.admit(&made.key, start + Duration::from_secs(9)).is_err());
    ledger.admit(&made.key, start + Duration::from_millis(10_100)).unwrap();
    assert!(ledger.admit(&made.key, start + Duration::from_millis(10_200)).is_err());
    // A clock that jumps back gives nothing away.
    assert!(ledger.admit(&made.key, start).is_err());
    assert_eq!(ledger.holder(&made.key).unwrap().usage.refused, 4);
}

#[test]
fn requests_at_once_are_counted_until_they_end() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(NewKey { concurrent: Some(2), ..NewKey::named("two") }).unwrap();
    let now = Instant::now();
    let (first, _second) = (ledger.admit(&made.key, now).unwrap(), ledger.admit(&made.key, now).unwrap());
    assert_eq!(ledger.admit(&made.key, now).err(), Some(Refusal::Concurrency { limit: 2 }));
    drop(first);
    ledger.admit(&made.key, now).unwrap();
}

#[test]
fn credits_can_be_added_and_the_limit_taken_away() {
    let (_dir, ledger) = ledger();
    let made = ledger.create(NewKey::named("free")).unwrap();
    let id = &made.view.id;
    ledger.admit(&made.key, Instant::now()).unwrap().reserve(2_000).unwrap().charge(Sold::Image, 2, 2_000);
    let add = |credits| KeyChange { add_credits: Some(Credits(credits)), ..KeyChange::default() };
    assert_eq!(ledger.change(id, add(1_000)).unwrap().credits_left, Some(Credits(1_000)));
    assert_eq!(ledger.change(id, add(500)).unwrap().credits_left, Some(Credits(1_500)));
    assert!(ledger.change(id, add(limits::CREDITS)).is_err());
    let unlimited = KeyChange { unlimited: true, name: Some("freer".into()), ..KeyChange::default() };
    let view = ledger.change(id, unlimited).unwrap();
    assert_eq!((view.credits_left, view.name.as_str()), (None, "freer"));
}

#[test]
fn a_key_forgotten_while_it_runs_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let ledger = Arc::new(Ledger::open(store.clone(), DEFAULTS).unwrap());
    let made = ledger.create(NewKey::named("brief")).unwrap();
    let running = ledger.admit(&made.key, Instant::now()).unwrap().reserve(1_000).unwrap();
    ledger.forget(&made.view.id).unwrap();
    running.charge(Sold::Image, 1, 1_000);
    drop(running);
    assert!(store.scan(Table::Usage, &[], 10).unwrap().is_empty());
    assert!(store.scan(Table::Keys, &[], 10).unwrap().is_empty());
}
