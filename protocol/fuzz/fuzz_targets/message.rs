//! Hello and messages between robot and hub; the checksum is made to fit, so that bodies are reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zunft_protocol::hello::{Hello, HelloAnswer};
use zunft_protocol::message::Message;
use zunft_protocol::message::codec::HEADER_BYTES;

fuzz_target!(|bytes: &[u8]| {
    if let Some(hello) = bytes.first_chunk() {
        let _answer = Hello::decode(*hello).map(|hello| hello.choose());
        let _version = HelloAnswer::decode(*hello);
    }
    check(bytes);
    if bytes.len() >= HEADER_BYTES {
        let mut fitting = bytes.to_vec();
        let body_bytes = (bytes.len() - HEADER_BYTES) as u32;
        fitting[2..8].copy_from_slice(&[1, 0, 0, 0, 0, 0]);
        fitting[8..12].copy_from_slice(&body_bytes.to_le_bytes());
        let crc = checksum(&fitting);
        fitting[12..16].copy_from_slice(&crc.to_le_bytes());
        check(&fitting);
    }
});

fn check(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message));
        if let Message::Want(want) = &message {
            let _count = (want.count(), want.contains(usize::MAX));
        }
    }
}

/// CRC-32 (IEEE) of the header's first twelve bytes and the body.
fn checksum(message: &[u8]) -> u32 {
    let bytes = message[..12].iter().chain(&message[HEADER_BYTES..]);
    !bytes.fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
