//! An episode's manifest, as a hub receives it: what is accepted has one encoding, and can be used.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zunft_protocol::episode::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes, "one episode, one name");
        let _sizes = (manifest.bytes(), manifest.chunks().count(), manifest.embodiment.id());
    }
});
