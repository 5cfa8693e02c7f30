//! An image of somebody's dataset, as it is imported: what comes out is a JPEG, or an error.

#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;

#[path = "../../../skills/src/data/lerobot/images.rs"]
mod images;

/// Height, width, channels: small, so that many are tried.
const SHAPE: [u32; 3] = [8, 8, 3];

static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    // A decoder that panics is caught where it is called; the fuzzer would end the process before.
    HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    for beginning in [&[][..], &[0xff, 0xd8], b"\x89PNG\r\n\x1a\n"] {
        let file = [beginning, bytes].concat();
        if let Ok(jpeg) = images::jpeg_of(&file, SHAPE) {
            assert_eq!(jpeg[..2], [0xff, 0xd8], "it is a JPEG");
        }
    }
});
