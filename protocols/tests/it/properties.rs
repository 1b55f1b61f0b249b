//! For all values and all bytes: what is encoded decodes to itself, and nothing that can be sent makes a
//! decoder panic, take more memory than it may, or accept two encodings of one value.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use argus_protocols::{
    Answer, Capability, Challenge, Commitment, Features, Hotkey, HotkeyPair, ImageHashes, NsfwScores, Open,
    Opening, QueryId, Reason, Receipt, Record, Rejection, ResultHeader, Role, SignedOpen, SignedReceipt,
    SignedRecord, Task, codec, limits, merkle,
    query::{Accepted, Deadlines, Progress},
    task::{Control, ControlKind, Generation, Pads, Pictures, Start, Upscale},
    trajectory::{OpenedState, OpeningHeader},
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseResult};

use crate::examples;

/// Remembers the largest allocation of each thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The largest element of a list, in memory, against the one byte that it has at least on the wire.
const GROWTH: usize = 64;
/// Error messages, curve points and the like.
const OVERHEAD: usize = 4096;

/// A decoder whose value, if there is one, comes back as bytes again.
type Decoder = fn(&[u8]) -> Option<Vec<u8>>;

const DECODERS: [(&str, Decoder); 12] = [
    ("signed record", |b| Some(SignedRecord::from_bytes(b).ok()?.to_bytes())),
    ("signed open", |b| Some(SignedOpen::from_bytes(b).ok()?.to_bytes())),
    ("signed receipt", |b| Some(SignedReceipt::from_bytes(b).ok()?.to_bytes())),
    ("task", |b| Some(Task::from_bytes(b).ok()?.to_bytes())),
    ("answer", |b| Some(Answer::from_bytes(b).ok()?.to_bytes())),
    ("accepted", |b| Some(codec::encode(&Accepted::decode(b).ok()?))),
    ("progress", |b| Some(codec::encode(&Progress::decode(b).ok()?))),
    ("result header", |b| Some(codec::encode(&ResultHeader::decode(b).ok()?))),
    ("challenge", |b| Some(codec::encode(&Challenge::decode(b).ok()?))),
    ("opening header", |b| Some(codec::encode(&OpeningHeader::decode(b).ok()?))),
    ("opening", |b| Some(Opening::from_bytes(b).ok()?.to_bytes())),
    ("rejection", |b| Some(Rejection::from_bytes(b).ok()?.to_bytes().to_vec())),
];

fn decode_with_all(bytes: &[u8]) -> TestCaseResult {
    for (name, decoder) in DECODERS {
        LARGEST.set(0);
        let again = decoder(bytes);
        let largest = LARGEST.get();
        prop_assert!(
            largest <= GROWTH * bytes.len() + OVERHEAD,
            "{name}: {largest} bytes for {}",
            bytes.len()
        );
        if let Some(again) = again {
            prop_assert_eq!(&again[..], bytes, "{}", name);
        }
    }
    signed_by_a_stranger(bytes)
}

/// The inner encodings, as somebody with a hotkey of their own can bring them to the decoder.
fn signed_by_a_stranger(bytes: &[u8]) -> TestCaseResult {
    LARGEST.set(0);
    let signature = argus_protocols::Signature([0; 64]);
    let record = SignedRecord { record: bytes.to_vec(), signature };
    prop_assert!(record.verify(examples::NOW_MS).is_err());
    let open = SignedOpen { open: bytes.to_vec(), signature };
    let (from, to) = (examples::validator_peer(), examples::miner_peer());
    let miner = examples::miner().hotkey();
    prop_assert!(open.verify(&from, &to, &miner, examples::NOW_MS).is_err());
    let receipt = SignedReceipt { receipt: bytes.to_vec(), signature };
    prop_assert!(receipt.verify_alone().is_err());
    prop_assert!(LARGEST.get() <= GROWTH * bytes.len() + OVERHEAD);
    Ok(())
}

