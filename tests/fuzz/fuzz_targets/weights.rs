//! The weights of a skill package, as a robot reads them before it runs them: what is accepted is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../skills/src/weights.rs"]
#[expect(dead_code, reason = "a part of the skills, without those that use it")]
mod weights;

use weights::{WeightDtype, Weights};

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    // With its length before it, a header is tried and not its length.
    let (header, values) = bytes.split_at(bytes.len().saturating_sub(8));
    read(&[&(header.len() as u64).to_le_bytes(), header, values].concat());
});

fn read(bytes: &[u8]) {
    let Ok(weights) = Weights::from_safetensors(bytes) else { return };
    let count: usize = weights.iter().map(|(_, tensor)| tensor.values.len()).sum();
    assert_eq!(weights.parameters(), count);
    let again = Weights::from_safetensors(&weights.to_safetensors(WeightDtype::F32)).expect("its own bytes are read");
    assert_eq!(again.parameters(), count);
}
