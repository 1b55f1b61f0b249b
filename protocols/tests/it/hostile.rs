//! What peers may send and what becomes of it.

use argus_protocols::{
    Answer, Challenge, CodecError, Commitment, Hotkey, NsfwScores, Open, Opening, RecordError, Rejection,
    ResultHeader, SignedOpen, SignedReceipt, SignedRecord, Task,
    codec::{self, FrameKind},
    limits, merkle,
    query::{Accepted, BodyError, OpenError, Progress},
    receipt::ReceiptError,
    task::{Generation, Pads, Pictures, Start, Upscale},
    trajectory::{OpenedState, OpeningHeader},
};

use crate::examples::*;

fn verify_open(signed: SignedOpen, now_ms: u64) -> Result<(), OpenError> {
    let miner = miner().hotkey();
    signed.verify(&validator_peer(), &miner_peer(), &miner, now_ms).map(drop)
}

/// Signs what `change` makes of the example.
fn changed_open(change: impl FnOnce(&mut Open)) -> SignedOpen {
    let mut open = open();
    change(&mut open);
    SignedOpen::sign(&open, &validator())
}

fn each_bit(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

#[test]
fn no_bit_of_a_signed_message_can_be_changed() {
    let record = SignedRecord::sign(&record(), &miner()).unwrap();
    assert!(record.clone().verify(NOW_MS).is_ok());
    for bytes in each_bit(&record.to_bytes()) {
        let verified =
            SignedRecord::from_bytes(&bytes).map_err(RecordError::from).and_then(|r| r.verify(NOW_MS));
        assert!(verified.is_err());
    }
    let signed = SignedOpen::sign(&open(), &validator());
    assert!(verify_open(signed.clone(), NOW_MS).is_ok());
    for bytes in each_bit(&signed.to_bytes()) {
        let verified =
            SignedOpen::from_bytes(&bytes).map_err(OpenError::from).and_then(|o| verify_open(o, NOW_MS));
        assert!(verified.is_err());
    }
    let receipt = SignedReceipt::sign(&receipt(), &miner());
    assert!(receipt.clone().verify_alone().is_ok());
    for bytes in each_bit(&receipt.to_bytes()) {
        let verified = SignedReceipt::from_bytes(&bytes)
            .map_err(ReceiptError::from)
            .and_then(SignedReceipt::verify_alone);
        assert!(verified.is_err());
    }
}

#[test]
fn a_signature_of_one_kind_is_none_of_another() {
    let record = SignedRecord::sign(&record(), &miner()).unwrap();
    let open = SignedOpen::sign(&open(), &validator());
    let as_record = SignedRecord {
        record: record.record.clone(),
        signature: miner().sign(argus_protocols::hotkey::Domain::Open, &record.record),
    };
    assert!(matches!(as_record.verify(NOW_MS), Err(RecordError::Signature(_))));
    let raw = SignedOpen { signature: validator().sign_raw(&open.open), open: open.open };
    assert!(matches!(verify_open(raw, NOW_MS), Err(OpenError::Signature(_))));
}

#[test]
fn a_record_of_anothers_hotkey_is_neither_made_nor_taken() {
    assert!(matches!(SignedRecord::sign(&record(), &validator()), Err(RecordError::OtherHotkey)));
    // Our own signature under a record that names the miner's hotkey.
    let record = SignedRecord::sign(&record(), &miner()).unwrap().record;
    let forged = SignedRecord {
        signature: validator().sign(argus_protocols::hotkey::Domain::Record, &record),
        record,
    };
    assert_eq!(forged.verify(NOW_MS).unwrap_err().reason(), "signature");
}

#[test]
fn records_have_a_time() {
    let signed = SignedRecord::sign(&record(), &miner()).unwrap();
    let at = |now_ms| signed.clone().verify(now_ms).map(drop);
    let expires = record().expires_at_ms;
    assert!(at(expires - 1).is_ok());
    assert!(matches!(at(expires), Err(RecordError::Expired)));
    assert!(matches!(at(u64::MAX), Err(RecordError::Expired)));
    // Our clock may be behind by the skew, no more.
    assert!(at(NOW_MS - limits::CLOCK_SKEW_MS).is_ok());
    assert!(matches!(at(NOW_MS - limits::CLOCK_SKEW_MS - 1), Err(RecordError::Future)));
    assert!(matches!(at(0), Err(RecordError::Future)));
    let mut eternal = record();
    eternal.expires_at_ms = u64::MAX;
    let eternal = SignedRecord::sign(&eternal, &miner()).unwrap();
    assert!(matches!(eternal.verify(NOW_MS), Err(RecordError::Future)));
}

#[test]
fn only_a_newer_record_of_the_same_hotkey_replaces() {
    let at = |sequence| {
        let mut record = record();
        record.sequence = sequence;
        let signed = SignedRecord::sign(&record, &miner()).unwrap();
        signed.verify(NOW_MS).unwrap()
    };
    assert!(at(2).replaces(&at(1)));
    assert!(!at(1).replaces(&at(1)));
    assert!(!at(1).replaces(&at(2)));
    let mut other = record();
    other.hotkey = validator().hotkey();
    let other = SignedRecord::sign(&other, &validator()).unwrap();
    assert!(!other.verify(NOW_MS).unwrap().replaces(&at(1)));
}

#[test]
fn records_that_break_a_limit_are_not_made() {
    let refused = |change: fn(&mut argus_protocols::Record)| {
        let mut record = record();
        change(&mut record);
        SignedRecord::sign(&record, &miner()).unwrap_err().reason()
    };
    assert_eq!(
        refused(|r| r.addresses = vec![r.addresses[0].clone(); limits::RECORD_ADDRESSES + 1]),
        "limits"
    );
    assert_eq!(
        refused(|r| r.capabilities = vec![r.capabilities[0].clone(); limits::RECORD_CAPABILITIES + 1]),
        "limits"
    );
    assert_eq!(refused(|r| r.capabilities[0].tasks = vec![1; limits::CAPABILITY_TASKS + 1]), "limits");
    assert_eq!(refused(|r| r.capabilities[0].model = "m".repeat(limits::MODEL_ID + 1)), "limits");
    // Each field within its limit, all of them together not.
    assert_eq!(
        refused(|r| {
            let name = format!("/dns4/{}/tcp/1", "a".repeat(400)).parse().unwrap();
            r.addresses = vec![name; limits::RECORD_ADDRESSES];
        }),
        "limits"
    );
    for speed in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0] {
        let mut record = record();
        record.capabilities[0].work_units_per_second = speed;
        let refused = SignedRecord::sign(&record, &miner()).unwrap_err();
        assert_eq!(refused.reason(), "malformed", "{speed}");
    }
    for model in ["", "a b", "\u{1b}[31m", "ä", "a\n"] {
        let mut record = record();
        record.capabilities[0].model = model.into();
        let refused = SignedRecord::sign(&record, &miner()).unwrap_err();
        assert_eq!(refused.reason(), "malformed", "{model:?}");
    }
}

