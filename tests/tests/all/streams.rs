//! Cameras and a fast sensor beside the steps, from a control program through a real agent into a real hub.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use zunft_client::{Data, Encoding, Step, Values};
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::Truncation;
use zunft_protocol::local::{Begin, BeginActor};
use zunft_protocol::{Embodiment, EpisodeEnd, Outcome};

use crate::fleet::Fleet;

const CAMERAS: [(&str, Encoding); 3] = [("left", Encoding::Jpeg), ("right", Encoding::Jpeg), ("wrist", Encoding::H264)];
const FORCE: &str = "observation.force";

fn begin() -> Begin {
    let cameras = CAMERAS.iter().map(|(name, encoding)| Feature::camera(name, 480, 640, 30.0, *encoding));
    let force = Feature { rate_hz: Some(1000.0), ..Feature::vector(FORCE, 6) };
    let features = cameras.chain([Feature::vector(OBSERVATION_STATE, 14), force, Feature::vector(ACTION, 14)]);
    let embodiment = Embodiment { name: "probe".into(), rate_hz: 50.0, features: features.collect() };
    Begin { task: "probe".parse().unwrap(), embodiment, actor: BeginActor::Human }
}

/// Bytes that no compression makes smaller, as those of images are.
fn image(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut image = vec![0; random.random_range(20_000..80_000)];
    random.fill(&mut image[2..]);
    image[..2].copy_from_slice(&[0xff, 0xd8]);
    image
}

/// Records a second of 50 Hz steps, 30 Hz cameras and 1 kHz of forces; returns what was given beside the steps.
fn record(robot: &mut zunft_client::Robot, random: &mut ChaCha8Rng) -> BTreeMap<String, Vec<(i64, Vec<u8>)>> {
    robot.begin(&begin()).unwrap();
    let mut given: BTreeMap<String, Vec<(i64, Vec<u8>)>> = BTreeMap::new();
    for millisecond in 1..=1000_u64 {
        let force: Vec<f32> = (0..6).map(|i| millisecond as f32 + i as f32 / 8.0).collect();
        robot.sample(FORCE, millisecond, Data::Values(Values::F32(&force))).unwrap();
        let bytes = force.iter().flat_map(|value| value.to_le_bytes()).collect();
        given.entry(FORCE.to_owned()).or_default().push((millisecond as i64, bytes));
        for (camera, encoding) in CAMERAS.iter().filter(|_| millisecond % 33 == 0) {
            let (name, image) = (format!("observation.images.{camera}"), image(random));
            let data = match encoding {
                Encoding::Jpeg => Data::Jpeg(&image),
                Encoding::H264 => Data::H264 { access_unit: &image, key_frame: millisecond % 330 == 33 },
            };
            robot.sample(&name, millisecond, data).unwrap();
            given.entry(name).or_default().push((millisecond as i64, image));
        }
        if millisecond % 20 == 0 {
            let values = [millisecond as f32; 14];
            let values = [Values::F32(&values), Values::F32(&values)];
            let step = Step { monotonic_ns: millisecond, reward: None, intervention: false, values: &values };
            robot.step(&step).unwrap();
        }
    }
    given
}

#[test]
fn three_cameras_and_a_force_sensor_arrive_byte_for_byte() {
    let mut fleet = Fleet::start(1);
    let mut robot = fleet.robot(0);
    let given = record(&mut robot, &mut ChaCha8Rng::seed_from_u64(8));
    let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    assert_eq!(ended.steps, 50);
    fleet.wait_until_uploaded(0);
    let stored = fleet.stored().pop().unwrap();
    assert_eq!(stored.manifest.recording, ended.recording);
    assert_eq!(stored.manifest.id(), ended.episode);
    assert_eq!(stored.observations.len(), 50 * 14);
    assert_eq!(stored.samples.len(), 4);
    for (name, given) in given {
        assert!(stored.samples[&name] == given, "{name} is not what was given");
    }
    let images: usize =
        CAMERAS.iter().map(|(name, _)| stored.samples[&format!("observation.images.{name}")].len()).sum();
    assert_eq!(images, 90);
}

#[test]
fn images_before_a_kill_are_in_the_truncated_episode() {
    let mut fleet = Fleet::start(1);
    let mut robot = fleet.robot(0);
    let given = record(&mut robot, &mut ChaCha8Rng::seed_from_u64(9));
    // Samples are written in the order in which they came: with the last step, all before it are on disk.
    while robot.progress().unwrap().steps_on_disk < 50 {}
    fleet.kill_agent(0);
    fleet.start_agent(0);
    fleet.wait_until_uploaded(0);
    let stored = fleet.stored().pop().unwrap();
    assert_eq!(stored.manifest.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
    assert_eq!(stored.manifest.steps, 50);
    for (name, given) in given {
        assert!(stored.samples[&name] == given, "{name} is not what was given");
    }
}
