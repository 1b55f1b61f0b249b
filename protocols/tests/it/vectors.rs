//! The test vectors of SPEC.md are read out of it, so that neither it nor the wire changes alone.
//!
//! A vector that does not hold fails with the line that would; signatures are random, so a vector with
//! one is checked by verifying it and comparing what was signed.

use std::collections::BTreeMap;

use argus_protocols::{
    Hotkey, Rejection, ResultHeader, Signature, SignedOpen, SignedReceipt, SignedRecord, codec,
    codec::FrameKind,
    hotkey::Domain,
    merkle,
    query::{Accepted, Progress},
    record,
};

use crate::examples::*;

const SPEC: &str = include_str!("../../SPEC.md");

/// `name = hex` in the blocks marked `vectors`; a line that begins with a space goes on with the last one.
fn vectors() -> BTreeMap<String, Vec<u8>> {
    let mut vectors: BTreeMap<String, String> = BTreeMap::new();
    let mut name = None;
    let mut inside = false;
    for line in SPEC.lines() {
        if line.starts_with("```") {
            inside = line == "```vectors";
            name = None;
        } else if inside {
            let (to, digits) = match line.split_once(" =") {
                Some((new, digits)) => (new.to_owned(), digits),
                None => (name.take().expect("a vector has a name"), line),
            };
            vectors.entry(to.clone()).or_default().push_str(digits.trim());
            name = Some(to);
        }
    }
    vectors
        .into_iter()
        .map(|(name, digits)| {
            let bytes = hex::decode(&digits).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, bytes)
        })
        .collect()
}

#[derive(Default)]
struct Checked {
    vectors: BTreeMap<String, Vec<u8>>,
    wrong: Vec<String>,
}

impl Checked {
    fn is(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        if self.vectors.remove(name).as_deref() != Some(bytes.as_ref()) {
            let digits = hex::encode(bytes);
            self.wrong.push(format!("{name} = {digits}"));
        }
    }

    /// A message with a signature, of which `new` makes another and `holds` says whether it is good.
    fn signed(&mut self, name: &str, new: Vec<u8>, holds: impl FnOnce(&[u8]) -> bool) {
        if !self.vectors.remove(name).is_some_and(|old| holds(&old)) {
            self.wrong.push(format!("{name} = {}", hex::encode(new)));
        }
    }
}

fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    [&codec::frame_header(kind, payload.len())[..], payload].concat()
}

#[test]
fn the_vectors_of_the_specification_hold() {
    let mut checked = Checked { vectors: vectors(), ..Checked::default() };
    identities(&mut checked);
    encodings(&mut checked);
    records(&mut checked);
    queries(&mut checked);
    bodies(&mut checked);
    let unknown: Vec<_> = checked.vectors.keys().collect();
    assert!(unknown.is_empty(), "nothing checks {unknown:?}");
    assert!(checked.wrong.is_empty(), "SPEC.md should say\n{}", checked.wrong.join("\n"));
}

fn identities(checked: &mut Checked) {
    checked.is("validator.seed", [1; 32]);
    checked.is("validator.hotkey", validator().hotkey().as_bytes());
    checked.is("miner.seed", [2; 32]);
    checked.is("miner.hotkey", miner().hotkey().as_bytes());
    checked.is("validator.peer", validator_peer().to_bytes());
    checked.is("miner.peer", miner_peer().to_bytes());
    for (text, hotkey) in [("validator", validator().hotkey()), ("miner", miner().hotkey())] {
        assert!(SPEC.contains(&format!("{hotkey}")), "SPEC.md should give the {text}'s address {hotkey}");
    }
    let message = b"argus";
    for (name, domain) in [
        ("record", Domain::Record),
        ("open", Domain::Open),
        ("receipt", Domain::Receipt),
        ("devchain", Domain::DevChain),
    ] {
        checked.is(&format!("digest.{name}"), domain.digest(message));
    }
    let hotkey = miner().hotkey();
    let new = miner().sign(Domain::Record, message).0.to_vec();
    checked.signed("signature.record", new, |old| {
        let signature = Signature(old.try_into().unwrap());
        hotkey.verify(Domain::Record, message, &signature).is_ok()
    });
    checked.is("dht.key", record::key(&hotkey));
}

fn encodings(checked: &mut Checked) {
    for number in [0_u64, 250, 251, 65_535, 65_536, 1 << 32] {
        checked.is(&format!("u64.{number}"), codec::encode(&number));
    }
    checked.is("f32.7.5", codec::encode(&7.5_f32));
    checked.is("text.apple", codec::encode(&"apple".to_owned()));
}

fn records(checked: &mut Checked) {
    let new = SignedRecord::sign(&record(), &miner()).unwrap();
    checked.is("record", &new.record);
    checked.signed("record.signed", new.to_bytes(), |old| {
        let signed = SignedRecord::from_bytes(old).unwrap();
        signed.verify(NOW_MS).is_ok_and(|read| *read == record())
    });
}

