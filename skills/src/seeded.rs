//! Random generators that are functions of a seed and a name.
//!
//! burn's generator is one for the whole process and cannot be saved, so it is never used: with these, any
//! draw of a run can be repeated from (seed, purpose, number) alone, in any process, on any thread.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// The generator for draw `number` of `purpose` in the run with this seed.
pub(crate) fn rng(seed: u64, purpose: &str, number: u64) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}
