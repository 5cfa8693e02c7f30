//! The hub's signed word that an episode is durable.
//!
//! Episodes become durable in groups, and a group is signed once: the signature is over the root of a hash tree whose
//! leaves are the group's episodes, and each receipt carries the hashes from its leaf to the root. It proves what it
//! says without the others', and says nothing of them. (Merkle, "A digital signature based on a conventional encryption
//! function", 1987; leaves and nodes are hashed differently, as in RFC 9162, so neither can pass for the other.)

use std::collections::VecDeque;

use crate::TenantId;
use crate::dsse::{PublicKey, SigningKey};
use crate::ids::{Digest, EpisodeId, KeyId};
use crate::limits::RECEIPT_PATH_MAX;

/// Signatures that a robot remembers to have verified: those of groups whose receipts arrive at the same time.
const VERIFIED_MAX: usize = 8;

/// The hub's signed word that an episode is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Which episode.
    pub episode: EpisodeId,
    /// The hub's time when it became durable.
    pub stored_unix_secs: u64,
    /// From the episode's leaf to the root of its group; none where it was alone.
    pub path: Vec<Beside>,
    /// Which assigner key signed.
    pub key: KeyId,
    /// Ed25519 over tag, tenant, root and time.
    pub signature: [u8; 64],
}

/// A neighbour on the way to the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// It stands left of us.
    Left(Digest),
    /// It stands right of us.
    Right(Digest),
}

impl Receipt {
    /// Signs a receipt for one episode.
    pub fn sign(tenant: &TenantId, episode: EpisodeId, stored_unix_secs: u64, key: &SigningKey) -> Self {
        Self::sign_all(tenant, &[episode], stored_unix_secs, key).remove(0)
    }

    /// Signs one receipt for each of the episodes, in their order.
    ///
    /// # Panics
    /// On more than 2 to the power of [`RECEIPT_PATH_MAX`] episodes.
    pub fn sign_all(tenant: &TenantId, episodes: &[EpisodeId], stored_unix_secs: u64, key: &SigningKey) -> Vec<Self> {
        let mut level: Vec<Digest> = episodes.iter().map(|&episode| leaf(episode)).collect();
        let mut paths = vec![Vec::new(); episodes.len()];
        let mut depth = 0;
        while level.len() > 1 {
            for (index, path) in paths.iter_mut().enumerate() {
                let own = index >> depth;
                // A last one without a neighbour goes up as it is.
                if let Some(&beside) = level.get(own ^ 1) {
                    path.push(if own % 2 == 0 { Beside::Right(beside) } else { Beside::Left(beside) });
                }
            }
            level = level
                .chunks(2)
                .map(|pair| if let [left, right] = pair { node(left, right) } else { pair[0] })
                .collect();
            depth += 1;
        }
        assert!(depth <= RECEIPT_PATH_MAX, "a group is bounded by the size of a pack");
        let Some(root) = level.first() else { return Vec::new() };
        let signature = key.sign(&signed_bytes(tenant, root, stored_unix_secs));
        let key = key.public().id();
        let receipts = episodes.iter().zip(paths);
        receipts.map(|(&episode, path)| Self { episode, stored_unix_secs, path, key, signature }).collect()
    }

    /// Whether one of `keys` signed it for `tenant`.
    pub fn verify(&self, tenant: &TenantId, keys: &[PublicKey]) -> bool {
        let bytes = signed_bytes(tenant, &self.root(), self.stored_unix_secs);
        keys.iter().any(|key| key.id() == self.key && key.verifies(&bytes, &self.signature))
    }

    fn root(&self) -> Digest {
        self.path.iter().fold(leaf(self.episode), |own, beside| match beside {
            Beside::Left(left) => node(left, &own),
            Beside::Right(right) => node(&own, right),
        })
    }
}

/// Verifies a robot's receipts; a group's signature is verified once.
#[derive(Debug)]
pub struct ReceiptVerifier {
    tenant: TenantId,
    keys: Vec<PublicKey>,
    verified: VecDeque<Verified>,
}

/// What a signature was found to be over.
#[derive(Debug, PartialEq, Eq)]
struct Verified {
    root: Digest,
    stored_unix_secs: u64,
    key: KeyId,
    signature: [u8; 64],
}

impl ReceiptVerifier {
    /// Believes what one of `keys` signed for `tenant`.
    pub fn new(tenant: TenantId, keys: Vec<PublicKey>) -> Self {
        Self { tenant, keys, verified: VecDeque::with_capacity(VERIFIED_MAX) }
    }

    /// Believes other keys from now on, and none of the old.
    pub fn trust(&mut self, keys: Vec<PublicKey>) {
        self.keys = keys;
        self.verified.clear();
    }

