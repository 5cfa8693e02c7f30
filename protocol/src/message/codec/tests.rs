//! The bytes of every message, pinned, and what is no message refused.

use proptest::prelude::*;

use crate::limits::{KEPT_TASKS_MAX, UPLOAD_WINDOWS_MAX};

use super::*;

fn report() -> Report {
    Report {
        agent_version: "0.1.0".into(),
        boot: BootId::from_bytes([3; 16]),
        embodiment: Some(EmbodimentId::from_bytes([4; 32])),
        episodes_waiting: 5,
        spool_bytes: 6,
        recordings: 7,
        assignment_sequence: 8,
        upload_policy_revision: 9,
        releases: vec![ReleaseReport {
            release: "push@2".parse().unwrap(),
            state: ReleaseState::Failed,
            reason: "golden vectors differ".into(),
        }],
    }
}

fn pushed_policy() -> PushedPolicy {
    let policy = HubPolicy {
        mode: UploadMode::MetadataFirst,
        bytes_per_second_max: Some(100_000),
        bytes_per_second_max_acting: None,
        metered: true,
        windows: vec![Window::new(1320, 365).unwrap()],
        keep_on_site_tasks: ["fold".parse().unwrap(), "weld".parse().unwrap()].into(),
    };
    PushedPolicy { revision: 258, policy: Some(policy) }
}

fn tombstone_of(ordinal: u64) -> Tombstone {
    Tombstone {
        recording: RecordingId::from_bytes([5; 16]),
        ordinal,
        task: "push".parse().unwrap(),
        outcome: Outcome::Unknown,
        interventions: true,
        steps: 14,
        bytes: 15,
        reason: EvictionReason::Quota,
    }
}

#[test]
fn more_tombstones_than_allowed_are_refused_and_as_many_as_allowed_fit() {
    let longest = Tombstone { task: "t".repeat(63).parse().unwrap(), ..tombstone_of(1) };
    let most = Message::Evicted(vec![longest.clone(); EVICTIONS_PER_MESSAGE_MAX]);
    assert_eq!(Message::decode(&most.encode()), Ok(most));
    let more = Message::Evicted(vec![tombstone_of(1); EVICTIONS_PER_MESSAGE_MAX + 1]);
    assert!(matches!(Message::decode(&more.encode()), Err(DecodeError::Body { .. })));
    let huge = Message::Evicted(vec![Tombstone { steps: u64::MAX, ..longest }]);
    assert!(matches!(Message::decode(&huge.encode()), Err(DecodeError::Body { .. })));
}

#[test]
fn more_wanted_episodes_than_allowed_are_refused_and_as_many_as_allowed_fit() {
    let of = |count| Message::Wanted(vec![EpisodeId::of(b"e"); count]);
    assert_eq!(Message::decode(&of(WANTED_PER_MESSAGE_MAX).encode()), Ok(of(WANTED_PER_MESSAGE_MAX)));
    let more = of(WANTED_PER_MESSAGE_MAX + 1).encode();
    assert!(matches!(Message::decode(&more), Err(DecodeError::Body { .. })));
}

#[test]
fn a_chunk_in_two_parts_is_the_same_message() {
    let (id, bytes) = (ChunkId::of(b"chunk"), b"chunk".to_vec());
    let whole = Message::Chunk(ChunkBytes { id, bytes: bytes.clone() });
    assert_eq!([&chunk_head(id, 0, &bytes)[..], &bytes].concat(), whole.encode());
    let rest = Message::ChunkRest(ChunkRest { id, from: 2, bytes: bytes[2..].to_vec() });
    assert_eq!([&chunk_head(id, 2, &bytes[2..])[..], &bytes[2..]].concat(), rest.encode());
}

