//! The spool, as an agent finds it after a crash: heads of segments, and records. Bytes as they are, and as the payload
//! of a record whose frame and checksum are right: what is read is written the same way.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../agent/src/spool"]
#[expect(dead_code, reason = "a part of the agent, without those that use it")]
mod spool {
    pub(crate) mod disk;
    pub(crate) mod record;
    pub(crate) mod seal;
    pub(crate) mod segment;

    /// As the agent has it; the rest of its recorder needs the rest of the agent.
    pub(crate) mod recorder {
        pub(crate) type StreamNumber = u16;
    }
}

use spool::record::{Next, commit_at, decode, is_damaged};

const SEQUENCE: u64 = 7;

fuzz_target!(|bytes: &[u8]| {
    let _damaged = (commit_at(bytes), is_damaged(bytes, 0, SEQUENCE, true), is_damaged(bytes, 3, SEQUENCE, false));
    if let Some(head) = bytes.first_chunk() {
        let _head = spool::segment::read_head(head);
    }
    read(bytes);
    let Some((kind, payload)) = bytes.split_first() else { return };
    let length = (payload.len() as u32).to_le_bytes();
    let mut framed = [length, [0; 4]].concat();
    framed.extend_from_slice(&SEQUENCE.to_le_bytes());
    framed.extend_from_slice(&[*kind, 0, 0, 0]);
    framed.extend_from_slice(&length);
    framed.extend_from_slice(payload);
    let sum = crc32fast::hash(&framed[8..]).to_le_bytes();
    framed[4..8].copy_from_slice(&sum);
    read(&framed);
});

fn read(bytes: &[u8]) {
    let Next::Record { record, bytes: size, body } = decode(bytes, SEQUENCE) else { return };
    assert!(body <= size && size <= bytes.len(), "a record lies inside the segment");
    let mut written = Vec::new();
    let own = record.encode(SEQUENCE, &mut written);
    assert_eq!(own, body);
    let Next::Record { record: again, .. } = decode(&written, SEQUENCE) else { panic!("what was written is read") };
    assert_eq!(again, record);
}
