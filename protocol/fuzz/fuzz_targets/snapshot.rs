//! A snapshot, as it is read back from a disk: what is accepted has one encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zunft_protocol::snapshot::Snapshot;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(snapshot) = Snapshot::decode(bytes) {
        assert_eq!(snapshot.encode(), bytes, "one snapshot, one name");
    }
});