#[test]
fn addresses_lead_to_the_peer_of_the_record_and_can_be_shown() {
    let refused = |address: String| {
        let mut record = record();
        record.addresses = vec![address.parse().unwrap()];
        SignedRecord::sign(&record, &miner()).map(drop)
    };
    assert!(refused(format!("/ip4/203.0.113.7/tcp/1/p2p/{}", miner_peer())).is_ok());
    assert!(refused(format!("/ip4/203.0.113.7/tcp/1/p2p/{}/p2p-circuit", peer(5))).is_ok());
    assert!(refused(format!("/ip4/203.0.113.7/tcp/1/p2p/{}", peer(5))).is_err());
    assert!(refused("/dns4/\u{1b}[2J/tcp/1".into()).is_err());
    let mut record = record();
    record.addresses = vec![argus_protocols::Multiaddr::empty()];
    assert!(SignedRecord::sign(&record, &miner()).is_err());
}

#[test]
fn an_open_frame_is_worth_nothing_elsewhere_or_later() {
    let signed = SignedOpen::sign(&open(), &validator());
    let hotkey = miner().hotkey();
    let verify = |from, to, hotkey: &Hotkey| signed.clone().verify(&from, &to, hotkey, NOW_MS);
    assert!(verify(validator_peer(), miner_peer(), &hotkey).is_ok());
    assert!(matches!(verify(peer(9), miner_peer(), &hotkey), Err(OpenError::Peer)));
    assert!(matches!(verify(validator_peer(), peer(9), &hotkey), Err(OpenError::Peer)));
    assert!(matches!(verify(validator_peer(), miner_peer(), &validator().hotkey()), Err(OpenError::Miner)));
    for skew in [limits::CLOCK_SKEW_MS, 0] {
        assert!(verify_open(signed.clone(), NOW_MS + skew).is_ok());
        assert!(verify_open(signed.clone(), NOW_MS - skew).is_ok());
    }
    for now_ms in [NOW_MS + limits::CLOCK_SKEW_MS + 1, NOW_MS - limits::CLOCK_SKEW_MS - 1, 0, u64::MAX] {
        let refused = verify_open(signed.clone(), now_ms).unwrap_err();
        assert!(matches!(refused, OpenError::Stale(_)));
    }
}

