//! Cameras and fast sensors through an agent's real socket.

use zunft_client::Data;
use zunft_protocol::chunk::SampleChunk;
use zunft_protocol::embodiment::{Encoding, Feature};
use zunft_protocol::episode::Manifest;

use super::*;

const TOP: &str = "observation.images.top";
const SIDE: &str = "observation.images.side";
const FORCE: &str = "observation.force";

fn begin_with_streams() -> Begin {
    let mut begin = begin(BeginActor::Script);
    begin.embodiment.features.push(Feature::camera("top", 48, 64, 30.0, Encoding::Jpeg));
    begin.embodiment.features.push(Feature::camera("side", 48, 64, 30.0, Encoding::H264));
    begin.embodiment.features.push(Feature { rate_hz: Some(1000.0), ..Feature::vector(FORCE, 2) });
    begin
}

impl Cell {
    /// The only episode's manifest, and the images of one of its cameras: times and bytes.
    fn images(&self, camera: &str) -> (Manifest, Vec<(i64, Vec<u8>)>) {
        let spool = &self.handle.as_ref().unwrap().spool;
        let stored = spool.waiting(1, |_| false).remove(0);
        let manifest = Manifest::decode(&spool.read_manifest(&stored).unwrap()).unwrap();
        let before = manifest.streams.iter().take_while(|stream| stream.name != camera);
        let first: usize = before.map(|stream| stream.chunks.len()).sum();
        let stream = manifest.streams.iter().find(|stream| stream.name == camera).unwrap();
        let mut images = Vec::new();
        for index in first..first + stream.chunks.len() {
            let bytes = spool.read_chunk(&stored, index).unwrap();
            let chunk = SampleChunk::decode(&bytes, stream.schema.encoding.unwrap()).unwrap();
            images.extend(chunk.samples().iter().map(|sample| (sample.monotonic_ns, sample.bytes.to_vec())));
        }
        (manifest, images)
    }
}

#[test]
fn samples_may_come_before_the_first_step_and_each_stream_has_a_clock_of_its_own() {
    let cell = Cell::new();
    let mut robot = cell.program();
    robot.begin(&begin_with_streams()).unwrap();
    robot.sample(TOP, 10, Data::Jpeg(&[0xff, 0xd8, 1])).unwrap();
    robot.sample(FORCE, 5, Data::Values((&[1.0_f32, 2.0]).into())).unwrap();
    step(&mut robot, 7);
    robot.sample(TOP, 11, Data::Jpeg(&[0xff, 0xd8, 2])).unwrap();
    let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    assert_eq!((ended.steps, ended.images_dropped), (1, 0));
    let (manifest, images) = cell.images(TOP);
    assert_eq!(images, [(10, vec![0xff, 0xd8, 1]), (11, vec![0xff, 0xd8, 2])]);
    assert_eq!(manifest.clock.begin_monotonic_ns, 10, "the episode begins with what came first");
    let names: Vec<&str> = manifest.streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["steps", TOP, SIDE, FORCE]);
    assert!(manifest.streams[2].chunks.is_empty(), "a camera that gave nothing is an empty stream");
}

#[test]
fn raw_images_become_jpeg_in_their_order() {
    let cell = Cell::new();
    let mut robot = cell.program();
    robot.begin(&begin_with_streams()).unwrap();
    step(&mut robot, 1);
    for time in 1..=20 {
        robot.sample(TOP, time, Data::Raw(&[time as u8 * 10; 48 * 64 * 3])).unwrap();
    }
    robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    let (_, images) = cell.images(TOP);
    assert_eq!(images.iter().map(|(time, _)| *time).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    for (_, jpeg) in &images {
        assert!(jpeg.starts_with(&[0xff, 0xd8]) && jpeg.ends_with(&[0xff, 0xd9]) && jpeg.len() < 48 * 64);
    }
}

#[test]
fn samples_that_make_no_sense_are_refused_by_their_code_and_the_recording_stays_open() {
    use local::FrameType::{Begin, Sample};
    let cell = Cell::new();
    let mut raw = Raw::connect(&cell);
    let body = |monotonic_ns, feature, raw, bytes: &[u8]| {
        let mut body = Vec::new();
        local::Sample { monotonic_ns, feature, key_frame: true, raw, bytes }.encode(&mut body);
        body
    };
    let (jpeg, pixels) = ([0xff, 0xd8, 0xff, 0xd9], vec![0; 48 * 64 * 3]);
    raw.refused(Sample, &body(1, 2, false, &jpeg), "not-recording");
    raw.say(Begin, &serde_json::to_vec(&begin_with_streams()).unwrap());
    assert_eq!(raw.hear().0, local::FrameType::Begun);
    raw.refused(Sample, &body(1, 0, false, &jpeg), "no-stream");
    raw.refused(Sample, &body(1, 9, false, &jpeg), "no-stream");
    raw.refused(Sample, &body(1, 2, false, &[]), "wrong-size");
    raw.refused(Sample, &body(1, 2, false, &[0; 100]), "bad-image");
    raw.refused(Sample, &body(1, 2, true, &pixels[1..]), "wrong-size");
    raw.refused(Sample, &body(1, 3, true, &pixels), "bad-image");
    raw.refused(Sample, &body(1, 4, false, &[0; 7]), "wrong-size");
    raw.refused(Sample, &body(1, 4, true, &[0; 8]), "bad-image");
    raw.refused(Sample, &body(1, 4, false, &[0, 0, 0xc0, 0x7f, 0, 0, 0, 0]), "not-a-number");
    raw.say(Sample, &body(5, 2, false, &jpeg));
    raw.refused(Sample, &body(5, 2, false, &jpeg), "time-not-increasing");
    raw.refused(Sample, &body(6, 2, true, &pixels), "bad-image");
    raw.refused(local::FrameType::End, br#"{"outcome":"success","end":"terminated"}"#, "no-steps");
    raw.refused(Sample, &body(7, 2, false, &jpeg)[..10], "not-recording");
}
