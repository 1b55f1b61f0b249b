//! The values that SPEC.md gives test vectors of.

use argus_protocols::{
    Answer, Capability, Features, HotkeyPair, ImageHashes, Multiaddr, NsfwScores, Open, PeerId, QueryId,
    Receipt, Record, ResultHeader, Role, Task, TaskKind, merkle,
    query::Deadlines,
    task::{Control, ControlKind, Generation, Pads, Pictures, Start, Upscale},
    trajectory::{Challenge, Commitment, OpenedState, Opening, OpeningHeader},
};
use libp2p_identity::Keypair;

pub const NOW_MS: u64 = 1_790_000_000_000;

pub fn validator() -> HotkeyPair {
    HotkeyPair::from_seed(&[1; 32])
}

pub fn miner() -> HotkeyPair {
    HotkeyPair::from_seed(&[2; 32])
}

pub fn peer(seed: u8) -> PeerId {
    let pair = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
    pair.public().to_peer_id()
}

pub fn validator_peer() -> PeerId {
    peer(3)
}

pub fn miner_peer() -> PeerId {
    peer(4)
}

pub fn record() -> Record {
    let direct: Multiaddr = "/ip4/203.0.113.7/udp/4001/quic-v1".parse().unwrap();
    let relay = format!("/ip4/198.51.100.2/tcp/4001/p2p/{}/p2p-circuit/p2p/{}", peer(5), miner_peer());
    Record {
        hotkey: miner().hotkey(),
        peer: miner_peer(),
        addresses: vec![direct, relay.parse().unwrap()],
        role: Role::Miner,
        netuid: 7,
        capabilities: vec![Capability {
            model: "tiny-sd".into(),
            tasks: TaskKind::ALL.map(TaskKind::code).to_vec(),
            work_units_per_second: 12.5,
            concurrency: 2,
        }],
        sequence: NOW_MS,
        expires_at_ms: NOW_MS + 3_600_000,
    }
}

pub fn text_to_image() -> Task {
    generation(Start::Noise, Vec::new())
}

/// The request of [`text_to_image`] with something to begin from and to steer by.
pub fn generation(start: Start, controls: Vec<Control>) -> Task {
    Task::Generation(Generation {
        model: "tiny-sd".into(),
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: 20,
        guidance: 7.5,
        seed: 0x0123_4567_89ab_cdef,
        start,
        controls,
    })
}

/// The first bytes of a PNG and of a JPEG file.
pub const PNG: [u8; 4] = [0x89, b'P', b'N', b'G'];
pub const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];

pub fn image_to_image() -> Task {
    generation(Start::Picture { picture: PNG.into(), strength: 0.5 }, Vec::new())
}

pub fn inpaint() -> Task {
    generation(Start::Inpaint { picture: PNG.into(), mask: JPEG.into(), strength: 1.0 }, Vec::new())
}

pub fn uncrop() -> Task {
    let pads = Pads { left: 8, right: 0, top: 16, bottom: 0 };
    generation(Start::Uncrop { picture: PNG.into(), pads }, Vec::new())
}

pub fn scribble_and_depth() -> Task {
    let control = |kind, is_prepared, scale| Control { kind, picture: PNG.into(), is_prepared, scale };
    let controls = vec![control(ControlKind::Scribble, true, 1.0), control(ControlKind::Depth, false, 0.5)];
    generation(Start::Noise, controls)
}

pub fn upscale() -> Task {
    Task::Upscale(Upscale { model: "tiny-x2".into(), picture: PNG.into(), factor: 2 })
}

pub fn image_embedding() -> Task {
    Task::ImageEmbedding(pictures())
}

pub fn nsfw_classification() -> Task {
    Task::NsfwClassification(pictures())
}

fn pictures() -> Pictures {
    Pictures { model: "tiny-sd".into(), pictures: vec![PNG.into(), JPEG.into()] }
}