#[test]
fn an_open_frame_keeps_to_its_limits() {
    let refused = |change: fn(&mut Open)| verify_open(changed_open(change), NOW_MS).unwrap_err();
    let over = limits::BODY as u32 + 1;
    assert!(matches!(refused(|o| o.body_length = 0), OpenError::Body(0)));
    assert!(matches!(
        refused(|o| o.body_length = limits::BODY as u32 + 1),
        OpenError::Body(n) if n == over
    ));
    for change in [
        (|o| o.deadlines.total_ms = limits::DEADLINE_MS + 1) as fn(&mut Open),
        |o| o.deadlines.total_ms = 0,
        |o| o.deadlines.idle_ms = 0,
        |o| o.deadlines.first_byte_ms = u32::MAX,
    ] {
        assert!(matches!(refused(change), OpenError::Limits));
    }
    for change in [(|o| o.model = "m".repeat(limits::MODEL_ID + 1)) as fn(&mut Open), |o| {
        o.validator_peer = vec![0; limits::PEER_ID + 1]
    }] {
        assert_eq!(refused(change).reason(), "limits");
    }
    assert_eq!(refused(|o| o.model = String::new()).reason(), "malformed");
    assert!(open().check().is_ok());
    // A task of a later version is for the miner to refuse as one it cannot do.
    assert!(verify_open(changed_open(|o| o.task = 999), NOW_MS).is_ok());
}

#[test]
fn a_body_is_the_one_that_was_signed_for() {
    let read = |open: SignedOpen, body: &[u8]| {
        let miner = miner().hotkey();
        open.verify(&validator_peer(), &miner_peer(), &miner, NOW_MS).unwrap().read_task(body)
    };
    let body = text_to_image().to_bytes();
    let good = || SignedOpen::sign(&open(), &validator());
    assert_eq!(read(good(), &body).unwrap(), text_to_image());
    assert!(matches!(read(good(), &body[1..]).unwrap_err(), BodyError::Hash));
    let mut other = body.clone();
    *other.last_mut().unwrap() ^= 1;
    assert!(matches!(read(good(), &other).unwrap_err(), BodyError::Hash));
    let model = changed_open(|o| o.model = "other".into());
    assert!(matches!(read(model, &body).unwrap_err(), BodyError::Task));
    let task = changed_open(|o| o.task = 2);
    assert!(matches!(read(task, &body).unwrap_err(), BodyError::Task));
}

