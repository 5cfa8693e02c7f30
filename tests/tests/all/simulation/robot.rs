//! The robots of the simulated fleet: a disk that loses what was not synced, and the real session above it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use zunft_protocol::chunk::Schema;
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, MANIFEST_VERSION, STEPS_STREAM, Stream, Truncation, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, EpisodeId, RecordingId};
use zunft_protocol::message::{ChunkBytes, Message};
use zunft_protocol::session::UploadReply;
use zunft_protocol::session::agent::{AgentEvent, AgentOrder, AgentSession, UploadClass};
use zunft_protocol::session::hub::{Identity, UploadId};
use zunft_protocol::{Embodiment, EpisodeEnd, Manifest, Outcome};

use super::{Connection, ConnectionId, Event, Fleet, Recorded, RobotIndex, hub};

/// Slow, so that recordings are long enough to be cut off.
const STEP_INTERVAL: Duration = Duration::from_millis(200);

/// Steps of one chunk.
const CHUNK_STEPS: u32 = 8;

/// Wall clocks that robots are found with: never set, far behind, plausible, far ahead (nanoseconds since 1970).
const WALL_CLOCKS_NS: [i64; 4] = [0, 900_000_000_000_000_000, 1_790_000_000_000_000_000, 7_000_000_000_000_000_000];

/// A whole episode on the robot's disk.
pub(super) struct Sealed {
    episode: EpisodeId,
    outcome: Outcome,
    manifest: Vec<u8>,
    chunks: Vec<ChunkBytes>,
}

/// A recording under way.
struct Open {
    recording: RecordingId,
    ordinal: u64,
    steps: u64,
    steps_synced: u64,
    steps_wanted: u64,
}

/// A robot and its agent.
pub(super) struct Robot {
    pub(super) identity: Identity,
    /// Grows with every boot: what an earlier life planned does not happen.
    life: u64,
    session: Option<AgentSession>,
    pub(super) connection: Option<ConnectionId>,
    streams: BTreeMap<EpisodeId, UploadId>,
    streams_made: u64,
    // The disk.
    sealed: BTreeMap<u64, Sealed>,
    open: Option<Open>,
    recordings: u64,
}

impl Robot {
    pub(super) fn new(index: RobotIndex, tenant: &str) -> Self {
        let identity = Identity {
            tenant: tenant.parse().unwrap(),
            site: "hall".parse().unwrap(),
            robot: format!("r{index}").parse().unwrap(),
        };
        Self {
            identity,
            life: 0,
            session: None,
            connection: None,
            streams: BTreeMap::new(),
            streams_made: 0,
            sealed: BTreeMap::new(),
            open: None,
            recordings: 0,
        }
    }

    /// Episodes that are not durable on the hub.
    pub(super) fn waiting(&self) -> usize {
        self.sealed.len() + usize::from(self.open.as_ref().is_some_and(|open| open.steps_synced > 0))
    }

    fn sealed(&self, episode: EpisodeId) -> Option<(u64, &Sealed)> {
        self.sealed.iter().find(|(_, sealed)| sealed.episode == episode).map(|(&ordinal, sealed)| (ordinal, sealed))
    }

    fn new_stream(&mut self) -> UploadId {
        self.streams_made += 1;
        UploadId(self.streams_made)
    }
}

/// A chunk's bytes, which name where they belong; chunks of one robot may be equal to another's.
pub(super) fn chunk_bytes(robot: RobotIndex, recording: RecordingId, index: usize, steps: u32) -> Vec<u8> {
    if index == 1 && steps == CHUNK_STEPS {
        // The same for all robots and tenants: deduplicated inside a tenant, unknown across.
        return vec![7; 300];
    }
    format!("robot {robot} recording {recording} chunk {index} steps {steps}").into_bytes()
}