fn valid_encodings() -> Vec<Vec<u8>> {
    let record = SignedRecord::sign(&examples::record(), &examples::miner()).unwrap();
    let open = SignedOpen::sign(&examples::open(), &examples::validator());
    let receipt = SignedReceipt::sign(&examples::receipt(), &examples::miner());
    let mut encodings = vec![
        record.record.clone(),
        record.to_bytes(),
        open.open.clone(),
        open.to_bytes(),
        receipt.receipt.clone(),
        receipt.to_bytes(),
        codec::encode(&examples::result_header()),
        codec::encode(&examples::challenge()),
        codec::encode(&examples::opening_header()),
        examples::opening().to_bytes(),
    ];
    encodings.extend(examples::tasks().map(|(_, task)| task.to_bytes()));
    encodings.extend(examples::answers().map(|(_, answer)| answer.to_bytes()));
    encodings
}

#[test]
fn a_length_is_believed_only_when_the_bytes_are_there() {
    let lengths = [60_u32, 500, 4_000, 65_536, 1 << 20, limits::BODY as u32 - 6, u32::MAX];
    for valid in valid_encodings() {
        for at in 0..valid.len() {
            for length in lengths {
                let mut bytes = valid[..at].to_vec();
                bytes.push(252);
                bytes.extend_from_slice(&length.to_le_bytes());
                decode_with_all(&bytes).unwrap();
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    // The bytes that say how long a number is are worth more tries than others.
    let byte = || prop_oneof![any::<u8>(), 250_u8..=255];
    prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, b)| Damage::Set(at, b)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), vec(byte(), 1..10)).prop_map(|(at, b)| Damage::Insert(at, b)),
        any::<Index>().prop_map(Damage::Remove),
    ]
}

fn apply(damage: Vec<Damage>, mut bytes: Vec<u8>) -> Vec<u8> {
    for damage in damage {
        if bytes.is_empty() {
            break;
        }
        match damage {
            Damage::Set(at, byte) => *at.get_mut(&mut bytes) = byte,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new);
            }
            Damage::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
        }
    }
    bytes
}

fn model() -> impl Strategy<Value = String> {
    vec(0x21_u8..=0x7e, 1..=limits::MODEL_ID).prop_map(|b| String::from_utf8(b).unwrap())
}

fn number() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |x| x.is_finite())
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..300)
}

