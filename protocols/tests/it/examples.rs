//! The values that SPEC.md gives test vectors of.

use argus_protocols::{
    Answer, Capability, Features, HotkeyPair, ImageHashes, Multiaddr, NsfwScores, Open, PeerId, QueryId,
    Receipt, Record, ResultHeader, Role, Task, TaskKind, query::Deadlines, task::ImageEmbedding,
    task::TextToImage,
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
    Task::TextToImage(TextToImage {
        model: "tiny-sd".into(),
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: 20,
        guidance: 7.5,
        seed: 0x0123_4567_89ab_cdef,
    })
}

pub fn image_embedding() -> Task {
    Task::ImageEmbedding(ImageEmbedding {
        model: "tiny-sd".into(),
        pictures: vec![vec![0x89, b'P', b'N', b'G'], vec![0xff, 0xd8, 0xff]],
    })
}

pub fn picture() -> Answer {
    Answer::Picture(vec![0x89, b'P', b'N', b'G'])
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
    }
}