impl Fleet {
    pub(super) fn record(&mut self, robot: RobotIndex) {
        if self.robots[robot].session.is_none() || self.robots[robot].open.is_some() {
            return;
        }
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        let recording = RecordingId::from_bytes(id);
        let steps_wanted = self.rng.random_range(1..40);
        let agent = &mut self.robots[robot];
        let ordinal = agent.recordings;
        agent.open = Some(Open { recording, ordinal, steps: 0, steps_synced: 0, steps_wanted });
        self.recorded.insert(recording, Recorded { robot, steps_on_disk: 0, steps: 0, ended: None });
        self.soon(STEP_INTERVAL, Event::Steps { robot, recording });
    }

    pub(super) fn step(&mut self, robot: RobotIndex, recording: RecordingId) {
        let agent = &mut self.robots[robot];
        let Some(open) = agent.open.as_mut().filter(|open| open.recording == recording) else { return };
        open.steps += 1;
        let (steps, wanted) = (open.steps, open.steps_wanted);
        self.recorded.get_mut(&recording).unwrap().steps = steps;
        if steps < wanted {
            self.soon(STEP_INTERVAL, Event::Steps { robot, recording });
        }
        if steps == wanted || steps.is_multiple_of(5) {
            let wait = self.random(Duration::from_millis(100));
            self.soon(wait, Event::Sync { robot, recording });
        }
    }

    pub(super) fn sync(&mut self, robot: RobotIndex, recording: RecordingId) {
        let agent = &mut self.robots[robot];
        let Some(open) = agent.open.as_mut().filter(|open| open.recording == recording) else { return };
        open.steps_synced = open.steps;
        // The recording's number counts from its first durable record on.
        agent.recordings = open.ordinal + 1;
        let done = open.steps == open.steps_wanted;
        self.recorded.get_mut(&recording).unwrap().steps_on_disk = open.steps;
        if done {
            let outcome = [Outcome::Success, Outcome::Failure, Outcome::Unknown][self.rng.random_range(0..3)];
            let episode = self.seal(robot, outcome, EpisodeEnd::Terminated);
            self.recorded.get_mut(&recording).unwrap().ended = Some(episode);
            self.tell_sealed(robot, episode);
        }
    }

