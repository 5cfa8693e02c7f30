//! Everything that is parsed: bytes from outside never panic, and what we write we read back as it was.
//!
//! The same decoders, without these shapes, are fuzzed in protocol/fuzz.

#![expect(clippy::unwrap_used, reason = "in a property, what does not decode is the failure")]

mod strategies;

use proptest::prelude::*;
use zunft_protocol::chunk::{Chunk, ChunkBuilder, Sample, SampleChunk, SampleChunkBuilder, Schema};
use zunft_protocol::dsse::{Envelope, SigningKey};
use zunft_protocol::embodiment::Encoding;
use zunft_protocol::episode::Manifest;
use zunft_protocol::hello::{Hello, HelloAnswer};
use zunft_protocol::ids::ReleaseId;
use zunft_protocol::limits::ENVELOPE_BYTES_MAX;
use zunft_protocol::local;
use zunft_protocol::message::Message;
use zunft_protocol::message::codec::{HEADER_BYTES, Header};
use zunft_protocol::release::{
    ASSIGNMENT_TYPE, Assignment, RELEASE_TYPE, ROOT_TYPE, ReleaseManifest, Root, Trust, verify_release,
};
use zunft_protocol::snapshot::Snapshot;
use zunft_protocol::upload_policy::PushedPolicy;

use strategies::{
    Mutation, act, assignment, begin, bytes, embodiment, encoding, manifest, message, mutations, release_manifest,
    root, seed, snapshot,
};

/// Gives the bytes to every decoder there is.
fn decode_everything(bytes: &[u8]) {
    let _hello = bytes.first_chunk().map(|bytes| (Hello::decode(*bytes), HelloAnswer::decode(*bytes)));
    let _header = bytes.first_chunk::<HEADER_BYTES>().map(|bytes| Header::decode(*bytes));
    let _message = Message::decode(bytes);
    let _envelope = Envelope::parse(bytes, ENVELOPE_BYTES_MAX);
    let _root = serde_json::from_slice::<Root>(bytes);
    let _assignment = serde_json::from_slice::<Assignment>(bytes);
    let _policy = serde_json::from_slice::<PushedPolicy>(bytes);
    if let Ok(manifest) = ReleaseManifest::decode(bytes) {
        let _id = (manifest.embodiment.id(), manifest.bytes());
    }
    if let Ok(manifest) = Manifest::decode(bytes) {
        // One episode, one name: no other bytes may say the same.
        assert_eq!(manifest.encode(), bytes);
        for stream in &manifest.streams {
            let _chunk = Chunk::decode(bytes, &stream.schema);
        }
    }
    for encoding in [Encoding::Jpeg, Encoding::H264] {
        let _chunk = SampleChunk::decode(bytes, encoding);
    }
    if let Ok(snapshot) = Snapshot::decode(bytes) {
        assert_eq!(snapshot.encode(), bytes);
    }
    decode_local(bytes);
}

fn decode_local(bytes: &[u8]) {
    let _greeting =
        bytes.first_chunk().map(|bytes| (local::answer_greeting(*bytes), local::read_agent_greeting(*bytes)));
    let _header = bytes.first_chunk().map(|bytes| local::Header::decode(*bytes));
    let _step = local::Step::decode(bytes);
    let _sample = local::Sample::decode(bytes);
    let _act = local::Act::decode(bytes);
    let _action = local::Action::decode(bytes);
    let _progress = local::Progress::decode(bytes);
    if let Ok(begin) = serde_json::from_slice::<local::Begin>(bytes)
        && begin.embodiment.check().is_ok()
    {
        let _id = (begin.embodiment.id(), begin.embodiment.step_bytes());
    }
    let _end = serde_json::from_slice::<local::End>(bytes);
    let _event = serde_json::from_slice::<local::Event>(bytes);
}

/// Gives every mutation of `bytes`, each on top of the ones before, to every decoder.
fn mutate_and_decode(mut bytes: Vec<u8>, mutations: &[Mutation]) {
    for mutation in mutations {
        mutation.apply(&mut bytes);
        decode_everything(&bytes);
    }
}

