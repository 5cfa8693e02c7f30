//! Real agents over links that are slow, far, lossy, and that move: every episode arrives, once and as it was.

use std::path::Path;
use std::time::Duration;

use zunft_tests::link::{LinkConfig, RUNGS};
use zunft_tests::world::{World, wait_for};

/// Nothing here takes half as long, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(240);

fn world(upload: &str) -> World {
    World::start(Path::new(env!("CARGO_BIN_EXE_zunft-test-node")), upload).unwrap()
}

fn rung(name: &str) -> LinkConfig {
    RUNGS.into_iter().find(|rung| rung.name == name).unwrap()
}

/// Waits until so many UDP bytes have left the robot.
fn wait_for_bytes(world: &World, bytes: u64) {
    wait_for("the upload to get on", PATIENCE, || Ok((world.relay.bytes_from_robot() >= bytes).then_some(()))).unwrap();
}

/// Records six episodes of `bytes` in all, changes the robot's address in the middle, and waits for all of them.
fn every_episode_arrives_over(name: &str, bytes: u64) {
    let mut world = world("");
    world.relay.shape(rung(name), 5);
    world.start_agent().unwrap();
    let mut recorded = world.record(bytes, bytes / 6).unwrap();
    wait_for_bytes(&world, bytes / 3);
    world.relay.change_address().unwrap();
    world.wait_until_uploaded(PATIENCE).unwrap();
    let mut held = world.held().unwrap();
    recorded.sort_unstable();
    held.sort_unstable();
    assert_eq!(held, recorded, "{name}");
}

#[test]
fn every_episode_arrives_over_good_wifi_from_a_changing_address() {
    every_episode_arrives_over("good-wifi", 10_000_000);
}

#[test]
fn every_episode_arrives_over_a_weak_cell_from_a_changing_address() {
    every_episode_arrives_over("weak-4g", 1_000_000);
}

#[test]
fn every_episode_arrives_over_a_barely_usable_link_from_a_changing_address() {
    every_episode_arrives_over("barely-usable", 150_000);
}

#[test]
fn an_agent_killed_inside_a_chunk_sends_the_rest_of_it_and_no_more() {
    let mut world = world("bytes_per_second_max = 100000");
    world.relay.cut(true);
    world.start_agent().unwrap();
    // One chunk: what is kept of it is kept by the byte.
    let recorded = world.record(240_000, 240_000).unwrap();
    let stored = world.number("/spool/bytes_waiting").unwrap() as u64;
    world.relay.cut(false);
    wait_for_bytes(&world, stored * 3 / 4);
    world.kill_agent().unwrap();
    world.start_agent().unwrap();
    world.wait_until_uploaded(PATIENCE).unwrap();
    assert_eq!(world.held().unwrap(), recorded);
    let sent = world.relay.bytes_from_robot();
    assert!(sent > stored && sent < stored * 5 / 4, "{sent} bytes for a chunk of {stored}, sent three quarters before");
}

#[test]
fn an_agent_that_a_router_forgot_goes_on_from_another_port() {
    let mut world = world("bytes_per_second_max = 200000");
    world.start_agent().unwrap();
    let recorded = world.record(1_000_000, 1_000_000).unwrap();
    wait_for_bytes(&world, 300_000);
    world.relay.forget_robot();
    world.wait_until_uploaded(PATIENCE).unwrap();
    assert_eq!(world.held().unwrap(), recorded);
    assert!(world.number("/hub/port_changes").unwrap() >= 1.0, "the connection was given up instead");
}
