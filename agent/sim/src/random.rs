//! Randomness that is the same on every machine: ChaCha streams and floats made from their bits.
//!
//! Floats are built here from raw words, so that no other crate's sampling algorithm is part of what a seed means.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Which of a seed's streams to draw from; streams of one seed never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream {
    /// What the stream is for.
    pub(crate) purpose: u8,
    /// The robot that draws, or zero.
    pub(crate) robot: u16,
    /// The number of the episode within the purpose and robot.
    pub(crate) index: u32,
}

/// A reproducible source of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Randomness(ChaCha8Rng);

impl Randomness {
    pub(crate) fn new(seed: u64, stream: Stream) -> Self {
        let mut key = *b"zunft-sim randomness............";
        key[24..].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(u64::from(stream.purpose) << 48 | u64::from(stream.robot) << 32 | u64::from(stream.index));
        Self(generator)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)`, in steps of 2^-24.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in `[low, high)`.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `[-bound, bound)`.
    pub(crate) fn within(&mut self, bound: f32) -> f32 {
        self.between(-bound, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(seed: u64, stream: Stream) -> Vec<u64> {
        let mut randomness = Randomness::new(seed, stream);
        (0..4).map(|_| randomness.word()).collect()
    }

    #[test]
    fn same_seed_and_stream_repeat_and_others_differ() {
        let stream = Stream { purpose: 1, robot: 2, index: 3 };
        assert_eq!(words(7, stream), words(7, stream));
        assert_ne!(words(7, stream), words(8, stream));
        assert_ne!(words(7, stream), words(7, Stream { index: 4, ..stream }));
        assert_ne!(words(7, stream), words(7, Stream { robot: 3, ..stream }));
        assert_ne!(words(7, stream), words(7, Stream { purpose: 2, ..stream }));
    }
}
