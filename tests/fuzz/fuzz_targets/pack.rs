//! A pack, as the hub finds it on a disk: what its directory says lies inside it. Bytes as they are, and as the
//! directory of a pack whose frame and hash are right.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../hub/src/store/pack.rs"]
#[expect(dead_code, reason = "a part of the hub, without those that use it")]
mod pack;

use pack::Directory;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let (&entries, directory) = bytes.split_first().unwrap_or((&0, &[]));
    let mut framed = b"ZNPK\x01\0\0\0".to_vec();
    framed.resize(framed.len() + usize::from(entries), 7);
    framed.extend_from_slice(directory);
    framed.extend_from_slice(&(directory.len() as u64).to_le_bytes());
    framed.extend_from_slice(blake3::hash(directory).as_bytes());
    framed.extend_from_slice(b"ZNPKEND1");
    read(&framed);
});

fn read(pack: &[u8]) {
    let Ok((directory, _name)) = Directory::read(pack) else { return };
    for entry in directory.entries {
        let end = entry.position + u64::from(entry.bytes);
        assert!(end <= pack.len() as u64, "an entry lies inside the pack");
    }
}
