//! An order of all windows that takes no memory: a permutation that is computed, not stored.
//!
//! A Feistel network permutes the numbers of an even count of bits; those that are no window are sent through it again
//! until they are one, which leaves a permutation of the windows.

use rand::RngExt as _;

use crate::seeded;

/// With four rounds a Feistel network looks random to whoever sees its outputs; two more cost nothing here.
const ROUNDS: usize = 6;

/// The order of one pass.
#[derive(Debug)]
pub(super) struct Order {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Order {
    /// The order of this pass through `len` windows.
    pub(super) fn of(seed: u64, pass: u64, len: u64) -> Self {
        let mut rng = seeded::rng(seed, "order of windows", pass);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| rng.random()) }
    }

    /// The window at `position`, which is below the number of windows.
    pub(super) fn at(&self, position: u64) -> u64 {
        debug_assert!(position < self.len, "a position of this pass");
        let mut window = self.permute(position);
        while window >= self.len {
            window = self.permute(window);
        }
        window
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits & mask, number & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_is_there_once() {
        for len in [1, 2, 3, 4, 5, 16, 17, 1000, 4097] {
            let order = Order::of(7, 0, len);
            let mut seen: Vec<u64> = (0..len).map(|position| order.at(position)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..len), "{len} windows");
        }
    }

    #[test]
    fn orders_differ_by_seed_and_pass_and_look_shuffled() {
        let of = |seed, pass| -> Vec<u64> {
            let order = Order::of(seed, pass, 10_000);
            (0..10_000).map(|position| order.at(position)).collect()
        };
        let first = of(1, 0);
        assert_eq!(first, of(1, 0));
        assert!(first != of(2, 0) && first != of(1, 1));
        // A shuffled order rises about as often as it falls, and neighbours are a third of its length apart.
        let rises = first.windows(2).filter(|pair| pair[1] > pair[0]).count();
        assert!((4_700..5_300).contains(&rises), "{rises}");
        let apart: u64 = first.windows(2).map(|pair| pair[0].abs_diff(pair[1])).sum::<u64>() / 9_999;
        assert!((3_200..3_470).contains(&apart), "{apart}");
    }
}