#[test]
fn a_receipt_is_for_one_query_and_one_answer() {
    let (open, signed) = (open(), SignedOpen::sign(&open(), &validator()));
    let (request, response) = (signed.request_hash(), result_header().body_hash);
    let verify = |change: fn(&mut argus_protocols::Receipt)| {
        let mut receipt = receipt();
        change(&mut receipt);
        SignedReceipt::sign(&receipt, &miner()).verify(&open, request, response)
    };
    assert_eq!(*verify(|_| ()).unwrap(), receipt());
    let mismatch = |change| match verify(change).unwrap_err() {
        ReceiptError::Mismatch(what) => what,
        other => panic!("{other}"),
    };
    assert_eq!(mismatch(|r| r.id.0[0] ^= 1), "query");
    assert_eq!(mismatch(|r| r.netuid += 1), "query");
    assert_eq!(mismatch(|r| r.validator = r.miner), "validator");
    assert_eq!(mismatch(|r| r.task = 2), "task");
    assert_eq!(mismatch(|r| r.model = "other".into()), "task");
    assert_eq!(mismatch(|r| r.request_hash[0] ^= 1), "request");
    assert_eq!(mismatch(|r| r.response_hash[0] ^= 1), "response");
    assert_eq!(mismatch(|r| r.accepted_at_ms = NOW_MS - limits::CLOCK_SKEW_MS - 1), "time");
    assert_eq!(mismatch(|r| r.finished_at_ms = u64::MAX), "time");
    assert!(matches!(verify(|r| r.finished_at_ms = r.accepted_at_ms - 1), Err(ReceiptError::Times)));
    // Another miner's signature under a receipt that names itself.
    let mut own = receipt();
    own.miner = validator().hotkey();
    let own = SignedReceipt::sign(&own, &validator());
    assert!(matches!(own.verify(&open, request, response), Err(ReceiptError::Mismatch("miner"))));
}

fn malformed(result: Result<impl std::fmt::Debug, CodecError>) {
    assert_eq!(result.unwrap_err().reason(), "malformed");
}

/// The task of an example, changed, is refused.
fn refused(task: Task, change: impl FnOnce(&mut Generation)) {
    let Task::Generation(mut task) = task else { unreachable!() };
    change(&mut task);
    malformed(Task::from_bytes(&Task::Generation(task).to_bytes()));
}

#[test]
fn generations_have_possible_numbers() {
    for guidance in [f32::NAN, f32::INFINITY, -1.0, -0.0, limits::GUIDANCE + 1.0] {
        refused(text_to_image(), |task| task.guidance = guidance);
    }
    for (width, height, steps) in [
        (0, 64, 20),
        (64, 0, 20),
        (64, 64, 0),
        (u32::MAX, u32::MAX, 20),
        (limits::SIDE + 1, 64, 20),
        (limits::SIDE, limits::SIDE, 20),
        (64, 64, limits::STEPS + 1),
    ] {
        refused(text_to_image(), |task| (task.width, task.height, task.steps) = (width, height, steps));
    }
    let Task::Generation(mut task) = text_to_image() else { unreachable!() };
    task.prompt = "ä".repeat(limits::PROMPT / 2);
    assert!(Task::from_bytes(&Task::Generation(task.clone()).to_bytes()).is_ok());
    task.prompt.push('a');
    let over = Task::from_bytes(&Task::Generation(task).to_bytes()).unwrap_err();
    assert_eq!(over.to_string(), "prompt: 4097 is over the limit of 4096", "names the field");
}

#[test]
fn starts_have_possible_numbers() {
    for strength in [f32::NAN, 0.0, -0.0, -0.5, 1.1, f32::INFINITY] {
        let begun = Start::Picture { picture: PNG.into(), strength };
        refused(image_to_image(), |task| task.start = begun);
        let begun = Start::Inpaint { picture: PNG.into(), mask: PNG.into(), strength };
        refused(inpaint(), |task| task.start = begun);
    }
    for empty in [
        Start::Picture { picture: vec![], strength: 0.5 },
        Start::Inpaint { picture: vec![], mask: PNG.into(), strength: 0.5 },
        Start::Inpaint { picture: PNG.into(), mask: vec![], strength: 0.5 },
        Start::Uncrop { picture: vec![], pads: Pads { left: 1, ..Pads::default() } },
    ] {
        refused(text_to_image(), |task| task.start = empty);
    }
    for pads in [
        Pads::default(),
        Pads { left: 64, ..Pads::default() },
        Pads { left: 32, right: 32, ..Pads::default() },
        Pads { top: u32::MAX, bottom: u32::MAX, ..Pads::default() },
    ] {
        refused(uncrop(), |task| task.start = Start::Uncrop { picture: PNG.into(), pads });
    }
}

