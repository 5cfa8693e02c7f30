//! A hub and fifty agents on virtual time: the real sessions and the real bytes of messages, with links, disks and
//! stores modelled, and everything that can go wrong going wrong.
//!
//! Links break, heal, delay and let a dead connection linger on one side; agents and hub lose power at any moment,
//! also between a commit and its reply; the hub's disk fills; wall clocks jump; offers come twice; receipts are
//! forged. In the end all is healed, and the hub must hold exactly one episode for every recording.
//!
//! `ZUNFT_TEST_SEED` sets the first seed and `ZUNFT_TEST_FLEETS` how many are run; a failure names its seed.

#[path = "simulation/hub.rs"]
mod hub;
#[path = "simulation/robot.rs"]
mod robot;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use zunft_protocol::Manifest;
use zunft_protocol::ids::{EpisodeId, RecordingId};
use zunft_protocol::message::Message;
use zunft_protocol::session::hub::UploadId;

use self::hub::Hub;
use self::robot::Robot;

const ROBOTS: usize = 50;

/// Every second robot is another tenant's.
const TENANTS: [&str; 2] = ["acme", "umbrella"];

/// How long things go wrong.
const CHAOS: Duration = Duration::from_secs(120);

/// How long a healed fleet may take to deliver everything: longer than any wait that a session imposes.
const PATIENCE: Duration = Duration::from_secs(1800);

/// When a side notices that its peer is gone.
const IDLE_MAX: Duration = Duration::from_secs(30);

type RobotIndex = usize;
type ConnectionId = u64;

/// What happens at a moment.
enum Event {
    /// A robot begins a recording.
    Record(RobotIndex),
    /// Its next steps.
    Steps {
        robot: RobotIndex,
        recording: RecordingId,
    },
    /// What it recorded so far reaches its disk.
    Sync {
        robot: RobotIndex,
        recording: RecordingId,
    },
    /// Its agent loses power.
    PowerCut(RobotIndex),
    /// Its agent starts.
    Boot(RobotIndex),
    /// It tries to reach the hub.
    Connect {
        robot: RobotIndex,
        life: u64,
    },
    /// Its session wants to be woken.
    Wake {
        robot: RobotIndex,
        life: u64,
    },
    /// Its link breaks.
    Break(RobotIndex),
    /// A side notices that a connection is gone.
    RobotNotices(ConnectionId),
    HubNotices(ConnectionId),
    /// A message arrives; `None` ends the stream.
    AtHub {
        connection: ConnectionId,
        stream: UploadId,
        message: Option<Vec<u8>>,
    },
    AtRobot {
        connection: ConnectionId,
        stream: UploadId,
        message: Vec<u8>,
    },
    /// The hub's disk has answered.
    Committed {
        life: u64,
        commit: Box<hub::Commit>,
    },
    /// The hub loses power, comes back, and its disk fills and empties.
    HubPowerCut,
    HubBoot,
    HubDisk {
        full: bool,
    },
}

/// One connection, seen from outside.
struct Connection {
    robot: RobotIndex,
    /// Nothing gets through any more, whether or not the sides know.
    broken: bool,
    /// When the last message of each stream and direction arrives: streams keep their order.
    last: BTreeMap<(bool, UploadId), Duration>,
}

/// What a control program knows of a recording.
struct Recorded {
    robot: RobotIndex,
    steps_on_disk: u64,
    steps: u64,
    ended: Option<EpisodeId>,
}

/// The world.
struct Fleet {
    rng: ChaCha8Rng,
    begin: Instant,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    events: u64,
    robots: Vec<Robot>,
    hub: Hub,
    connections: BTreeMap<ConnectionId, Connection>,
    connections_made: u64,
    recorded: BTreeMap<RecordingId, Recorded>,
}

#[derive(Debug, Default)]
struct Tally {
    recordings: usize,
    episodes: usize,
    events: u64,
    connections: u64,
    truncated: usize,
}

