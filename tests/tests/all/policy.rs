//! Upload policy and requests for episodes, said at the hub's HTTP API: robots obey, also when a process was killed.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use zunft_client::{Robot, Step};
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::local::{Begin, BeginActor};
use zunft_protocol::{Embodiment, EpisodeEnd, EpisodeId, Outcome};

use crate::fleet::{Fleet, eventually};

fn record(robot: &mut Robot, task: &str) -> EpisodeId {
    let features = vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)];
    let embodiment = Embodiment { name: "probe".into(), rate_hz: 50.0, features };
    robot.begin(&Begin { task: task.parse().unwrap(), embodiment, actor: BeginActor::Script }).unwrap();
    for time in 1..=20 {
        let (state, action) = ([time as f32, 0.5], [1.0_f32]);
        let values = &[(&state).into(), (&action).into()];
        robot.step(&Step { monotonic_ns: time, reward: None, intervention: false, values }).unwrap();
    }
    robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap().episode
}

/// Waits until the hub knows that a robot keeps to a revision.
fn wait_until_applied(fleet: &Fleet, robot: &str, changed: &Value) {
    eventually("the robot says that it keeps to the policy", || {
        let shown = fleet.ask("GET", &format!("/v1/robots/{robot}"), &Value::Null);
        let policy = &shown["upload_policy"];
        assert_eq!(policy["revision"], changed["revision"], "{shown}");
        (policy["applied_revision"] == policy["revision"]).then_some(())
    });
}

fn kept(count: u64) -> impl Fn(&Value) -> bool {
    move |status| status["hub"]["episodes_kept_on_site"] == count
}

#[test]
fn a_policy_said_at_the_hub_holds_on_its_robot_through_kills_until_it_is_cleared() {
    let mut fleet = Fleet::start_with_api(2);
    let keep = json!({"keep_on_site_tasks": ["weld"], "bytes_per_second_max": 10_000_000});
    let set = fleet.ask("PUT", "/v1/robots/r0/upload-policy", &keep);
    wait_until_applied(&fleet, "r0", &set);
    let mut recorded = vec![record(&mut fleet.robot(0), "weld"), record(&mut fleet.robot(0), "push")];
    recorded.push(record(&mut fleet.robot(1), "weld"));
    fleet.wait_for_status(0, "the episode stays", kept(1));
    fleet.wait_for_status(0, "the other one goes", |status| status["spool"]["episodes_waiting"] == 1);
    fleet.wait_until_uploaded(1);

    // Without the hub the robot comes back with the policy that it heard.
    fleet.kill_hub();
    fleet.kill_agent(0);
    fleet.start_agent(0);
    let in_force = |status: &Value| status["hub"]["upload_policy"].clone();
    let policy = in_force(&fleet.robot(0).status().unwrap());
    assert_eq!((&policy["source"], &policy["revision"]), (&json!("hub"), &set["revision"]));
    assert_eq!(
        (&policy["keep_on_site_tasks"], &policy["bytes_per_second_max"]),
        (&json!(["weld"]), &json!(10_000_000))
    );
    recorded.push(record(&mut fleet.robot(0), "weld"));
    fleet.start_hub();
    fleet.wait_for_status(0, "both stay", kept(2));

    // What all robots may is not this one's business, as long as it has a policy of its own.
    let all = fleet.ask("PUT", "/v1/upload-policy", &json!({"metered": true}));
    wait_until_applied(&fleet, "r1", &all);
    wait_until_applied(&fleet, "r0", &all);
    assert_eq!(in_force(&fleet.robot(1).status().unwrap())["metered"], true);
    assert_eq!(in_force(&fleet.robot(0).status().unwrap())["keep_on_site_tasks"], json!(["weld"]));
    assert_eq!(fleet.robot(0).status().unwrap()["spool"]["episodes_waiting"], 2);

    fleet.ask("DELETE", "/v1/robots/r0/upload-policy", &Value::Null);
    let cleared = fleet.ask("DELETE", "/v1/upload-policy", &Value::Null);
    wait_until_applied(&fleet, "r0", &cleared);
    fleet.wait_until_uploaded(0);
    assert_eq!(in_force(&fleet.robot(0).status().unwrap())["source"], "config");
    let mut stored: Vec<EpisodeId> = fleet.stored().iter().map(|stored| stored.manifest.id()).collect();
    stored.sort();
    recorded.sort();
    assert_eq!(stored, recorded);
}

#[test]
fn metadata_first_leaves_episodes_on_their_robot_until_they_are_asked_for() {
    let mut fleet = Fleet::start_with_api(1);
    let set = fleet.ask("PUT", "/v1/upload-policy", &json!({"mode": "metadata-first"}));
    wait_until_applied(&fleet, "r0", &set);
    let episodes: Vec<EpisodeId> = (0..3).map(|_| record(&mut fleet.robot(0), "push")).collect();
    let noted = |fleet: &Fleet| {
        let listed = fleet.ask("GET", "/v1/noted-episodes", &Value::Null);
        let states = listed["items"].as_array().unwrap().iter();
        states
            .map(|item| (item["ordinal"].as_u64().unwrap(), item["state"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let of = |states: &[(u64, &str)]| {
        states.iter().map(|&(ordinal, state)| (ordinal, state.to_owned())).collect::<Vec<(u64, String)>>()
    };
    let wait_for_notes = |fleet: &Fleet, states: &[(u64, &str)]| {
        eventually("the hub knows", || (noted(fleet) == of(states)).then_some(()));
    };
    wait_for_notes(&fleet, &[(0, "noted"), (1, "noted"), (2, "noted")]);
    fleet.wait_for_status(0, "nothing left", |status| status["hub"]["episodes_noted"] == 3);
    assert_eq!(fleet.ask("GET", "/v1/episodes", &Value::Null)["items"], json!([]), "known is not held");
    assert_eq!(fleet.robot(0).status().unwrap()["spool"]["episodes_waiting"], 3);
    assert_eq!(fleet.robot(0).status().unwrap()["hub"]["bytes_uploaded"], 0);

    fleet.tell("POST", "/v1/noted-episodes/request", &json!({"episodes": [episodes[1]]}));
    wait_for_notes(&fleet, &[(0, "noted"), (2, "noted")]);
    fleet.wait_for_status(0, "one is safe", |status| status["spool"]["episodes_waiting"] == 2);

    // A robot that is away is asked when it is back.
    fleet.kill_agent(0);
    fleet.tell("POST", "/v1/noted-episodes/request", &json!({"episodes": [episodes[2]]}));
    wait_for_notes(&fleet, &[(0, "noted"), (2, "requested")]);
    fleet.start_agent(0);
    wait_for_notes(&fleet, &[(0, "noted")]);
    fleet.wait_for_status(0, "two are safe", |status| status["spool"]["episodes_waiting"] == 1);
    let stored: BTreeSet<EpisodeId> = fleet.stored().iter().map(|stored| stored.manifest.id()).collect();
    assert_eq!(stored, [episodes[1], episodes[2]].into());
}