#[test]
fn controls_have_possible_numbers() {
    for scale in [f32::NAN, 0.0, -1.0, limits::CONTROL_SCALE + 0.1] {
        refused(scribble_and_depth(), |task| task.controls[1].scale = scale);
    }
    refused(scribble_and_depth(), |task| task.controls[0].picture.clear());
    let Task::Generation(mut task) = scribble_and_depth() else { unreachable!() };
    task.controls = vec![task.controls[0].clone(); limits::CONTROLS + 1];
    let over = Task::from_bytes(&Task::Generation(task).to_bytes()).unwrap_err();
    assert_eq!(over.reason(), "limits");
}

#[test]
fn a_task_is_named_by_what_is_in_it() {
    use argus_protocols::TaskKind as K;
    let kinds = tasks().map(|(_, task)| task.kind());
    let expected = [
        K::TextToImage,
        K::ImageToImage,
        K::Inpaint,
        K::Uncrop,
        K::Scribble,
        K::Upscale,
        K::ImageEmbedding,
        K::NsfwClassification,
    ];
    assert_eq!(kinds, expected);
    let Task::Generation(mut task) = scribble_and_depth() else { unreachable!() };
    assert_eq!(task.parts().collect::<Vec<_>>(), [K::Scribble, K::Depth]);
    task.start = Start::Picture { picture: PNG.into(), strength: 0.5 };
    assert_eq!(task.parts().collect::<Vec<_>>(), [K::Scribble, K::Depth, K::ImageToImage]);
    for kind in K::ALL {
        assert_eq!(K::from_code(kind.code()), Some(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.label());
    }
}

#[test]
fn requests_about_pictures_have_pictures() {
    let Task::ImageEmbedding(good) = image_embedding() else { unreachable!() };
    for pictures in [vec![], vec![vec![]]] {
        let asked = Pictures { pictures, ..good.clone() };
        malformed(Task::from_bytes(&Task::ImageEmbedding(asked.clone()).to_bytes()));
        malformed(Task::from_bytes(&Task::NsfwClassification(asked).to_bytes()));
    }
    let many = Pictures { pictures: vec![vec![1]; limits::PICTURES + 1], ..good };
    let over = Task::from_bytes(&Task::ImageEmbedding(many).to_bytes()).unwrap_err();
    assert_eq!(over.reason(), "limits");
    let Task::Upscale(good) = upscale() else { unreachable!() };
    for factor in [0, 1, 3, 8, u32::MAX] {
        malformed(Task::from_bytes(&Task::Upscale(Upscale { factor, ..good.clone() }).to_bytes()));
    }
    malformed(Task::from_bytes(&Task::Upscale(Upscale { picture: vec![], ..good }).to_bytes()));
}

#[test]
fn answers_have_possible_numbers() {
    type Change = fn(&mut argus_protocols::Features);
    let changes: [Change; 10] = [
        |f| f.clip = vec![],
        |f| f.clip = vec![f32::NAN, 0.0],
        |f| f.clip = vec![f32::MAX, f32::MAX],
        |f| f.clip = vec![0.0, 0.0],
        |f| f.clip = vec![2.0, 0.0],
        |f| f.nsfw.porn = f32::NAN,
        |f| f.nsfw.porn = f32::INFINITY,
        |f| (f.nsfw.porn, f.nsfw.neutral) = (1.5, -0.75),
        |f| f.nsfw.porn = 0.9,
        |f| f.hashes.colour = 1 << 42,
    ];
    for change in changes {
        let Answer::Nsfw(mut features) = nsfw() else { unreachable!() };
        change(&mut features);
        malformed(Answer::from_bytes(&Answer::Nsfw(features).to_bytes()));
    }
    for answer in [
        Answer::Picture(vec![]),
        Answer::Embeddings(vec![]),
        Answer::Embeddings(vec![vec![]]),
        Answer::Embeddings(vec![vec![1.0], vec![1.0, 2.0]]),
        Answer::Embeddings(vec![vec![f32::NEG_INFINITY]]),
        Answer::Classes(vec![]),
        Answer::Classes(vec![NsfwScores { drawing: 0.9, hentai: 0.9, neutral: 0.0, porn: 0.0, sexy: 0.0 }]),
    ] {
        malformed(Answer::from_bytes(&answer.to_bytes()));
    }
    for answer in [
        Answer::Embeddings(vec![vec![1.0]; limits::PICTURES + 1]),
        Answer::Embeddings(vec![vec![1.0; limits::EMBEDDING_DIMENSIONS + 1]]),
        Answer::Picture(vec![0; limits::BODY]),
    ] {
        let over = Answer::from_bytes(&answer.to_bytes()).unwrap_err();
        assert_eq!(over.reason(), "limits");
    }
}

#[test]
fn an_answer_is_of_the_kind_that_was_asked() {
    for (name, task) in tasks() {
        let fitting: Vec<&str> =
            answers().into_iter().filter(|(_, answer)| answer.answers(&task)).map(|(name, _)| name).collect();
        let expected: &[&str] = match name {
            "image_embedding" => &["embeddings"],
            "nsfw_classification" => &["classes"],
            _ => &["picture", "nsfw"],
        };
        assert_eq!(fitting, expected, "{name}");
    }
    assert!(!Answer::Embeddings(vec![vec![1.0]]).answers(&image_embedding()));
}

#[test]
fn the_largest_body_goes_through() {
    // Kind, length (253 and eight bytes would be shorter as 252 and four), bytes.
    let answer = Answer::Picture(vec![7; limits::BODY - 6]);
    let bytes = answer.to_bytes();
    assert_eq!(bytes.len(), limits::BODY);
    assert_eq!(Answer::from_bytes(&bytes).unwrap(), answer);
}

#[test]
fn one_value_has_one_encoding() {
    // 5 as itself; after 251 in two bytes; after 252 in four.
    assert_eq!(Accepted::decode(&[5]).unwrap().queue_position, 5);
    for longer in [&[251, 5, 0][..], &[252, 5, 0, 0, 0]] {
        assert!(matches!(Accepted::decode(longer), Err(CodecError::NotCanonical)));
    }
    // A number too large for its type, and a length that is not there.
    malformed(Accepted::decode(&[253, 5, 0, 0, 0, 0, 0, 0, 0]));
    malformed(Accepted::decode(&[251, 5]));
    malformed(Accepted::decode(&[]));
    assert!(matches!(Accepted::decode(&[5, 0]), Err(CodecError::Trailing(1))));
}

#[test]
fn frames_keep_to_the_limits_of_their_kind() {
    for kind in FrameKind::ALL {
        let header = codec::frame_header(kind, kind.limit());
        assert_eq!(codec::parse_frame_header(header).unwrap(), (kind, kind.limit()));
        let length = (kind.limit() as u32 + 1).to_le_bytes();
        let header = [kind as u8, length[0], length[1], length[2], length[3]];
        assert!(matches!(codec::parse_frame_header(header), Err(CodecError::TooLarge { .. })));
        malformed(codec::parse_frame_header([kind as u8, 0, 0, 0, 0]));
    }
    for kind in (0..=255).filter(|kind| !(1..=9).contains(kind)) {
        assert!(matches!(
            codec::parse_frame_header([kind, 1, 0, 0, 0]),
            Err(CodecError::UnknownFrame(k)) if k == kind
        ));
    }
}

#[test]
fn the_largest_frames_are_within_the_limits() {
    let model = "m".repeat(limits::MODEL_ID);
    let long = Open {
        netuid: u16::MAX,
        validator_peer: vec![0; limits::PEER_ID],
        miner_peer: vec![0; limits::PEER_ID],
        issued_at_ms: u64::MAX,
        deadlines: argus_protocols::query::Deadlines {
            first_byte_ms: u32::MAX,
            idle_ms: u32::MAX,
            total_ms: u32::MAX,
        },
        task: u16::MAX,
        model: model.clone(),
        body_length: u32::MAX,
        ..open()
    };
    let open = SignedOpen::sign(&long, &validator()).to_bytes();
    assert!(open.len() <= FrameKind::Open.limit());
    let long = argus_protocols::Receipt {
        netuid: u16::MAX,
        task: u16::MAX,
        model,
        accepted_at_ms: u64::MAX,
        finished_at_ms: u64::MAX,
        trajectory: Some(Commitment { root: [0xff; 32], states: limits::STATES }),
        ..receipt()
    };
    let receipt = SignedReceipt::sign(&long, &miner()).to_bytes();
    assert!(receipt.len() <= FrameKind::Receipt.limit());
    let longest = |frame: Vec<u8>, kind: FrameKind| assert_eq!(frame.len(), kind.limit());
    longest(codec::encode(&Accepted { queue_position: u32::MAX }), FrameKind::Accepted);
    let (step, of) = (u32::MAX, u32::MAX);
    longest(codec::encode(&Progress { step, of }), FrameKind::Progress);
    let header = ResultHeader { body_length: u32::MAX, body_hash: [0xff; 32], compute_ms: u32::MAX };
    longest(codec::encode(&header), FrameKind::Result);
    let states = (0..limits::OPENED_STATES as u32).map(|index| u32::MAX - 8 + index).collect();
    longest(codec::encode(&Challenge { states }), FrameKind::Challenge);
    let header = OpeningHeader { body_length: u32::MAX, body_hash: [0xff; 32] };
    longest(codec::encode(&header), FrameKind::Opening);
}

#[test]
fn small_frames_have_possible_numbers() {
    let progress = |step, of| Progress::decode(&codec::encode(&Progress { step, of }));
    assert!(progress(1, 1).is_ok() && progress(20, 20).is_ok());
    malformed(progress(0, 20));
    malformed(progress(21, 20));
    let header = |body_length| {
        let mut header = result_header();
        header.body_length = body_length;
        ResultHeader::decode(&codec::encode(&header))
    };
    assert!(header(limits::BODY as u32).is_ok());
    malformed(header(0));
    assert_eq!(header(limits::BODY as u32 + 1).unwrap_err().reason(), "limits");
}

#[test]
fn rejections_are_five_bytes_and_nothing_else() {
    malformed(Rejection::from_bytes(&[]));
    malformed(Rejection::from_bytes(&[1, 0, 0, 0]));
    malformed(Rejection::from_bytes(&[1, 0, 0, 0, 0, 0]));
    malformed(Rejection::from_bytes(&[0; 5]));
    malformed(Rejection::from_bytes(&[8, 0, 0, 0, 0]));
    // Only `busy` says when to come back.
    assert!(matches!(Rejection::from_bytes(&[2, 1, 0, 0, 0]), Err(CodecError::NotCanonical)));
    let odd = Rejection { reason: argus_protocols::Reason::Failed, retry_after_ms: 9 };
    assert_eq!(odd.to_bytes(), [6, 0, 0, 0, 0]);
}

#[test]
fn prompts_and_pictures_are_not_in_debug_output() {
    for (name, mut task) in tasks() {
        if let Task::Generation(task) = &mut task {
            task.negative_prompt = "secret too".into();
        }
        let shown = format!("{task:?}");
        for hidden in ["apple", "secret", "137", "255"] {
            assert!(!shown.contains(hidden), "{name}: {shown}");
        }
    }
    assert!(!format!("{:?}", picture()).contains("137"));
}

#[test]
fn a_trajectory_has_a_step_at_least_and_no_more_than_a_run_may() {
    let decoded = |states| {
        let receipt =
            argus_protocols::Receipt { trajectory: Some(Commitment { states, ..commitment() }), ..receipt() };
        SignedReceipt::sign(&receipt, &miner()).verify_alone().map(|read| read.trajectory)
    };
    for states in [0, 1, limits::STATES + 1, u32::MAX] {
        assert_eq!(decoded(states).unwrap_err().reason(), "malformed", "{states}");
    }
    assert_eq!(decoded(limits::STATES).unwrap().unwrap().states, limits::STATES);
    let longest = (0..limits::STATES).map(|index| merkle::path_length(index, limits::STATES)).max();
    assert_eq!(longest, Some(limits::PATH));
    assert!(Commitment::of(&[]).is_none() && Commitment::of(&[[0; 32]]).is_none());
}

#[test]
fn a_challenge_names_few_states_in_their_order() {
    let decoded = |states: &[u32]| Challenge::decode(&codec::encode(&Challenge { states: states.to_vec() }));
    assert!(decoded(&[0]).is_ok() && decoded(&[0, 1, 7]).is_ok());
    for states in [&[][..], &[1, 1], &[2, 1]] {
        malformed(decoded(states));
    }
    let many: Vec<u32> = (0..=limits::OPENED_STATES as u32).collect();
    assert_eq!(decoded(&many).unwrap_err().reason(), "limits");
    // The most steps that are ever drawn fit.
    let commitment = Commitment { root: [0; 32], states: 100 };
    assert_eq!(Challenge::of_steps(&[1, 3, 5], &commitment).states.len(), limits::OPENED_STATES);
    assert_eq!(Challenge::of_steps(&[0, 98], &commitment).states, [0, 1, 98, 99]);
    assert_eq!(Challenge::of_steps(&[99, u32::MAX - 1], &commitment).states, [0, 99]);
}

#[test]
fn an_opening_is_of_the_states_asked_for_and_of_that_run() {
    let verify = |opening: Opening| opening.verify(&challenge(), &commitment());
    let states = verify(opening()).unwrap();
    assert_eq!(states.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2, 3, 4]);
    let changed = |change: fn(&mut Opening)| {
        let mut opening = opening();
        change(&mut opening);
        verify(opening).unwrap_err().reason()
    };
    // Fewer, more, others, in another order, one twice.
    for change in [
        (|o: &mut Opening| o.states.truncate(1)) as fn(&mut Opening),
        |o| o.states.push(o.states[0].clone()),
        |o| o.states[1].index = 1,
        |o| o.states.swap(0, 1),
        |o| o.states[1] = o.states[0].clone(),
        |o| o.states.clear(),
    ] {
        assert_eq!(changed(change), "opening_indices");
    }
    // Another state, a longer and an empty one, one of another place, and paths that do not lead there.
    for change in [
        (|o: &mut Opening| o.states[1].state[0] ^= 1) as fn(&mut Opening),
        |o| o.states[1].state.push(0),
        |o| o.states[1].state.clear(),
        |o| o.states[1].state = o.states[0].state.clone(),
        |o| o.states[1].path[0][0] ^= 1,
        |o| o.states[1].path.clear(),
        |o| o.states[1].path.push([0; 32]),
        |o| o.states[1].path.reverse(),
    ] {
        assert_eq!(changed(change), "opening_path");
    }
    // A path of another tree.
    let other = Commitment { root: [9; 32], ..commitment() };
    assert_eq!(opening().verify(&challenge(), &other).unwrap_err().reason(), "opening_path");
    let other = Commitment { states: 6, ..commitment() };
    assert_eq!(opening().verify(&challenge(), &other).unwrap_err().reason(), "opening_path");
}

