//! What a stolen disk tells: with a key, nothing of what was recorded; and what keys that are missing, wrong or changed
//! do to what is there: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use zunft_protocol::cbor;
use zunft_protocol::embodiment::Encoding;
use zunft_protocol::message::{EvictionReason, Tombstone};

use super::super::log::{Log, SEGMENT_BYTES_MIN};
use super::super::record::{Freeing, Record};
use super::super::recorder::Recorder;
use super::super::seal::MasterKey;
use super::*;

fn master(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

/// Salts as in earnest.
fn ring(current: Option<u8>, old: &[u8]) -> Keyring {
    Keyring::new(current.map(master), old.iter().copied().map(master).collect(), rand::random)
}

fn keyed(disk: SimDisk, keyring: Keyring) -> Bench {
    Bench::keyed(disk, SEGMENT_BYTES, 100, POLICY, EvictionPolicy::default(), keyring).unwrap()
}

fn record(bench: &mut Bench, number: u8) {
    bench.begin(number);
    bench.steps(number, 0..50);
    bench.commit();
    bench.steps(number, 50..100);
    bench.end(number);
    bench.commit();
}

/// How often `needle` is in the files of a folder.
fn found(folder: &Path, needle: &[u8]) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let counts = files.map(|bytes| {
        // The rest of a segment is zeros.
        let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        bytes[..written].windows(needle.len()).filter(|window| *window == needle).count()
    });
    counts.sum()
}

/// A spool of its own with a key file beside it.
struct Station {
    folder: tempfile::TempDir,
    config: SpoolConfig,
}

const DIGITS: &str = "8f3a5c0e9b7d214688f3a5c0e9b7d2148f3a5c0e9b7d214688f3a5c0e9b7d214";

impl Station {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = SpoolConfig { free_bytes_min: 0, segment_bytes: SEGMENT_BYTES_MIN, ..SpoolConfig::default() };
        Self { folder, config }
    }

    fn spool_folder(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn key(&self, name: &str, digits: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, digits).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn encrypted() -> Self {
        let mut station = Self::new();
        station.config.encryption_key_file = Some(station.key("spool.key", DIGITS));
        station
    }

    fn start(&self) -> Result<Spool, SpoolError> {
        Spool::start(&self.spool_folder(), &self.config, identity())
    }

    /// The folder's files.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.spool_folder()).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Checks that a start is refused with these words and changes nothing.
    fn refused(&self, words: &[&str]) {
        let before = self.files();
        let text = crate::text::chain(&self.start().unwrap_err());
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        assert!(!text.contains(&DIGITS[..8]), "no key is printed");
        assert!(self.files() == before, "nothing is lost by a refusal");
    }
}

/// Records an episode and returns when it is on disk.
fn episode(spool: &Spool, image: &[u8], state: [u8; 4]) -> Ended {
    let mut body = embodiment();
    body.features.push(Feature::camera("top", 480, 640, 30.0, Encoding::Jpeg));
    let mut recording = spool.record("needle-task".parse().unwrap(), body, Actor::Script).unwrap();
    let mut row = row(1);
    row[8..12].copy_from_slice(&state);
    row[12..16].copy_from_slice(&state);
    recording.step(row, false, clock).unwrap();
    let sample = [&1_i64.to_le_bytes(), image].concat();
    recording.samples(clock).unwrap().send(1, true, sample).unwrap();
    recording.end(Outcome::Success, EpisodeEnd::Terminated).unwrap()
}

#[test]
fn nothing_that_was_recorded_is_on_disk_in_the_clear() {
    const IMAGE: &[u8] = b"an image that nobody else is to see";
    const STATE: [u8; 4] = *b"pose";
    const RECEIPT: &[u8] = b"a receipt that nobody else is to see";
    for encrypted in [false, true] {
        let station = if encrypted { Station::encrypted() } else { Station::new() };
        let spool = station.start().unwrap();
        assert_eq!(spool.status().encrypted, encrypted);
        episode(&spool, IMAGE, STATE);
        episode(&spool, IMAGE, STATE);
        let whole = spool.waiting(1, |_| false).remove(0);
        spool.durable(whole.ordinal, RECEIPT.to_vec());
        spool.stop();
        let folder = station.spool_folder();
        // The image of each episode is there as a sample and in a chunk; the task in an opening and a manifest.
        for (needle, count) in
            [(IMAGE, 4), (&[STATE, STATE].concat()[..], 2), (b"needle-task", 4), (RECEIPT, 1), (b"acme", 2)]
        {
            let found = found(&folder, needle);
            assert!(if encrypted { found == 0 } else { found >= count }, "{found} times {needle:?}");
        }
        let again = station.start().unwrap();
        let episode = again.waiting(9, |_| false).remove(0);
        assert_eq!(episode.ordinal, 1, "what the hub holds is freed");
        let manifest = Manifest::decode(&again.read_manifest(&episode).unwrap()).unwrap();
        assert_eq!((manifest.task.as_str(), manifest.steps), ("needle-task", 1));
        let image = again.read_chunk(&episode, 1).unwrap();
        assert!(image.windows(IMAGE.len()).any(|window| window == IMAGE));
        again.stop();
    }
}