/// One task of each shape, by its name in SPEC.md.
pub fn tasks() -> [(&'static str, Task); 8] {
    [
        ("text_to_image", text_to_image()),
        ("image_to_image", image_to_image()),
        ("inpaint", inpaint()),
        ("uncrop", uncrop()),
        ("scribble_and_depth", scribble_and_depth()),
        ("upscale", upscale()),
        ("image_embedding", image_embedding()),
        ("nsfw_classification", nsfw_classification()),
    ]
}

pub fn picture() -> Answer {
    Answer::Picture(PNG.into())
}

pub fn nsfw() -> Answer {
    Answer::Nsfw(Features {
        hashes: ImageHashes {
            average: 0xffff_0000_ffff_0000,
            perceptual: 0x8123_4567_89ab_cdef,
            difference: 1,
            colour: 0x3ff_ffff_ffff,
        },
        clip: vec![0.6, -0.8],
        nsfw: NsfwScores { drawing: 0.0, hentai: 0.0, neutral: 0.25, porn: 0.5, sexy: 0.25 },
    })
}

pub fn embeddings() -> Answer {
    Answer::Embeddings(vec![vec![1.0, 0.0], vec![-0.5, 0.25]])
}

pub fn classes() -> Answer {
    let scores = NsfwScores { drawing: 0.5, hentai: 0.0, neutral: 0.25, porn: 0.0, sexy: 0.25 };
    Answer::Classes(vec![scores; 2])
}

/// One answer of each shape, by its name in SPEC.md.
pub fn answers() -> [(&'static str, Answer); 4] {
    [("picture", picture()), ("nsfw", nsfw()), ("embeddings", embeddings()), ("classes", classes())]
}

pub fn open() -> Open {
    let body = text_to_image().to_bytes();
    Open {
        id: QueryId(*b"0123456789abcdef"),
        netuid: 7,
        validator: validator().hotkey(),
        miner: miner().hotkey(),
        validator_peer: validator_peer().to_bytes(),
        miner_peer: miner_peer().to_bytes(),
        issued_at_ms: NOW_MS,
        deadlines: Deadlines { first_byte_ms: 5_000, idle_ms: 10_000, total_ms: 60_000 },
        task: TaskKind::TextToImage.code(),
        model: "tiny-sd".into(),
        body_length: body.len() as u32,
        body_hash: *blake3::hash(&body).as_bytes(),
    }
}

pub fn result_header() -> ResultHeader {
    let body = picture().to_bytes();
    ResultHeader {
        body_length: body.len() as u32,
        body_hash: *blake3::hash(&body).as_bytes(),
        compute_ms: 1_234,
    }
}

pub fn receipt() -> Receipt {
    let open = open();
    Receipt {
        id: open.id,
        netuid: open.netuid,
        validator: open.validator,
        miner: open.miner,
        task: open.task,
        model: open.model.clone(),
        request_hash: *blake3::hash(&argus_protocols::codec::encode(&open)).as_bytes(),
        response_hash: result_header().body_hash,
        accepted_at_ms: NOW_MS + 20,
        finished_at_ms: NOW_MS + 1_300,
        trajectory: Some(commitment()),
    }
}

/// The states of a run of four steps, of two numbers each.
pub fn states() -> Vec<Vec<u8>> {
    let state = |index: u8| [f32::from(index), -0.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    (0..5).map(state).collect()
}

fn leaves() -> Vec<merkle::Hash> {
    (0..).zip(states()).map(|(index, state)| merkle::leaf(index, &state)).collect()
}

pub fn commitment() -> Commitment {
    Commitment::of(&leaves()).unwrap()
}

/// Step 2 of that run.
pub fn challenge() -> Challenge {
    Challenge::of_steps(&[2], &commitment())
}

pub fn opening() -> Opening {
    let (leaves, states) = (leaves(), states());
    let open = |index: &u32| OpenedState {
        index: *index,
        state: states[*index as usize].clone(),
        path: merkle::path(&leaves, *index as usize).unwrap(),
    };
    Opening { states: challenge().states.iter().map(open).collect() }
}

pub fn opening_header() -> OpeningHeader {
    let body = opening().to_bytes();
    OpeningHeader { body_length: body.len() as u32, body_hash: *blake3::hash(&body).as_bytes() }
}