#[test]
fn an_openings_lengths_are_believed_only_when_the_bytes_are_there() {
    let header = |body_length| {
        OpeningHeader::decode(&codec::encode(&OpeningHeader { body_length, body_hash: [0; 32] }))
    };
    assert!(header(1).is_ok() && header(limits::BODY as u32).is_ok());
    malformed(header(0));
    assert_eq!(header(limits::BODY as u32 + 1).unwrap_err().reason(), "limits");
    let mut long = opening();
    long.states[0].path = vec![[0; 32]; limits::PATH + 1];
    assert_eq!(Opening::from_bytes(&long.to_bytes()).unwrap_err().reason(), "limits");
    // The largest states that may be asked for fit, and no larger ones.
    let whole = |bytes: usize| {
        let largest =
            OpenedState { index: u32::MAX, state: vec![0; bytes], path: vec![[0; 32]; limits::PATH] };
        Opening { states: vec![largest; limits::OPENED_STATES] }.to_bytes()
    };
    assert!(Opening::from_bytes(&whole(limits::STATE)).is_ok());
    assert_eq!(Opening::from_bytes(&whole(limits::STATE + 1)).unwrap_err().reason(), "limits");
    // One state that claims 4 GiB.
    malformed(Opening::from_bytes(&[1, 0, 0xfc, 0xff, 0xff, 0xff, 0xff]).map_err(|error| match error {
        CodecError::OverLimit(_) => CodecError::Malformed(String::new()),
        other => other,
    }));
    malformed(Opening::from_bytes(&[1, 0, 0xfb, 0xff, 0xff]));
}