fn queries(checked: &mut Checked) {
    let new = SignedOpen::sign(&open(), &validator());
    checked.is("open", &new.open);
    checked.is("open.request_hash", new.request_hash());
    let miner_hotkey: Hotkey = miner().hotkey();
    let framed = frame(FrameKind::Open, &new.to_bytes());
    checked.signed("frame.open", framed, |old| {
        let payload = payload(FrameKind::Open, old);
        let signed = SignedOpen::from_bytes(payload).unwrap();
        signed
            .verify(&validator_peer(), &miner_peer(), &miner_hotkey, NOW_MS)
            .is_ok_and(|read| *read == open())
    });
    let task = text_to_image().to_bytes();
    checked.is("frame.chunk", frame(FrameKind::Chunk, &task));
    let accepted = Accepted { queue_position: 300 };
    checked.is("frame.accepted", frame(FrameKind::Accepted, &codec::encode(&accepted)));
    checked.is("frame.rejected", frame(FrameKind::Rejected, &Rejection::busy(1_500).to_bytes()));
    let progress = Progress { step: 3, of: 20 };
    checked.is("frame.progress", frame(FrameKind::Progress, &codec::encode(&progress)));
    let header: ResultHeader = result_header();
    checked.is("frame.result", frame(FrameKind::Result, &codec::encode(&header)));
    let new = SignedReceipt::sign(&receipt(), &miner());
    checked.is("receipt", &new.receipt);
    let framed = frame(FrameKind::Receipt, &new.to_bytes());
    checked.signed("frame.receipt", framed, |old| {
        let signed = SignedReceipt::from_bytes(payload(FrameKind::Receipt, old)).unwrap();
        let request_hash = SignedOpen::sign(&open(), &validator()).request_hash();
        signed.verify(&open(), request_hash, header.body_hash).is_ok_and(|read| *read == receipt())
    });
    trajectories(checked);
}

fn trajectories(checked: &mut Checked) {
    checked.is("merkle.leaf_2", merkle::leaf(2, &states()[2]));
    checked.is("merkle.root", commitment().root);
    checked.is("frame.challenge", frame(FrameKind::Challenge, &codec::encode(&challenge())));
    checked.is("frame.opening", frame(FrameKind::Opening, &codec::encode(&opening_header())));
    checked.is("opening", opening().to_bytes());
    assert!(opening().verify(&challenge(), &commitment()).is_ok());
}

fn payload(kind: FrameKind, frame: &[u8]) -> &[u8] {
    let (header, payload) = frame.split_at(codec::FRAME_HEADER);
    let parsed = codec::parse_frame_header(header.try_into().unwrap()).unwrap();
    assert_eq!(parsed, (kind, payload.len()));
    payload
}

fn bodies(checked: &mut Checked) {
    for (name, task) in tasks() {
        checked.is(&format!("task.{name}"), task.to_bytes());
    }
    for (name, answer) in answers() {
        checked.is(&format!("answer.{name}"), answer.to_bytes());
    }
}

#[test]
fn the_specification_lists_every_task() {
    for kind in argus_protocols::TaskKind::ALL {
        let row = format!("| {} | {kind} |", kind.code());
        assert!(SPEC.contains(&row), "SPEC.md should have a row that begins {row}");
    }
}

#[test]
fn the_limits_of_the_specification_are_those_of_the_code() {
    use argus_protocols::limits as l;
    for (name, limit) in [
        ("FRAME", l::FRAME as u64),
        ("CHUNK", l::CHUNK as u64),
        ("BODY", l::BODY as u64),
        ("RECORD", l::RECORD as u64),
        ("RECORD_ADDRESSES", l::RECORD_ADDRESSES as u64),
        ("ADDRESS", l::ADDRESS as u64),
        ("PEER_ID", l::PEER_ID as u64),
        ("RECORD_CAPABILITIES", l::RECORD_CAPABILITIES as u64),
        ("CAPABILITY_TASKS", l::CAPABILITY_TASKS as u64),
        ("RECORD_LIFETIME_MS", l::RECORD_LIFETIME_MS),
        ("MODEL_ID", l::MODEL_ID as u64),
        ("PROMPT", l::PROMPT as u64),
        ("SIDE", u64::from(l::SIDE)),
        ("STEPS", u64::from(l::STEPS)),
        ("STATES", u64::from(l::STATES)),
        ("OPENED_STATES", l::OPENED_STATES as u64),
        ("STATE", l::STATE as u64),
        ("PATH", l::PATH as u64),
        ("CHALLENGE_MS", u64::from(l::CHALLENGE_MS)),
        ("OPENING_MS", u64::from(l::OPENING_MS)),
        ("GUIDANCE", l::GUIDANCE as u64),
        ("ANSWER_PIXELS", l::ANSWER_PIXELS),
        ("CONTROLS", l::CONTROLS as u64),
        ("CONTROL_SCALE", l::CONTROL_SCALE as u64),
        ("PICTURES", l::PICTURES as u64),
        ("EMBEDDING_DIMENSIONS", l::EMBEDDING_DIMENSIONS as u64),
        ("CLOCK_SKEW_MS", l::CLOCK_SKEW_MS),
        ("DEADLINE_MS", u64::from(l::DEADLINE_MS)),
    ] {
        let row = format!("| {name} | {limit} |");
        assert!(SPEC.contains(&row), "SPEC.md should have the row {row}");
    }
}