    /// Whether it is one.
    pub fn verify(&mut self, receipt: &Receipt) -> bool {
        let &Receipt { stored_unix_secs, key, signature, .. } = receipt;
        let says = Verified { root: receipt.root(), stored_unix_secs, key, signature };
        if self.verified.contains(&says) {
            return true;
        }
        let valid = receipt.verify(&self.tenant, &self.keys);
        if valid {
            self.verified.truncate(VERIFIED_MAX - 1);
            self.verified.push_front(says);
        }
        valid
    }
}

fn leaf(episode: EpisodeId) -> Digest {
    Digest::from_bytes(blake3::derive_key("zunft receipt v2 leaf", episode.as_bytes()))
}

fn node(left: &Digest, right: &Digest) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("zunft receipt v2 node");
    hasher.update(left.as_bytes()).update(right.as_bytes());
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// What is signed: a tag, the tenant, the group's root and the time.
fn signed_bytes(tenant: &TenantId, root: &Digest, stored_unix_secs: u64) -> Vec<u8> {
    let mut bytes = b"zunft receipt v2\0".to_vec();
    bytes.extend_from_slice(tenant.as_str().as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(root.as_bytes());
    bytes.extend_from_slice(&stored_unix_secs.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [SigningKey; 2] {
        [1, 2].map(|seed| SigningKey::from_seed(&[seed; 32]))
    }

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn episodes(count: u64) -> Vec<EpisodeId> {
        (0..count).map(|n| EpisodeId::of(&n.to_le_bytes())).collect()
    }

    #[test]
    fn receipts_hold_for_their_tenant_and_episode_only() {
        let ([key, other], tenant) = (keys(), tenant());
        let receipt = Receipt::sign(&tenant, EpisodeId::of(b"e"), 7, &key);
        assert!(receipt.verify(&tenant, &[other.public(), key.public()]));
        assert!(!receipt.verify(&tenant, &[other.public()]));
        assert!(!receipt.verify(&"evil".parse().unwrap(), &[key.public()]));
        assert!(!Receipt { episode: EpisodeId::of(b"f"), ..receipt.clone() }.verify(&tenant, &[key.public()]));
        assert!(!Receipt { stored_unix_secs: 8, ..receipt }.verify(&tenant, &[key.public()]));
    }

    #[test]
    fn every_receipt_of_a_group_of_any_size_holds_alone_and_for_no_other_episode() {
        let ([key, _], tenant) = (keys(), tenant());
        for count in 0..=20 {
            let receipts = Receipt::sign_all(&tenant, &episodes(count), 7, &key);
            assert_eq!(receipts.len() as u64, count);
            for (receipt, episode) in receipts.iter().zip(episodes(count)) {
                assert_eq!(receipt.episode, episode);
                assert!(receipt.verify(&tenant, &[key.public()]), "{receipt:?} of {count}");
                let other = Receipt { episode: EpisodeId::of(b"other"), ..receipt.clone() };
                assert!(!other.verify(&tenant, &[key.public()]));
                if !receipt.path.is_empty() {
                    let shorter = Receipt { path: receipt.path[1..].to_vec(), ..receipt.clone() };
                    assert!(!shorter.verify(&tenant, &[key.public()]));
                }
            }
        }
    }

    #[test]
    fn a_node_passes_for_no_episode() {
        let ([key, _], tenant) = (keys(), tenant());
        let receipt = &Receipt::sign_all(&tenant, &episodes(4), 7, &key)[0];
        let Beside::Right(beside) = receipt.path[0] else { panic!("the first has its neighbour on the right") };
        let inner = node(&leaf(receipt.episode), &beside);
        let forged = Receipt {
            episode: EpisodeId::from_bytes(*inner.as_bytes()),
            path: receipt.path[1..].to_vec(),
            ..receipt.clone()
        };
        assert!(!forged.verify(&tenant, &[key.public()]));
    }

    #[test]
    fn what_was_verified_is_remembered_for_its_group_alone_and_forgotten_with_its_key() {
        let ([key, other], tenant) = (keys(), tenant());
        let mut verifier = ReceiptVerifier::new(tenant.clone(), vec![key.public()]);
        for _ in 0..2 * VERIFIED_MAX {
            for receipt in Receipt::sign_all(&tenant, &episodes(5), 7, &key) {
                assert!(verifier.verify(&receipt));
                assert!(!verifier.verify(&Receipt { episode: EpisodeId::of(b"other"), ..receipt.clone() }));
                assert!(!verifier.verify(&Receipt { stored_unix_secs: 8, ..receipt.clone() }));
                assert!(!verifier.verify(&Receipt { signature: [0; 64], ..receipt }));
            }
        }
        let receipt = Receipt::sign(&tenant, EpisodeId::of(b"e"), 7, &key);
        assert!(verifier.verify(&receipt));
        verifier.trust(vec![other.public()]);
        assert!(!verifier.verify(&receipt));
    }
}