    /// Makes an episode of what is open and on disk.
    fn seal(&mut self, robot: RobotIndex, outcome: Outcome, end: EpisodeEnd) -> EpisodeId {
        let begin_wall_ns = WALL_CLOCKS_NS[self.rng.random_range(0..WALL_CLOCKS_NS.len())];
        let agent = &mut self.robots[robot];
        let open = agent.open.take().expect("a recording is open");
        let steps = open.steps_synced;
        let embodiment = Embodiment {
            name: "arm".into(),
            rate_hz: 50.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
        };
        let mut chunks = Vec::new();
        let mut refs = Vec::new();
        while refs.len() as u64 * u64::from(CHUNK_STEPS) < steps {
            let index = refs.len();
            let left = steps - index as u64 * u64::from(CHUNK_STEPS);
            let in_chunk = CHUNK_STEPS.min(left as u32);
            let bytes = chunk_bytes(robot, open.recording, index, in_chunk);
            let id = ChunkId::of(&bytes);
            refs.push(ChunkRef { id, bytes: bytes.len() as u32, steps: in_chunk });
            chunks.push(ChunkBytes { id, bytes });
        }
        let identity = agent.identity.clone();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            tenant: identity.tenant,
            site: identity.site,
            robot: identity.robot,
            recording: open.recording,
            ordinal: open.ordinal,
            task: "push".parse().unwrap(),
            actor: Actor::Script,
            outcome,
            end,
            interventions: Vec::new(),
            steps,
            clock: Clock {
                boot: BootId::from_bytes([agent.life as u8; 16]),
                begin_monotonic_ns: self.now.as_nanos() as u64,
                begin_wall_ns,
                wall_quality: WallQuality::Implausible,
            },
            streams: vec![Stream { name: STEPS_STREAM.into(), schema: Schema::steps(&embodiment), chunks: refs }],
            embodiment,
        }
        .encode();
        let episode = EpisodeId::of(&manifest);
        let sealed = Sealed { episode, outcome, manifest, chunks };
        let replaced = self.robots[robot].sealed.insert(open.ordinal, sealed);
        assert!(replaced.is_none(), "two recordings of robot {robot} have number {}", open.ordinal);
        episode
    }

    fn tell_sealed(&mut self, robot: RobotIndex, episode: EpisodeId) {
        let (ordinal, sealed) = self.robots[robot].sealed(episode).unwrap();
        let class = match sealed.outcome {
            Outcome::Failure => UploadClass::Urgent,
            Outcome::Success => UploadClass::Labelled,
            Outcome::Unknown => UploadClass::Bulk,
        };
        let bytes = sealed.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum();
        let manifest_bytes = sealed.manifest.len() as u64;
        self.tell(robot, AgentEvent::Sealed { episode, class, ordinal, bytes, manifest_bytes });
    }

    /// Power goes: what was not synced goes with it, but for what the disk happened to write already.
    pub(super) fn power_cut(&mut self, robot: RobotIndex) {
        let kept = self.rng.random_range(0.0..1.0);
        let agent = &mut self.robots[robot];
        agent.life += 1;
        agent.session = None;
        agent.streams.clear();
        if let Some(open) = &mut agent.open {
            open.steps_synced += ((open.steps - open.steps_synced) as f64 * kept) as u64;
            if open.steps_synced == 0 {
                agent.open = None;
            }
        }
        if let Some(connection) = agent.connection.take() {
            self.cut(connection);
        }
    }

    /// The agent starts: an open recording becomes a truncated episode, and the session hears of all there are.
    pub(super) fn boot(&mut self, robot: RobotIndex) {
        if self.robots[robot].session.is_some() {
            return;
        }
        if self.robots[robot].open.is_some() {
            let limit = Truncation::AgentStopped;
            self.robots[robot].recordings = self.robots[robot].open.as_ref().unwrap().ordinal + 1;
            self.seal(robot, Outcome::Unknown, EpisodeEnd::Truncated { limit });
        }
        let agent = &mut self.robots[robot];
        let keys = vec![hub::key().public()];
        agent.session = Some(AgentSession::new(agent.identity.tenant.clone(), keys));
        let episodes: Vec<EpisodeId> = agent.sealed.values().map(|sealed| sealed.episode).collect();
        for episode in episodes {
            self.tell_sealed(robot, episode);
        }
        self.reconnect(robot);
    }

    fn reconnect(&mut self, robot: RobotIndex) {
        let wait = Duration::from_millis(200) + self.random(Duration::from_secs(3));
        let life = self.robots[robot].life;
        self.soon(wait, Event::Connect { robot, life });
    }

    pub(super) fn connect(&mut self, robot: RobotIndex, life: u64) {
        let agent = &self.robots[robot];
        if agent.life != life || agent.session.is_none() || agent.connection.is_some() {
            return;
        }
        if !self.hub.up || (self.chaotic() && self.rng.random_bool(0.2)) {
            return self.reconnect(robot);
        }
        self.connections_made += 1;
        let connection = self.connections_made;
        self.connections.insert(connection, Connection { robot, broken: false, last: BTreeMap::new() });
        self.hub.accept(connection, self.robots[robot].identity.clone());
        self.robots[robot].connection = Some(connection);
        self.tell(robot, AgentEvent::Connected);
    }

    pub(super) fn robot_notices(&mut self, connection: ConnectionId) {
        let robot = self.connections[&connection].robot;
        if self.robots[robot].connection != Some(connection) {
            return;
        }
        self.robots[robot].connection = None;
        self.robots[robot].streams.clear();
        self.tell(robot, AgentEvent::Disconnected);
        self.reconnect(robot);
    }

    pub(super) fn wake(&mut self, robot: RobotIndex, life: u64) {
        let now = self.instant();
        let agent = &mut self.robots[robot];
        let Some(session) = agent.session.as_mut().filter(|_| agent.life == life) else { return };
        let orders = session.handle_timeout(now);
        self.obey(robot, orders);
    }

    fn tell(&mut self, robot: RobotIndex, event: AgentEvent) {
        let now = self.instant();
        let Some(session) = &mut self.robots[robot].session else { return };
        let orders = session.handle(event, now);
        self.obey(robot, orders);
    }

    /// Carries out what the session orders, as the agent's uplink does.
    fn obey(&mut self, robot: RobotIndex, orders: Vec<AgentOrder>) {
        for order in orders {
            match order {
                AgentOrder::Offer { episode, .. } => self.offer(robot, episode),
                AgentOrder::Describe { episode, .. } => panic!("robot {robot} sends all, and describes {episode}"),
                AgentOrder::Send { episode, want } => {
                    let agent = &self.robots[robot];
                    let (Some((_, sealed)), Some(connection)) = (agent.sealed(episode), agent.connection) else {
                        continue;
                    };
                    let stream = agent.streams[&episode];
                    let wanted = sealed.chunks.iter().enumerate().filter(|(index, _)| want.contains(*index));
                    let chunks: Vec<ChunkBytes> = wanted.map(|(_, chunk)| chunk.clone()).collect();
                    for chunk in chunks {
                        self.send(connection, stream, true, Some(&Message::Chunk(chunk)));
                    }
                }
                AgentOrder::Close { episode } => {
                    if let (Some(stream), Some(connection)) =
                        (self.robots[robot].streams.remove(&episode), self.robots[robot].connection)
                    {
                        self.send(connection, stream, true, None);
                    }
                }
                AgentOrder::Free { episode, .. } => {
                    let agent = &mut self.robots[robot];
                    agent.streams.remove(&episode);
                    let (ordinal, _) = agent.sealed(episode).expect("only what is held can be freed");
                    assert!(
                        self.hub.holds(&agent.identity.tenant, episode),
                        "robot {robot} frees episode {episode}, which the hub does not hold"
                    );
                    agent.sealed.remove(&ordinal);
                }
                AgentOrder::Quarantine { episode, reason } => {
                    panic!("the hub refuses episode {episode} of robot {robot}: {reason}");
                }
            }
        }
        let (now, agent) = (self.instant(), &self.robots[robot]);
        let life = agent.life;
        if let Some(at) = agent.session.as_ref().and_then(|session| session.wake_at(now)) {
            let wait = at.saturating_duration_since(now);
            self.soon(wait, Event::Wake { robot, life });
        }
    }

    fn offer(&mut self, robot: RobotIndex, episode: EpisodeId) {
        let Some(connection) = self.robots[robot].connection else { return };
        let offer =
            Message::Offer(self.robots[robot].sealed(episode).expect("an offered episode is held").1.manifest.clone());
        let stream = self.robots[robot].new_stream();
        self.robots[robot].streams.insert(episode, stream);
        self.send(connection, stream, true, Some(&offer));
        if self.chaotic() && self.rng.random_bool(0.05) {
            // The same offer again, on a stream that nobody answers any more.
            let twin = self.robots[robot].new_stream();
            self.send(connection, twin, true, Some(&offer));
            self.send(connection, twin, true, None);
        }
    }

    pub(super) fn at_robot(&mut self, connection: ConnectionId, stream: UploadId, message: &[u8]) {
        let link = &self.connections[&connection];
        let robot = link.robot;
        if link.broken || self.robots[robot].connection != Some(connection) {
            return;
        }
        let streams = &self.robots[robot].streams;
        let Some(episode) = streams.iter().find(|(_, open)| **open == stream).map(|(&episode, _)| episode) else {
            return;
        };
        let reply = match Message::decode(message).unwrap() {
            Message::Want(want) => UploadReply::Want(want),
            Message::Later(later) => UploadReply::Later(later),
            Message::Reject(reject) => UploadReply::Reject(reject),
            Message::Durable(receipt) => UploadReply::Durable(receipt),
            other => panic!("the hub sent {other:?} on an upload stream"),
        };
        if !matches!(reply, UploadReply::Want(_)) {
            // The last word: the robot ends its half as well.
            self.send(connection, stream, true, None);
        }
        self.tell(robot, AgentEvent::Replied { episode, reply });
    }
}