/// Calls `append` with a record of every kind, each with bytes of its own that can be recognised.
fn every_kind(mut append: impl FnMut(&Record<'_>, &str)) {
    let task = |name: &str| name.parse::<TaskName>().unwrap();
    let opening = |name: &str| {
        let (embodiment, actor, clock) = (embodiment(), Actor::Script, clock());
        Opening { recording: recording(1), task: task(name), embodiment, actor, clock }
    };
    append(&Record::Begin { ordinal: 1, opening: &opening("needle-opening").encode() }, "needle-opening");
    append(&Record::Step { ordinal: 1, intervention: false, row: b"needle-step" }, "needle-step");
    append(&Record::Sample { ordinal: 1, stream: 1, key_frame: true, row: b"needle-sample" }, "needle-sample");
    append(&Record::Chunk { ordinal: 1, stream: 0, steps: 1, stored: b"needle-chunk" }, "needle-chunk");
    let mut recorder = Recorder::new(1, opening("needle-manifest"), CHUNK_BYTES_TARGET);
    assert!(recorder.push(&row(1), false));
    let (_, manifest) = recorder.seal(&identity(), Outcome::Success, EpisodeEnd::Terminated).unwrap();
    append(&Record::Sealed { ordinal: 1, manifest: &manifest.encode() }, "needle-manifest");
    append(&Record::Freed { ordinal: 1, why: Freeing::Durable, receipt: b"needle-receipt" }, "needle-receipt");
    let tombstone = Tombstone {
        recording: recording(1),
        ordinal: 2,
        task: task("needle-tombstone"),
        outcome: Outcome::Success,
        interventions: false,
        steps: 1,
        bytes: 1,
        reason: EvictionReason::Quota,
    };
    append(&Record::Evicted { ordinal: 2, tombstone: &cbor::encode(&tombstone) }, "needle-tombstone");
    // Which recording it is about is nobody's business either.
    append(&Record::Damaged { ordinal: u64::from_le_bytes(*b"ordinal!") }, "ordinal!");
}

#[test]
fn records_of_no_kind_are_on_disk_in_the_clear() {
    for encrypted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let room = Room { segment_bytes: SEGMENT_BYTES * 4, spool_bytes_max: u64::MAX, free_bytes_min: 0 };
        let keyring = ring(encrypted.then_some(1), &[]);
        let (mut log, _) = Log::open(FolderDisk::new(folder.path()), room, keyring, &mut |_| {}).unwrap();
        every_kind(|record, _| log.append(record));
        log.commit(&mut Vec::new()).unwrap();
        every_kind(|_, needle| {
            let count = found(folder.path(), needle.as_bytes());
            assert_eq!(count, usize::from(!encrypted), "{needle}");
        });
    }
}

/// Every run of `bytes` bytes of these segments behind their heads that can only be ciphertext: nowhere in it are zeros
/// as in a record's header or where nothing is written.
fn ciphertext(segments: &BTreeMap<SegmentNumber, Vec<u8>>, bytes: usize) -> Vec<&[u8]> {
    let all = segments.values().flat_map(|segment| segment.get(200..).unwrap_or_default().windows(bytes));
    all.filter(|window| !window.windows(2).any(|pair| pair == [0, 0])).collect()
}

#[test]
fn the_same_records_never_look_the_same_twice() {
    // Two spools with one key, and one of them again after a crash: numbers of segments, places and records are equal.
    let mut seen = BTreeSet::new();
    let mut count = 0;
    let mut look = |image: &BTreeMap<SegmentNumber, Vec<u8>>| {
        for run in ciphertext(image, 12) {
            count += 1;
            assert!(seen.insert(run.to_vec()), "a nonce was used twice");
        }
    };
    for _ in 0..3 {
        let mut bench = keyed(SimDisk::new(0), ring(Some(1), &[]));
        bench.begin(1);
        for _ in 0..40 {
            bench.steps(1, 0..1);
        }
        bench.commit();
        look(&bench.disk.synced());
        assert_eq!(bench.disk.synced().keys().next(), Some(&0));
    }
    assert!(count > 3000, "{count} runs of ciphertext");
}