fn messages() -> Vec<Message> {
    vec![
        Message::Report(report()),
        Message::Assign(SignedObject { envelope: b"{}".to_vec() }),
        Message::Root(SignedObject { envelope: b"{}".to_vec() }),
        Message::Offer(vec![1, 2, 3]),
        Message::Want(Want { bitmap: vec![5], resume: vec![Resume { chunk: 2, from: 259 }] }),
        Message::Later(Later { retry_after_ms: 258 }),
        Message::Reject(Reject { reason: RejectReason::Conflict }),
        Message::Chunk(ChunkBytes { id: ChunkId::of(b"c"), bytes: b"c".to_vec() }),
        Message::Durable(Receipt {
            episode: EpisodeId::of(b"e"),
            stored_unix_secs: 9,
            path: vec![Beside::Right(Digest::of(b"r")), Beside::Left(Digest::of(b"l"))],
            key: KeyId::from_bytes([1; 16]),
            signature: [2; 64],
        }),
        Message::Fetch(Fetch { digest: Digest::of(b"d"), offset: 10 }),
        Message::Found(Found { bytes_total: 11 }),
        Message::Missing,
        Message::ChunkRest(ChunkRest { id: ChunkId::of(b"c"), from: 259, bytes: b"c".to_vec() }),
        Message::Ping(12),
        Message::Pong(13),
        Message::Evicted(vec![tombstone_of(12), Tombstone { reason: EvictionReason::DiskFull, ..tombstone_of(13) }]),
        Message::EvictionsStored(vec![12, 13]),
        Message::UploadPolicy(pushed_policy()),
        Message::Describe(vec![1, 2, 3]),
        Message::Noted,
        Message::Wanted(vec![EpisodeId::of(b"e"), EpisodeId::of(b"f")]),
    ]
}