/// A chunk of as many steps as `values`, each of which fills its step.
fn chunk(schema: &Schema, values: &[u8]) -> Vec<u8> {
    let mut builder = ChunkBuilder::new(schema.clone());
    values.iter().for_each(|&value| builder.push(&vec![value; schema.step_bytes()]));
    builder.finish().unwrap().0
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in bytes(600)) {
        decode_everything(&bytes);
    }

    #[test]
    fn episode_manifests_come_back(manifest in manifest(), mutations in mutations()) {
        let bytes = manifest.encode();
        prop_assert_eq!(&Manifest::decode(&bytes).unwrap(), &manifest);
        mutate_and_decode(bytes, &mutations);
    }

    #[test]
    fn snapshots_come_back(snapshot in snapshot(), mutations in mutations()) {
        let bytes = snapshot.encode();
        prop_assert_eq!(&Snapshot::decode(&bytes).unwrap(), &snapshot);
        mutate_and_decode(bytes, &mutations);
    }

    #[test]
    fn chunks_of_any_body_come_back(embodiment in embodiment(), values in prop::collection::vec(any::<u8>(), 1..40), mutations in mutations()) {
        let schema = Schema::steps(&embodiment);
        let mut stored = chunk(&schema, &values);
        let chunk = Chunk::decode(&stored, &schema).unwrap();
        prop_assert_eq!(chunk.steps() as usize, values.len());
        for column in &schema.columns {
            let expected: Vec<u8> = values.iter().flat_map(|&value| vec![value; column.step_bytes()]).collect();
            prop_assert_eq!(chunk.column(&column.name).unwrap(), expected);
        }
        for mutation in &mutations {
            mutation.apply(&mut stored);
            let _chunk = Chunk::decode(&stored, &schema);
        }
    }

    #[test]
    fn images_come_back(
        encoding in encoding(),
        images in prop::collection::vec((any::<i64>(), any::<bool>(), prop::collection::vec(any::<u8>(), 1..40)), 1..40),
        mutations in mutations(),
    ) {
        let mut builder = SampleChunkBuilder::new(encoding);
        for (monotonic_ns, key_frame, bytes) in &images {
            builder.push(&Sample { monotonic_ns: *monotonic_ns, key_frame: *key_frame, bytes });
        }
        let mut stored = builder.finish().unwrap().0;
        let chunk = SampleChunk::decode(&stored, encoding).unwrap();
        prop_assert_eq!(chunk.samples().len(), images.len());
        for (found, (monotonic_ns, key_frame, bytes)) in chunk.samples().iter().zip(&images) {
            let key_frame = *key_frame || encoding == Encoding::Jpeg;
            prop_assert_eq!(found, &Sample { monotonic_ns: *monotonic_ns, key_frame, bytes });
        }
        for mutation in &mutations {
            mutation.apply(&mut stored);
            if let Ok(chunk) = SampleChunk::decode(&stored, encoding) {
                let bytes: usize = chunk.samples().iter().map(|sample| sample.bytes.len()).sum();
                prop_assert!(bytes < stored.len());
            }
        }
    }

    #[test]
    fn release_manifests_come_back(manifest in release_manifest(), mutations in mutations()) {
        let bytes = manifest.encode();
        prop_assert_eq!(&ReleaseManifest::decode(&bytes).unwrap(), &manifest);
        mutate_and_decode(bytes, &mutations);
    }

    #[test]
    fn signed_objects_come_back_and_nothing_altered_is_accepted(
        (root, assignment, manifest) in (root(), assignment(), release_manifest()),
        mutations in mutations(),
    ) {
        let (owner, publisher, assigner) = (seed(1), seed(2), seed(3));
        let signed = root.sign(&[&owner]);
        let robot = assignment.robot.clone();
        let mut trust = Trust::pin(&signed, robot, 0).unwrap();
        prop_assert_eq!(trust.root(), &root);
        let envelope = assignment.sign(&assigner);
        prop_assert_eq!(&trust.accept_assignment(&envelope, 0).unwrap(), &assignment);
        let release = Envelope::sign(RELEASE_TYPE, &manifest.encode(), &[&publisher]);
        prop_assert_eq!(verify_release(&release.to_json(), &root).unwrap(), manifest);

        for (mut bytes, payload_type) in
            [(signed.to_json(), ROOT_TYPE), (envelope.to_json(), ASSIGNMENT_TYPE), (release.to_json(), RELEASE_TYPE)]
        {
            let payload = Envelope::parse(&bytes, bytes.len()).unwrap().payload;
            for mutation in &mutations {
                mutation.apply(&mut bytes);
                decode_everything(&bytes);
                let Ok(found) = Envelope::parse(&bytes, ENVELOPE_BYTES_MAX) else { continue };
                let keys = [owner.public(), publisher.public(), assigner.public()];
                if found.verify(payload_type, &keys, 1).is_ok() {
                    prop_assert_eq!(&found.payload, &payload);
                }
            }
        }
    }

    #[test]
    fn payloads_that_are_signed_but_malformed_never_panic(payload in bytes(300), mutations in mutations(), root in root()) {
        // A key holder may be careless or worse: a good signature says nothing about the bytes.
        let keys = [seed(1), seed(2), seed(3)];
        let signers: Vec<&SigningKey> = keys.iter().collect();
        let mut root_json = serde_json::to_vec(&root).unwrap();
        mutations.iter().for_each(|mutation| mutation.apply(&mut root_json));
        for payload in [payload, root_json] {
            let signed = |payload_type| Envelope::sign(payload_type, &payload, &signers);
            let robot: zunft_protocol::RobotId = "r1".parse().unwrap();
            let _pinned = Trust::pin(&signed(ROOT_TYPE), robot.clone(), 0);
            let mut trust = Trust::pin(&root.sign(&signers), robot, 0).unwrap();
            let _advanced = trust.advance_root(&signed(ROOT_TYPE));
            let _assignment = trust.accept_assignment(&signed(ASSIGNMENT_TYPE), 0);
            let _release = verify_release(&signed(RELEASE_TYPE).to_json(), &root);
        }
    }

    #[test]
    fn messages_come_back(message in message(), mutations in mutations()) {
        let bytes = message.encode();
        prop_assert_eq!(&Message::decode(&bytes).unwrap(), &message);
        mutate_and_decode(bytes, &mutations);
    }

    #[test]
    fn policies_come_back(pushed in strategies::pushed_policy(), mutations in mutations()) {
        let body = serde_json::to_vec(&pushed).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<PushedPolicy>(&body).unwrap(), &pushed);
        mutate_and_decode(body, &mutations);
    }

    #[test]
    fn hellos_come_back(version_min: u16, version_max: u16) {
        let hello = Hello { version_min, version_max };
        prop_assert_eq!(Hello::decode(hello.encode()).unwrap(), hello);
        if let Ok(answer) = hello.choose() {
            prop_assert_eq!(HelloAnswer::decode(answer.encode()).unwrap(), answer);
        }
    }

    #[test]
    fn local_frames_come_back(act in act(), begin in begin(), mutations in mutations()) {
        let mut body = Vec::new();
        act.encode(&mut body);
        let mut again = Vec::new();
        local::Act::decode(&body).unwrap().encode(&mut again);
        // Bytes, since not a number is not equal to itself.
        prop_assert_eq!(&again, &body);
        mutate_and_decode(body, &mutations);

        let body = serde_json::to_vec(&begin).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<local::Begin>(&body).unwrap(), &begin);
        mutate_and_decode(body, &mutations);
    }

    #[test]
    fn local_steps_come_back(monotonic_ns: u64, reward: f32, intervention: bool, features in bytes(100), mutations in mutations()) {
        let step = local::Step { monotonic_ns, reward, intervention, features: &features };
        let mut body = Vec::new();
        step.encode(&mut body);
        let mut again = Vec::new();
        local::Step::decode(&body).unwrap().encode(&mut again);
        prop_assert_eq!(&again, &body);
        mutate_and_decode(body, &mutations);
    }

    #[test]
    fn releases_are_read_as_they_are_written(release in strategies::release_id(), text in ".*") {
        prop_assert_eq!(&release.to_string().parse::<ReleaseId>().unwrap(), &release);
        let _release = text.parse::<ReleaseId>();
    }
}