#[test]
fn an_encrypted_log_cut_at_any_byte_keeps_every_synced_step() {
    let keyring = ring(Some(1), &[]);
    let mut bench = keyed(SimDisk::new(0), keyring.clone());
    let tracker = bench.begin(1);
    let mut synced = Vec::new();
    for group in 0..3 {
        bench.steps(1, group * 10..group * 10 + 10);
        bench.commit();
        let end = bench.disk.synced()[&0].iter().rposition(|&byte| byte != 0).unwrap() + 1;
        synced.push((end, tracker.on_disk.load(Ordering::Relaxed)));
    }
    let whole = bench.disk.synced();
    for cut in 0..=synced[2].0 {
        let mut torn = whole.clone();
        torn.get_mut(&0).unwrap()[cut..].fill(0);
        let promised = synced.iter().filter(|(end, _)| *end <= cut).map(|(_, steps)| *steps).max().unwrap_or(0);
        let after = keyed(SimDisk::of(torn), keyring.clone());
        let episodes = after.episodes();
        let steps = episodes.first().map_or(0, |(_, manifest)| manifest.steps);
        assert!(steps >= promised, "cut at {cut}: {steps} steps of {promised}");
        assert!(episodes.len() <= 1 && after.shared.index().damaged_count() == 0, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_in_ciphertext_is_named_and_costs_what_it_was_in() {
    let keyring = ring(Some(1), &[]);
    let mut bench = keyed(SimDisk::new(0), keyring.clone());
    for number in 0..4 {
        record(&mut bench, number);
    }
    let (whole, image) = (bench.episodes(), bench.disk.synced());
    for at in (200..SEGMENT_BYTES as usize).step_by(61).filter(|&at| image[&0][at] != 0) {
        let mut damaged = image.clone();
        damaged.get_mut(&0).unwrap()[at] ^= 0x10;
        let after = keyed(SimDisk::of(damaged), keyring.clone());
        assert!(after.shared.index().segments_damaged > 0, "byte {at}");
        assert!(after.episodes().iter().all(|episode| whole.contains(episode)), "byte {at}");
        assert!(after.episodes().len() >= 2, "byte {at}: other segments are not given up");
    }
    // One that rots while the spool runs.
    let (episode, _) = &whole[0];
    let location = episode.manifest;
    let mut rotten = image.clone();
    rotten.get_mut(&location.segment).unwrap()[location.offset as usize + 30] ^= 1;
    assert_eq!(log::read_body(&SimDisk::of(rotten), &keyring, location).unwrap(), None);
}

#[test]
fn a_record_that_is_moved_within_the_log_does_not_open() {
    let keyring = ring(Some(1), &[]);
    let mut bench = keyed(SimDisk::new(0), keyring.clone());
    for number in 0..3 {
        record(&mut bench, number);
    }
    let mut image = bench.disk.synced();
    let [(first, _), (second, _)] = &bench.episodes()[..2] else { panic!("two episodes") };
    let (from, to) = (first.manifest, second.manifest);
    assert_eq!(from.bytes, to.bytes);
    let moved = image[&from.segment][from.offset as usize..][..from.bytes as usize].to_vec();
    image.get_mut(&to.segment).unwrap()[to.offset as usize..][..to.bytes as usize].copy_from_slice(&moved);
    assert_eq!(log::read_body(&SimDisk::of(image), &keyring, to).unwrap(), None);
}

#[test]
fn encryption_goes_on_off_and_to_another_key_between_runs_and_everything_stays_readable() {
    let disk = SimDisk::new(0);
    let mut expected = Vec::new();
    let runs = [(None, &[][..]), (Some(1), &[]), (Some(2), &[1]), (None, &[1, 2]), (Some(2), &[1])];
    for (number, (current, old)) in (0..).zip(runs) {
        let mut bench = keyed(disk.clone(), ring(current, old));
        assert_eq!(bench.episodes(), expected, "run {number}");
        record(&mut bench, number);
        expected = bench.episodes();
        assert_eq!(expected.len(), usize::from(number) + 1);
    }
    let mut bench = keyed(disk, ring(Some(2), &[1]));
    let counts = |bench: &Bench| {
        let shared = &bench.shared;
        [&shared.segments_in_clear, &shared.segments_of_old_keys].map(|count| count.load(Ordering::Relaxed) > 0)
    };
    assert_eq!(counts(&bench), [true, true]);
    for ordinal in 0..5 {
        bench.free(ordinal);
    }
    record(&mut bench, 9);
    record(&mut bench, 10);
    bench.commit();
    assert_eq!(counts(&bench), [false, false], "what the hub holds goes, and with it the need for an old key");
}

#[test]
fn segments_whose_key_is_missing_or_another_are_refused_by_name_and_left_as_they_are() {
    let mut station = Station::encrypted();
    let spool = station.start().unwrap();
    let ended = episode(&spool, b"image", *b"pose");
    let key_file = station.config.encryption_key_file.clone().unwrap();
    // The file is replaced while the agent runs: it goes on with the key that it has.
    station.key("spool.key", &DIGITS.replace('8', "9"));
    episode(&spool, b"image", *b"pose");
    spool.stop();
    let segment = station.spool_folder().join("0000000000000000.seg");
    let named = [segment.to_str().unwrap(), key_file.to_str().unwrap()];
    let fields = ["spool.encryption_key_file)", "spool.encryption_key_files_old", "nothing was changed"];
    station.refused(&[&named[..], &fields[..], &["another key", "put the other one back"][..]].concat());
    station.config.encryption_key_file = None;
    station.refused(&[named[0], "no key was given", "spool.encryption_key_file", "nothing was changed"]);
    station.config.encryption_key_file = Some(station.folder.path().join("gone.key"));
    station.refused(&["gone.key", "spool.encryption_key_file", "does not exist"]);
    station.config.encryption_key_file = None;
    station.config.encryption_key_files_old = vec![station.folder.path().to_owned()];
    station.refused(&["spool.encryption_key_files_old", "not a file"]);
    station.config.encryption_key_files_old = vec![station.key("old.key", DIGITS)];
    let spool = station.start().unwrap();
    let waiting = spool.waiting(9, |_| false);
    assert_eq!(waiting.iter().map(|episode| episode.episode).next(), Some(ended.episode));
    assert_eq!(waiting.len(), 2, "the key that the agent had is the one that it began with");
    assert!(!spool.status().encrypted && spool.status().segments_of_old_keys > 0);
    spool.stop();
}

#[test]
fn a_head_that_is_cut_or_rotten_is_named_and_takes_no_other_segment_along() {
    let keyring = || ring(Some(1), &[]);
    let mut bench = keyed(SimDisk::new(0), keyring());
    for number in 0..3 {
        record(&mut bench, number);
    }
    let image = bench.disk.synced();
    let whole = bench.episodes();
    let segment = whole[1].0.manifest.segment;
    let mut one = image.clone();
    one.get_mut(&segment).unwrap()[40] ^= 1;
    let after = keyed(SimDisk::of(one.clone()), keyring());
    assert_eq!((after.episodes().len(), after.shared.index().segments_damaged), (3, 1), "the second copy is left");
    one.get_mut(&segment).unwrap()[130] ^= 1;
    let after = keyed(SimDisk::of(one), keyring());
    assert_eq!(after.shared.index().segments_damaged, 1, "no copy is left");
    let left = whole.iter().filter(|(episode, _)| {
        let chunks = episode.chunks.iter().map(|(_, location)| location.segment);
        chunks.chain([episode.manifest.segment]).all(|other| other != segment)
    });
    assert!(left.clone().count() < 3 && after.episodes().iter().eq(left), "what is elsewhere is whole");
    let folder = tempfile::tempdir().unwrap();
    let disk = FolderDisk::new(folder.path());
    for (&segment, bytes) in &image {
        fs::write(disk.path(segment), bytes).unwrap();
    }
    for cut in [171, 167, 100, 84, 80, 72] {
        let file = fs::OpenOptions::new().write(true).open(disk.path(0)).unwrap();
        file.set_len(cut).unwrap();
        let room = Room { segment_bytes: SEGMENT_BYTES, spool_bytes_max: u64::MAX, free_bytes_min: 0 };
        let mut records = 0;
        let (_, found) = Log::open(FolderDisk::new(folder.path()), room, keyring(), &mut |_| records += 1).unwrap();
        assert_eq!(found.damaged, [0], "cut at {cut}");
        assert!(records > 100 && found.segments.contains(&1), "cut at {cut}");
    }
}