#[test]
fn every_message_survives_its_encoding() {
    for message in messages() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn the_bytes_of_every_message_are_frozen() {
    let digests: Vec<String> =
        messages().iter().map(|message| Digest::of(&message.encode()).to_string()[..16].to_owned()).collect();
    assert_eq!(digests, FROZEN);
}

const FROZEN: [&str; 21] = [
    "e4eca8933f676538",
    "42ee7a76a9166f71",
    "8ffe19abb39ab40f",
    "d3517df9c5af3a6a",
    "32ad7747340b72f1",
    "13aaffe405d2c0b4",
    "6c18def1497f1024",
    "3220f0faf804e998",
    "84c3dabe25d93d4b",
    "11fa7a9163681bb1",
    "63cbf9b63e690f81",
    "e1f0880ffbdeaa1b",
    "fcaf57ceb758025d",
    "31f2c0fd03f51604",
    "ef43d3ede8da37fc",
    "fb960636bfab80cd",
    "865f94594f6881fc",
    "3dfe7d240284a390",
    "e7c90a32a76771d4",
    "410b736493fa7c6d",
    "c7644f2b52c5f96b",
];

#[test]
fn small_messages_are_frozen_byte_by_byte() {
    let later = Message::Later(Later { retry_after_ms: 258 }).encode();
    assert_eq!(later[..12], [18, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(later[16..], [2, 1, 0, 0]);
    let found = Message::Found(Found { bytes_total: 11 }).encode();
    assert_eq!(found[..12], [33, 0, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(found[16..], [11, 0, 0, 0, 0, 0, 0, 0]);
    let missing = Message::Missing.encode();
    assert_eq!(missing[..12], [34, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let offer = Message::Offer(vec![7]).encode();
    assert_eq!((offer[..12].to_vec(), offer[16]), (vec![16, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0], 7));
    let ping = Message::Ping(12).encode();
    assert_eq!((&ping[..12], &ping[16..]), (&[4, 0, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0][..], &[12, 0, 0, 0, 0, 0, 0, 0][..]));
    let rest = ChunkRest { id: ChunkId::from_bytes([9; 32]), from: 259, bytes: vec![7] };
    let rest = Message::ChunkRest(rest).encode();
    assert_eq!(rest[..12], [22, 0, 1, 0, 0, 0, 0, 0, 37, 0, 0, 0]);
    assert_eq!((&rest[16..48], &rest[48..]), (&[9; 32][..], &[3, 1, 0, 0, 7][..]));
}

#[test]
fn a_chunk_that_broke_off_is_read_as_far_as_it_came() {
    let id = ChunkId::of(b"chunk");
    let broken = |message: &Message, cut: usize| {
        let bytes = message.encode();
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
        Header::decode(*header).unwrap().broken_off_chunk(&body[..cut])
    };
    let whole = Message::Chunk(ChunkBytes { id, bytes: b"chunk".to_vec() });
    assert_eq!(broken(&whole, 34), Some(ChunkRest { id, from: 0, bytes: b"ch".to_vec() }));
    assert_eq!((broken(&whole, 32), broken(&whole, 31)), (None, None), "nothing of it came");
    let rest = Message::ChunkRest(ChunkRest { id, from: 2, bytes: b"unk".to_vec() });
    assert_eq!(broken(&rest, 37), Some(ChunkRest { id, from: 2, bytes: b"u".to_vec() }));
    assert_eq!((broken(&rest, 36), broken(&Message::Offer(vec![0; 99]), 90)), (None, None));
}

#[test]
fn any_flipped_bit_is_noticed() {
    for message in messages() {
        let bytes = message.encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let noticed = match Message::decode(&flipped) {
                Err(_) => true,
                // No second sum over what is hashed: the bytes are not the chunk's any more.
                Ok(Message::Chunk(ChunkBytes { id, bytes }) | Message::ChunkRest(ChunkRest { id, bytes, .. })) => {
                    ChunkId::of(&bytes) != id
                }
                Ok(_) => false,
            };
            assert!(noticed, "{message:?}, bit {bit}");
        }
    }
}

#[test]
fn bounds_are_checked_before_the_body() {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&[20, 0, 1, 0]);
    header[8..12].copy_from_slice(&(CHUNK_BYTES_MAX as u32 + 33).to_le_bytes());
    assert!(matches!(Header::decode(header), Err(DecodeError::TooLarge { .. })));
}

#[test]
fn a_want_that_resumes_more_than_allowed_is_malformed() {
    let resume = vec![(1, 1); RESUMES_MAX + 1];
    let body = archive!(WantV1 { bitmap: vec![255; 4], resume });
    assert!(matches!(Message::decode(&forged(MessageType::Want, &body)), Err(DecodeError::Body { .. })));
}

#[test]
fn the_largest_policy_fits_and_one_beyond_its_limits_is_malformed() {
    let decode = |policy: HubPolicy| {
        let message = Message::UploadPolicy(PushedPolicy { revision: u64::MAX, policy: Some(policy) });
        (Message::decode(&message.encode()), message)
    };
    let task = |n: usize| format!("{n:0>63}").parse().unwrap();
    let largest = HubPolicy {
        windows: vec![Window::new(0, 1).unwrap(); UPLOAD_WINDOWS_MAX],
        keep_on_site_tasks: (0..KEPT_TASKS_MAX).map(task).collect(),
        ..HubPolicy::default()
    };
    let (decoded, message) = decode(largest.clone());
    assert_eq!(decoded, Ok(message));
    let refused = |policy| assert!(matches!(decode(policy).0, Err(DecodeError::Body { .. })));
    refused(HubPolicy { windows: vec![Window::new(0, 1).unwrap(); UPLOAD_WINDOWS_MAX + 1], ..largest.clone() });
    refused(HubPolicy { keep_on_site_tasks: (0..=KEPT_TASKS_MAX).map(task).collect(), ..largest.clone() });
    refused(HubPolicy { bytes_per_second_max: Some(4095), ..largest });
    let policy = HubPolicyV1 {
        metadata_first: false,
        bytes_per_second_max: None,
        bytes_per_second_max_acting: None,
        metered: false,
        windows: vec![(7, 1440)],
        keep_on_site_tasks: Vec::new(),
    };
    let body = archive!(UploadPolicyV1 { revision: 1, policy: Some(policy) });
    assert!(matches!(Message::decode(&forged(MessageType::UploadPolicy, &body)), Err(DecodeError::Body { .. })));
}

/// A message whose body was replaced, with a checksum that fits: only validation stands in the way.
fn forged(message_type: MessageType, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(message_type as u16).to_le_bytes());
    bytes.extend_from_slice(&SCHEMA.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = checksum(&bytes, summed(message_type, body));
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _message = Message::decode(&bytes);
    }

    #[test]
    fn forged_bodies_never_panic(which in 0..21_usize, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (message_type, _) = encode_body(&messages()[which]);
        let _message = Message::decode(&forged(message_type, &body));
    }

    #[test]
    fn mutated_bodies_never_panic(which in 0..21_usize, at: prop::sample::Index, value: u8) {
        let (message_type, mut body) = encode_body(&messages()[which]);
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = value;
        }
        let _message = Message::decode(&forged(message_type, &body));
    }
}
