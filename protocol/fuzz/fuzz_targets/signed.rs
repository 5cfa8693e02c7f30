//! The three signed objects: envelopes that nobody vouches for, and payloads under good signatures.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use zunft_protocol::dsse::{Envelope, SigningKey};
use zunft_protocol::limits::ENVELOPE_BYTES_MAX;
use zunft_protocol::release::{
    ASSIGNMENT_TYPE, Publisher, RELEASE_TYPE, ROOT_TYPE, ReleaseManifest, Root, Trust, verify_release,
};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_seed(&[1; 32]));
static ROOT: LazyLock<Root> = LazyLock::new(|| Root {
    tenant: "acme".parse().expect("a tenant"),
    version: 1,
    expires_unix_secs: 0,
    root_keys: vec![KEY.public()],
    root_threshold: 1,
    publishers: vec![Publisher { key: KEY.public(), skills: Vec::new() }],
    assigners: vec![KEY.public()],
});
static TRUST: LazyLock<Trust> = LazyLock::new(|| {
    Trust::pin(&ROOT.sign(&[&KEY]), "r1".parse().expect("a robot"), 0).expect("the root is signed by its own key")
});

fuzz_target!(|bytes: &[u8]| {
    let mut trust = TRUST.clone();
    if let Ok(envelope) = Envelope::parse(bytes, ENVELOPE_BYTES_MAX) {
        let _advanced = trust.advance_root(&envelope);
        let _accepted = trust.accept_assignment(&envelope, 0);
    }
    let _release = (verify_release(bytes, &ROOT), ReleaseManifest::decode(bytes));

    let signed = |payload_type| Envelope::sign(payload_type, bytes, &[&KEY]);
    let _advanced = trust.advance_root(&signed(ROOT_TYPE));
    let _accepted = trust.accept_assignment(&signed(ASSIGNMENT_TYPE), 0);
    if let Ok(manifest) = verify_release(&signed(RELEASE_TYPE).to_json(), &ROOT) {
        let _sizes = (manifest.bytes(), manifest.embodiment.id());
    }
});