impl Fleet {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock; the fleet moves it itself"
    )]
    fn new(seed: u64) -> Self {
        let mut fleet = Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            begin: Instant::now(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            events: 0,
            robots: (0..ROBOTS).map(|index| Robot::new(index, TENANTS[index % TENANTS.len()])).collect(),
            hub: Hub::new(&TENANTS),
            connections: BTreeMap::new(),
            connections_made: 0,
            recorded: BTreeMap::new(),
        };
        fleet.plan_chaos();
        fleet
    }

    /// Everything that will happen of itself; what follows from it is added as it happens.
    fn plan_chaos(&mut self) {
        for robot in 0..ROBOTS {
            let booted = self.random(Duration::from_secs(5));
            self.at(booted, Event::Boot(robot));
            for _ in 0..self.rng.random_range(2..12) {
                let at = self.random(CHAOS);
                self.at(at, Event::Record(robot));
            }
            for _ in 0..self.rng.random_range(0..4) {
                let at = self.random(CHAOS);
                self.at(at, Event::PowerCut(robot));
                let boot = at + self.random(Duration::from_secs(20));
                self.at(boot, Event::Boot(robot));
            }
            for _ in 0..self.rng.random_range(0..6) {
                let at = self.random(CHAOS);
                self.at(at, Event::Break(robot));
            }
        }
        for _ in 0..self.rng.random_range(1..6) {
            let at = self.random(CHAOS);
            self.at(at, Event::HubPowerCut);
            let boot = at + self.random(Duration::from_secs(20));
            self.at(boot, Event::HubBoot);
        }
        for _ in 0..self.rng.random_range(0..3) {
            let at = self.random(CHAOS);
            self.at(at, Event::HubDisk { full: true });
        }
        // The end of all trouble.
        for robot in 0..ROBOTS {
            self.at(CHAOS + Duration::from_secs(30), Event::Boot(robot));
        }
        self.at(CHAOS + Duration::from_secs(30), Event::HubBoot);
        self.at(CHAOS + Duration::from_secs(30), Event::HubDisk { full: false });
    }

    fn random(&mut self, below: Duration) -> Duration {
        Duration::from_micros(self.rng.random_range(0..below.as_micros() as u64))
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    fn soon(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn instant(&self) -> Instant {
        self.begin + self.now
    }

    fn chaotic(&self) -> bool {
        self.now < CHAOS
    }

    fn run(&mut self) -> Tally {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            assert!(at < CHAOS + PATIENCE, "the fleet does not come to rest: {}", self.unfinished());
            self.now = at;
            self.happen(event);
        }
        self.check()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Record(robot) => self.record(robot),
            Event::Steps { robot, recording } => self.step(robot, recording),
            Event::Sync { robot, recording } => self.sync(robot, recording),
            Event::PowerCut(robot) => self.power_cut(robot),
            Event::Boot(robot) => self.boot(robot),
            Event::Connect { robot, life } => self.connect(robot, life),
            Event::Wake { robot, life } => self.wake(robot, life),
            Event::Break(robot) => self.break_link(robot),
            Event::RobotNotices(connection) => self.robot_notices(connection),
            Event::HubNotices(connection) => self.hub_notices(connection),
            Event::AtHub { connection, stream, message } => self.at_hub(connection, stream, message),
            Event::AtRobot { connection, stream, message } => self.at_robot(connection, stream, &message),
            Event::Committed { life, commit } => self.committed(life, *commit),
            Event::HubPowerCut => self.hub_power_cut(),
            Event::HubBoot => self.hub.up = true,
            Event::HubDisk { full } => self.hub_disk(full),
        }
    }

    /// Sends a message over a link that delays and now and then has to repeat itself.
    fn send(&mut self, connection: ConnectionId, stream: UploadId, up: bool, message: Option<&Message>) {
        let latency = self.latency();
        let Some(link) = self.connections.get_mut(&connection).filter(|link| !link.broken) else { return };
        let last = link.last.entry((up, stream)).or_default();
        let at = (self.now + latency).max(*last + Duration::from_nanos(1));
        *last = at;
        let message = message.map(Message::encode);
        let event = match (up, message) {
            (true, message) => Event::AtHub { connection, stream, message },
            (false, Some(message)) => Event::AtRobot { connection, stream, message },
            (false, None) => return,
        };
        self.at(at, event);
    }

    fn latency(&mut self) -> Duration {
        let once = Duration::from_millis(5) + self.random(Duration::from_millis(60));
        // A lost packet is sent again, and what came after it waits.
        if self.chaotic() && self.rng.random_bool(0.1) { once * 10 } else { once }
    }

    /// Lets a connection fail; each side notices in its own time, if it lives.
    fn cut(&mut self, connection: ConnectionId) {
        let Some(link) = self.connections.get_mut(&connection) else { return };
        link.broken = true;
        for event in [Event::RobotNotices(connection), Event::HubNotices(connection)] {
            let wait = self.random(IDLE_MAX);
            self.soon(wait, event);
        }
    }

    fn break_link(&mut self, robot: RobotIndex) {
        if let Some(connection) = self.robots[robot].connection {
            self.cut(connection);
        }
    }

    fn unfinished(&self) -> String {
        let waiting: Vec<usize> = self.robots.iter().map(Robot::waiting).collect();
        format!("episodes waiting at each robot: {waiting:?}")
    }

    /// Exactly one episode for every recording, with every step that was promised, as it was recorded.
    fn check(&self) -> Tally {
        assert!(self.robots.iter().all(|robot| robot.waiting() == 0), "{}", self.unfinished());
        let mut tally = Tally {
            recordings: self.recorded.len(),
            events: self.events,
            connections: self.connections_made,
            ..Tally::default()
        };
        let mut expected = BTreeSet::new();
        for (&recording, recorded) in &self.recorded {
            let tenant = &self.robots[recorded.robot].identity.tenant;
            let held = self.hub.episode(tenant, recording);
            let Some((episode, manifest)) = held else {
                assert_eq!(recorded.steps_on_disk, 0, "recording {recording} is lost");
                assert!(recorded.ended.is_none());
                continue;
            };
            assert!(recorded.ended.is_none_or(|ended| ended == episode), "recording {recording} was altered");
            let manifest = Manifest::decode(manifest).unwrap();
            assert!(
                (recorded.steps_on_disk..=recorded.steps).contains(&manifest.steps),
                "recording {recording} has {} steps; {} were promised and {} recorded",
                manifest.steps,
                recorded.steps_on_disk,
                recorded.steps
            );
            for (index, chunk) in manifest.chunks().enumerate() {
                let bytes = self.hub.chunk(tenant, chunk.id).expect("a durable episode has its chunks");
                assert_eq!(bytes, robot::chunk_bytes(recorded.robot, recording, index, chunk.steps));
            }
            tally.episodes += 1;
            tally.truncated += usize::from(recorded.ended.is_none());
            expected.insert(recording);
        }
        assert_eq!(self.hub.episodes(), expected.len(), "the hub holds episodes that nobody recorded");
        tally
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn a_fleet_with_every_trouble_delivers_each_recording_once() {
    let first = number("ZUNFT_TEST_SEED", 1);
    let mut total = Tally::default();
    for seed in first..first + number("ZUNFT_TEST_FLEETS", 8) {
        let run = std::panic::catch_unwind(|| Fleet::new(seed).run());
        let tally = run.unwrap_or_else(|_| {
            panic!("fleet of seed {seed}: run it again with ZUNFT_TEST_SEED={seed} ZUNFT_TEST_FLEETS=1")
        });
        total.recordings += tally.recordings;
        total.episodes += tally.episodes;
        total.events += tally.events;
        total.connections += tally.connections;
        total.truncated += tally.truncated;
    }
    println!("{total:?}");
    assert!(total.episodes > 0 && total.truncated > 0, "nothing was tested");
}
