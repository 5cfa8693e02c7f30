//! Tells the agent when it was built: no certificate or assignment is judged by an earlier time.

use std::time::{SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "a build script runs on the host that builds")]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let built = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|secs| secs.parse().ok()).unwrap_or_else(now);
    println!("cargo::rustc-env=ZUNFT_BUILD_UNIX_SECS={built}");
}
