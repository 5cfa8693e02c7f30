//! The demo in small: every stage real, with one robot and little training, so that a broken stage turns red here.

use std::process::Command;

#[test]
fn demo_closes_the_loop_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_zunft"))
        .args(["demo", "--robots", "2", "--starts", "2", "--demonstrations", "2", "--train-steps", "60", "--json"])
        .arg(&json)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(figures["episodes_lost"], 0, "{figures}");
    assert_eq!(figures["episodes_recorded"], figures["episodes_durable"], "{figures}");
    assert_eq!(figures["robots_on_second_release"], 2, "{figures}");
    for task in ["push", "pick-place", "weld-seam"] {
        assert_eq!(figures["tasks"][task]["success_expert"], 1.0, "{figures}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the figures are left: {left:?}");
}