fn start() -> impl Strategy<Value = Start> {
    let strength = || f32::MIN_POSITIVE..=1.0;
    // The sizes of `generation` leave room for these.
    let pads = (1..=7_u32, 0..=8_u32, 0..=7_u32, 0..=8_u32);
    prop_oneof![
        Just(Start::Noise),
        (file(), strength()).prop_map(|(picture, strength)| Start::Picture { picture, strength }),
        (file(), file(), strength()).prop_map(|(picture, mask, strength)| Start::Inpaint {
            picture,
            mask,
            strength
        }),
        (file(), pads).prop_map(|(picture, (left, right, top, bottom))| Start::Uncrop {
            picture,
            pads: Pads { left, right, top, bottom }
        }),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    let kind = prop_oneof![Just(ControlKind::Scribble), Just(ControlKind::Canny), Just(ControlKind::Depth)];
    (kind, file(), any::<bool>(), f32::MIN_POSITIVE..=limits::CONTROL_SCALE)
        .prop_map(|(kind, picture, is_prepared, scale)| Control { kind, picture, is_prepared, scale })
}

fn generation() -> impl Strategy<Value = Generation> {
    let text = || "\\PC{0,200}";
    (
        (model(), text(), text()),
        (16..=limits::SIDE).prop_flat_map(|width| {
            let highest = (limits::ANSWER_PIXELS / u64::from(width)).min(limits::SIDE.into()) as u32;
            (Just(width), 16..=highest)
        }),
        1..=limits::STEPS,
        0.0..=limits::GUIDANCE,
        any::<u64>(),
        start(),
        vec(control(), 0..=limits::CONTROLS),
    )
        .prop_map(
            |((model, prompt, negative_prompt), (width, height), steps, guidance, seed, start, controls)| {
                Generation {
                    model,
                    prompt,
                    negative_prompt,
                    width,
                    height,
                    steps,
                    guidance,
                    seed,
                    start,
                    controls,
                }
            },
        )
}

fn task() -> impl Strategy<Value = Task> {
    let pictures = || {
        (model(), vec(file(), 1..=limits::PICTURES))
            .prop_map(|(model, pictures)| Pictures { model, pictures })
    };
    let upscale = (model(), file(), 0..limits::UPSCALE_FACTORS.len()).prop_map(|(model, picture, factor)| {
        Task::Upscale(Upscale { model, picture, factor: limits::UPSCALE_FACTORS[factor] })
    });
    prop_oneof![
        generation().prop_map(Task::Generation),
        pictures().prop_map(Task::ImageEmbedding),
        pictures().prop_map(Task::NsfwClassification),
        upscale,
    ]
}

fn scores() -> impl Strategy<Value = NsfwScores> {
    [0.01_f32..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0].prop_map(|s| {
        let sum: f32 = s.iter().sum();
        let [drawing, hentai, neutral, porn, sexy] = s.map(|x| x / sum);
        NsfwScores { drawing, hentai, neutral, porn, sexy }
    })
}

fn features() -> impl Strategy<Value = Features> {
    let unit = vec(-1.0_f32..=1.0, 1..600)
        .prop_filter("not zero", |v| v.iter().any(|x| x.abs() > 0.01))
        .prop_map(|v| {
            let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
            v.into_iter().map(|x| x / length).collect::<Vec<f32>>()
        });
    (any::<[u64; 3]>(), 0..1_u64 << 42, unit, scores()).prop_map(|(h, colour, clip, nsfw)| Features {
        hashes: ImageHashes { average: h[0], perceptual: h[1], difference: h[2], colour },
        clip,
        nsfw,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let embeddings = (1..=limits::PICTURES, 1..100_usize)
        .prop_flat_map(|(n, dimensions)| vec(vec(number(), dimensions), n));
    prop_oneof![
        vec(any::<u8>(), 1..2000).prop_map(Answer::Picture),
        features().prop_map(Answer::Nsfw),
        embeddings.prop_map(Answer::Embeddings),
        vec(scores(), 1..=limits::PICTURES).prop_map(Answer::Classes),
    ]
}

fn capability() -> impl Strategy<Value = Capability> {
    (model(), vec(any::<u16>(), 0..=limits::CAPABILITY_TASKS), 0.0..f32::MAX, any::<u16>()).prop_map(
        |(model, tasks, work_units_per_second, concurrency)| Capability {
            model,
            tasks,
            work_units_per_second,
            concurrency,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let address = prop_oneof![
        any::<([u8; 4], u16)>()
            .prop_map(|(ip, port)| format!("/ip4/{}/udp/{port}/quic-v1", std::net::Ipv4Addr::from(ip))),
        any::<([u8; 16], u16)>()
            .prop_map(|(ip, port)| format!("/ip6/{}/tcp/{port}", std::net::Ipv6Addr::from(ip))),
        "[a-z0-9.]{1,60}".prop_map(|name| format!("/dns4/{name}/tcp/443")),
    ];
    let role = prop_oneof![Just(Role::Miner), Just(Role::Validator), Just(Role::Relay)];
    (
        vec(address, 0..=limits::RECORD_ADDRESSES),
        role,
        any::<u16>(),
        vec(capability(), 0..10),
        0..=examples::NOW_MS + limits::CLOCK_SKEW_MS,
        1..=limits::RECORD_LIFETIME_MS,
    )
        .prop_map(|(addresses, role, netuid, capabilities, sequence, lifetime)| Record {
            hotkey: examples::miner().hotkey(),
            peer: examples::miner_peer(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            role,
            netuid,
            capabilities,
            sequence,
            expires_at_ms: examples::NOW_MS + lifetime,
        })
}

fn open() -> impl Strategy<Value = Open> {
    let deadline = || 1..=limits::DEADLINE_MS;
    (
        any::<[u8; 16]>(),
        any::<u16>(),
        examples::NOW_MS - limits::CLOCK_SKEW_MS..=examples::NOW_MS + limits::CLOCK_SKEW_MS,
        (deadline(), deadline(), deadline()),
        any::<u16>(),
        model(),
        1..=limits::BODY as u32,
        any::<[u8; 32]>(),
    )
        .prop_map(|(id, netuid, issued_at_ms, deadlines, task, model, body_length, body_hash)| Open {
            id: QueryId(id),
            netuid,
            issued_at_ms,
            deadlines: Deadlines { first_byte_ms: deadlines.0, idle_ms: deadlines.1, total_ms: deadlines.2 },
            task,
            model,
            body_length,
            body_hash,
            ..examples::open()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        decode_with_all(&bytes)?;
    }

    #[test]
    fn damaged_encodings(which in any::<Index>(), damage in vec(damage(), 1..4)) {
        let valid = valid_encodings();
        decode_with_all(&apply(damage, which.get(&valid).clone()))?;
    }

    #[test]
    fn any_header(header in any::<[u8; codec::FRAME_HEADER]>()) {
        if let Ok((kind, length)) = codec::parse_frame_header(header) {
            prop_assert!(length <= kind.limit());
            prop_assert_eq!(codec::frame_header(kind, length), header);
        }
    }

    #[test]
    fn any_text_as_an_address(text in "\\PC{0,80}") {
        if let Ok(hotkey) = text.parse::<Hotkey>() {
            prop_assert_eq!(hotkey.to_string(), text);
        }
    }

    #[test]
    fn addresses_go_round(bytes in any::<[u8; 32]>(), at in 0..48_usize, with in "[1-9A-HJ-NP-Za-km-z]") {
        let hotkey = Hotkey::from_bytes(bytes);
        let mut text = hotkey.to_string();
        prop_assert_eq!(text.parse::<Hotkey>().unwrap(), hotkey);
        prop_assert!(text.starts_with('5') && text.len() == 48);
        if text[at..=at] != with {
            text.replace_range(at..=at, &with);
            // Two bytes of checksum: another address is found once in 65,536 tries, never the same.
            prop_assert_ne!(text.parse::<Hotkey>(), Ok(hotkey));
        }
    }

    #[test]
    fn tasks_go_round(task in task()) {
        prop_assert_eq!(Task::from_bytes(&task.to_bytes()).unwrap(), task);
    }

    #[test]
    fn answers_go_round(answer in answer()) {
        prop_assert_eq!(Answer::from_bytes(&answer.to_bytes()).unwrap(), answer);
    }

    #[test]
    fn small_frames_go_round(a in any::<u32>(), b in 1_u32.., c in any::<u32>(), hash in any::<[u8; 32]>(), reason in any::<Index>()) {
        let accepted = Accepted { queue_position: a };
        prop_assert_eq!(Accepted::decode(&codec::encode(&accepted)).unwrap(), accepted);
        let progress = Progress { step: 1 + c % b, of: b };
        prop_assert_eq!(Progress::decode(&codec::encode(&progress)).unwrap(), progress);
        let header = ResultHeader { body_length: 1 + c % limits::BODY as u32, body_hash: hash, compute_ms: a };
        prop_assert_eq!(ResultHeader::decode(&codec::encode(&header)).unwrap(), header);
        for rejection in [Rejection::busy(a), Rejection::new(*reason.get(&Reason::ALL))] {
            prop_assert_eq!(Rejection::from_bytes(&rejection.to_bytes()).unwrap(), rejection);
        }
    }

    #[test]
    fn signatures_are_of_one_message_by_one_key(seed in any::<[u8; 32]>(), message in vec(any::<u8>(), 0..100), bit in 0..512_usize) {
        let pair = HotkeyPair::from_seed(&seed);
        let mut signature = pair.sign_raw(&message);
        prop_assert!(pair.hotkey().verify_raw(&message, &signature).is_ok());
        signature.0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(pair.hotkey().verify_raw(&message, &signature).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn records_go_round(record in record()) {
        match SignedRecord::sign(&record, &examples::miner()) {
            Ok(signed) => {
                let read = SignedRecord::from_bytes(&signed.to_bytes()).unwrap();
                let verified = read.verify(examples::NOW_MS).unwrap();
                prop_assert_eq!(&*verified, &record);
                prop_assert_eq!(verified.signed(), &signed);
            }
            Err(refused) => prop_assert_eq!(refused.reason(), "limits"),
        }
    }

    #[test]
    fn opens_and_receipts_go_round(
        open in open(),
        response_hash in any::<[u8; 32]>(),
        at in 0..1000_u64,
        states in proptest::option::of(2..=limits::STATES),
    ) {
        let signed = SignedOpen::sign(&open, &examples::validator());
        let read = SignedOpen::from_bytes(&signed.to_bytes()).unwrap();
        let (from, to) = (examples::validator_peer(), examples::miner_peer());
        let verified = read.verify(&from, &to, &open.miner, examples::NOW_MS).unwrap();
        prop_assert_eq!(&*verified, &open);
        let total = u64::from(open.deadlines.total_ms);
        let receipt = Receipt {
            id: open.id,
            netuid: open.netuid,
            validator: open.validator,
            miner: open.miner,
            task: open.task,
            model: open.model.clone(),
            request_hash: verified.request_hash(),
            response_hash,
            accepted_at_ms: open.issued_at_ms + at.min(total),
            finished_at_ms: open.issued_at_ms + total,
            trajectory: states.map(|states| Commitment { root: response_hash, states }),
        };
        let signed = SignedReceipt::sign(&receipt, &examples::miner());
        let read = SignedReceipt::from_bytes(&signed.to_bytes()).unwrap();
        let verified = read.verify(&open, verified.request_hash(), response_hash).unwrap();
        prop_assert_eq!(&*verified, &receipt);
    }

    /// Whatever a run's length and whichever of its steps are drawn, what was committed to can be shown, and
    /// nothing else.
    #[test]
    fn trajectories_go_round(
        length in 2_usize..40,
        drawn in vec(any::<Index>(), 0..4),
        damaged in any::<Index>(),
        bit in 0_usize..32,
    ) {
        let state = |index: u32| (index * 7).to_le_bytes().to_vec();
        let leaves: Vec<_> = (0..length as u32).map(|index| merkle::leaf(index, &state(index))).collect();
        let commitment = Commitment::of(&leaves).unwrap();
        let steps: Vec<u32> = drawn.iter().map(|step| step.index(length - 1) as u32).collect();
        let challenge = Challenge::of_steps(&steps, &commitment);
        prop_assert!(Challenge::decode(&codec::encode(&challenge)).is_ok());
        for step in steps {
            prop_assert!(challenge.states.contains(&step) && challenge.states.contains(&(step + 1)));
        }
        let open = |index: &u32| OpenedState {
            index: *index,
            state: state(*index),
            path: merkle::path(&leaves, *index as usize).unwrap(),
        };
        let opening = Opening { states: challenge.states.iter().map(open).collect() };
        let read = Opening::from_bytes(&opening.to_bytes()).unwrap();
        let shown = read.verify(&challenge, &commitment).unwrap();
        prop_assert!(shown.iter().all(|(index, bytes)| *bytes == state(*index)));
        let mut false_one = opening;
        let damaged = damaged.index(false_one.states.len());
        false_one.states[damaged].state[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(false_one.verify(&challenge, &commitment).is_err());
    }
}
