//! A control program's side of the local socket: one connection, at most one recording, calls in order.
//!
//! Steps are written at once, so that what was recorded outlives the program, and nobody waits for their fate:
//! refusals are collected, and told by [`Robot::progress`], [`Robot::end`] or [`Robot::take_refusals`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zunft_protocol::embodiment::{Dtype, Embodiment};
use zunft_protocol::episode::{EpisodeEnd, Outcome};
use zunft_protocol::ids::{Digest, ReleaseId, SkillName, TaskName};
use zunft_protocol::local::{
    self, Begin, Begun, End, Ended, ErrorBody, Event, FrameType, GREETING_BYTES, GREETING_MAGIC, Header, Progress,
};

use crate::clock;
use crate::connection::{Connection, Frame, Wait};
use crate::error::{CallError, ConnectError, Refusal, StepError};
use crate::samples::{Data, SAMPLE_REQUEST, Streams};
use crate::values::Values;

/// Events kept for a program that does not poll; the oldest go first, as in the agent.
const EVENTS_MAX: usize = 256;

/// Refusals kept with their text; more are only counted. They say the same thing over and over.
const REFUSALS_MAX: usize = 64;

/// Steps sent between two looks at what the agent sent back.
///
/// So many refusals fit the socket's buffer: the agent can always write, and goes on reading.
const STEPS_UNREAD_MAX: u32 = 64;

/// Set in the number of a STEP, whose other bits count the recording's steps; calls count below it, from 1.
///
/// An episode's steps fit beside [`SAMPLE_REQUEST`] ([`zunft_protocol::limits::EPISODE_STEPS_MAX`]).
const STEP_REQUEST: u32 = 1 << 31;

/// What happened between two moments of control.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// When the observation was taken ([`crate::monotonic_ns`]); later than the step before.
    pub monotonic_ns: u64,
    /// The reward that followed, where there is one.
    pub reward: Option<f32>,
    /// Whether a person had taken over.
    pub intervention: bool,
    /// Every feature of the embodiment that is no stream of its own, in its order.
    pub values: &'a [Values<'a>],
}

/// What a skill would do now.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// The release that answered.
    pub release: ReleaseId,
    /// Digest of its signed envelope.
    pub manifest: Digest,
    /// The action.
    pub values: Vec<f32>,
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Robot {
    connection: Connection,
    timeout: Option<Duration>,
    call_request: u32,
    recording: Option<Recording>,
    refusals: Vec<Refusal>,
    refused: u64,
    steps_unread: u32,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Recording {
    streams: Streams,
    features: Vec<(String, Dtype, usize)>,
    steps: u64,
}

impl Robot {
    /// Connects to the agent that listens at `socket`.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Self, ConnectError> {
        let path = socket.as_ref();
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                ConnectError::NoAgent { path, source }
            } else if source.kind() == io::ErrorKind::PermissionDenied {
                ConnectError::Denied { path, source }
            } else {
                ConnectError::Io { path, source }
            }
        })?;
        Self::greet(stream, path)
    }

    /// Greets the agent at the other end of `stream`; `path` is its name in errors.
    pub fn greet(mut stream: UnixStream, path: &Path) -> Result<Self, ConnectError> {
        let mut answer = [0; GREETING_BYTES];
        // An agent that is full greets, says so and closes before it hears us.
        let said = stream
            .write_all(&local::client_greeting())
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) });
        said.and_then(|()| stream.read_exact(&mut answer))
            .map_err(|source| ConnectError::Io { path: path.to_owned(), source })?;
        if answer[..4] != GREETING_MAGIC {
            return Err(ConnectError::NotAnAgent { path: path.to_owned() });
        }
        if local::read_agent_greeting(answer).is_none() {
            return Err(ConnectError::VersionRefused { path: path.to_owned() });
        }
        Ok(Self {
            connection: Connection::new(stream),
            timeout: None,
            call_request: 0,
            recording: None,
            refusals: Vec::new(),
            refused: 0,
            steps_unread: 0,
            events: VecDeque::new(),
        })
    }

    /// How long a call may wait for its answer; `None`, the default: as long as the agent lives.
    ///
    /// An answer that comes after its call gave up is dropped, and the next call goes on as usual. Only BEGIN and END
    /// are different: when one of them times out nobody knows whether the recording is open, and the connection is of
    /// no more use.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Opens a recording.
    pub fn begin(&mut self, begin: &Begin) -> Result<Begun, CallError> {
        begin.embodiment.check()?;
        let body = serde_json::to_vec(begin).map_err(|source| CallError::Json { frame: "BEGIN", source })?;
        let answer = self.call("BEGIN", FrameType::Begin, FrameType::Begun, |out| out.extend_from_slice(&body));
        let begun: Begun = read_json("BEGUN", &self.for_good(answer)?)?;
        if begun.step_bytes as usize != begin.embodiment.step_bytes() {
            self.connection.fail();
            return Err(CallError::Unexpected { call: "BEGIN", found: format!("{} bytes a step", begun.step_bytes) });
        }
        self.recording = Some(Recording::new(&begin.embodiment));
        self.forget_refusals();
        Ok(begun)
    }

    /// Records one step. It is on its way when this returns; [`Robot::progress`] tells how far it came.
    pub fn step(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        let recording = self.recording.as_mut().ok_or(StepError::NotRecording)?;
        recording.check(step.values)?;
        let request = STEP_REQUEST | recording.steps as u32;
        let sent = self.connection.send("STEP", FrameType::Step, request, |out| {
            let prefix = local::Step {
                monotonic_ns: step.monotonic_ns,
                reward: step.reward.unwrap_or(f32::NAN),
                intervention: step.intervention,
                features: &[],
            };
            prefix.encode(out);
            step.values.iter().for_each(|values| values.encode(out));
        });
        recording.steps += 1;
        self.explain("STEP", sent)?;
        self.steps_unread += 1;
        if self.steps_unread >= STEPS_UNREAD_MAX {
            self.drain("STEP")?;
        }
        Ok(())
    }

    /// Records one sample of a feature that is a stream of its own: a camera, or numbers with a rate of their own.
    ///
    /// `monotonic_ns` is when it was taken, later than that of the stream's sample before. Like a step, it is on its
    /// way when this returns. The agent turns raw images into JPEG; those that come faster than it can are left out,
    /// the oldest first, and END tells how many ([`Ended::images_dropped`]).
    pub fn sample(&mut self, stream: &str, monotonic_ns: u64, data: Data<'_>) -> Result<(), StepError> {
        let recording = self.recording.as_mut().ok_or(StepError::NotRecording)?;
        let (request, feature) = recording.streams.next(stream, &data)?;
        let sent =
            self.connection.send("SAMPLE", FrameType::Sample, request, |out| data.encode(monotonic_ns, feature, out));
        self.explain("SAMPLE", sent)?;
        self.steps_unread += 1;
        if self.steps_unread >= STEPS_UNREAD_MAX {
            self.drain("SAMPLE")?;
        }
        Ok(())
    }

    /// How much of the open recording the agent has, and how much would survive a power cut.
    ///
    /// Answers [`CallError::StepsRefused`], once, when steps were refused since this was last asked.
    pub fn progress(&mut self) -> Result<Progress, CallError> {
        let body = self.call("PROGRESS", FrameType::Progress, FrameType::ProgressIs, |_| {})?;
        let progress = Progress::decode(&body)?;
        self.check_refusals(None)?;
        Ok(progress)
    }

    /// Ends the recording, and returns when the whole episode is on disk.
    ///
    /// Answers [`CallError::StepsRefused`] with the episode in it when steps are missing that were not told before.
    pub fn end(&mut self, outcome: Outcome, end: EpisodeEnd) -> Result<Ended, CallError> {
        let body =
            serde_json::to_vec(&End { outcome, end }).map_err(|source| CallError::Json { frame: "END", source })?;
        let answer = self.call("END", FrameType::End, FrameType::Ended, |out| out.extend_from_slice(&body));
        self.recording = None;
        let answer = match self.for_good(answer) {
            Err(error @ CallError::Refused { .. }) => {
                // The step that could not be kept is the cause; that the recording is gone only follows.
                self.check_refusals(None)?;
                return Err(error);
            }
            answer => answer?,
        };
        let ended: Ended = read_json("ENDED", &answer)?;
        self.check_refusals(Some(&ended))?;
        Ok(ended)
    }

    /// What the active release of `skill` would do; `first` at an episode's first step.
    pub fn act(
        &mut self,
        skill: &SkillName,
        task: &TaskName,
        first: bool,
        observation: &[f32],
    ) -> Result<Action, CallError> {
        let act = local::Act { skill: skill.clone(), task: task.clone(), first, observation: observation.to_vec() };
        let body = self.call("ACT", FrameType::Act, FrameType::Action, |out| act.encode(out))?;
        let local::Action { version, manifest, values } = local::Action::decode(&body)?;
        Ok(Action { release: ReleaseId { skill: act.skill, version }, manifest, values })
    }

    /// The agent's state, as docs/local-socket.md has it.
    pub fn status(&mut self) -> Result<serde_json::Value, CallError> {
        let body = self.call("STATUS", FrameType::Status, FrameType::StatusIs, |_| {})?;
        read_json("STATUS_IS", &body)
    }

    /// Asks for events from now on: see [`Robot::poll_event`].
    pub fn subscribe(&mut self) -> Result<(), CallError> {
        self.call("SUBSCRIBE", FrameType::Subscribe, FrameType::Subscribed, |_| {}).map(|_| ())
    }

    /// The next event, after waiting for it for at most `timeout`.
    pub fn poll_event(&mut self, timeout: Duration) -> Result<Option<Event>, CallError> {
        self.drain("SUBSCRIBE")?;
        let wait = Wait::Until(clock::now() + timeout);
        while self.events.is_empty() {
            let Some(frame) = self.connection.receive(wait)? else {
                return Ok(None);
            };
            self.note("SUBSCRIBE", frame)?;
        }
        Ok(self.events.pop_front())
    }

    /// The same bytes again, by the way that [`Robot::act`] takes: the yardstick for its latency.
    pub fn echo(&mut self, bytes: &[u8]) -> Result<Vec<u8>, CallError> {
        self.call("ECHO", FrameType::Echo, FrameType::Echoed, |out| out.extend_from_slice(bytes))
    }

    /// The refusals that are known by now and were not told yet, the first 64 of them.
    pub fn take_refusals(&mut self) -> Result<Vec<Refusal>, CallError> {
        self.drain("STEP")?;
        self.refused = 0;
        Ok(std::mem::take(&mut self.refusals))
    }

    fn call(
        &mut self,
        call: &'static str,
        frame_type: FrameType,
        answer_type: FrameType,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, CallError> {
        self.call_request = self.call_request % (STEP_REQUEST - 1) + 1;
        let sent = self.connection.send(call, frame_type, self.call_request, encode);
        self.explain(call, sent)?;
        let wait = self.timeout.map_or(Wait::Forever, |timeout| Wait::Until(clock::now() + timeout));
        loop {
            let frame = self.connection.receive(wait)?.ok_or(CallError::TimedOut { call })?;
            let answers = frame.header.request == self.call_request && frame.header.frame_type != FrameType::Event;
            if !answers {
                self.note(call, frame)?;
                continue;
            }
            self.steps_unread = 0;
            if frame.header.frame_type == answer_type {
                return Ok(frame.body);
            }
            if frame.header.frame_type == FrameType::Error {
                let ErrorBody { code, message } = read_json("ERROR", &frame.body)?;
                return Err(CallError::Refused { call, code, message });
            }
            self.connection.fail();
            return Err(CallError::Unexpected { call, found: format!("{:?}", frame.header.frame_type) });
        }
    }

    /// Takes in a frame that answers no call that is waiting.
    fn note(&mut self, call: &'static str, frame: Frame) -> Result<(), CallError> {
        let Header { frame_type, request, .. } = frame.header;
        let of_a_step = request & STEP_REQUEST != 0;
        if frame_type == FrameType::Event {
            self.note_event(&frame.body);
        } else if frame_type == FrameType::Error {
            let ErrorBody { code, message } = read_json("ERROR", &frame.body)?;
            // 0 is no request of ours: the agent speaks of the connection as a whole.
            if code == "bad-frame" || request == 0 {
                self.connection.fail();
                return Err(CallError::Refused { call, code, message });
            }
            if of_a_step {
                self.refused += 1;
                if self.refusals.len() < REFUSALS_MAX {
                    let streams = self.recording.as_ref().map(|recording| &recording.streams);
                    let (step, stream) = match streams.and_then(|streams| streams.of_request(request)) {
                        Some((sample, stream)) => (sample, Some(stream)),
                        None => (u64::from(request & !SAMPLE_REQUEST), None),
                    };
                    self.refusals.push(Refusal { step, stream, code, message });
                }
            }
        } else if of_a_step || request == self.call_request {
            self.connection.fail();
            return Err(CallError::Unexpected { call, found: format!("{frame_type:?}") });
        }
        // What remains is the answer to a call that gave up waiting.
        Ok(())
    }

    /// Keeps an event. A newer agent may send some that this version does not know: those are passed over.
    fn note_event(&mut self, body: &[u8]) {
        let Ok(event) = serde_json::from_slice(body) else {
            return;
        };
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Takes in whatever is here already.
    fn drain(&mut self, call: &'static str) -> Result<(), CallError> {
        self.steps_unread = 0;
        while let Some(frame) = self.connection.receive(Wait::Not)? {
            self.note(call, frame)?;
        }
        Ok(())
    }

    /// An agent that closes a connection says why first: that is the better error.
    fn explain(&mut self, call: &'static str, sent: Result<(), CallError>) -> Result<(), CallError> {
        match sent {
            Err(CallError::Closed) => self.drain(call).and(Err(CallError::Closed)),
            sent => sent,
        }
    }

    /// After BEGIN and END a missing answer leaves the recording in doubt.
    fn for_good<T>(&mut self, answer: Result<T, CallError>) -> Result<T, CallError> {
        if let Err(CallError::TimedOut { .. }) = answer {
            self.connection.fail();
        }
        answer
    }

    fn forget_refusals(&mut self) {
        self.refusals.clear();
        self.refused = 0;
    }

    fn check_refusals(&mut self, ended: Option<&Ended>) -> Result<(), CallError> {
        let count = self.refused;
        let first = self.refusals.drain(..).next();
        self.refused = 0;
        first.map_or(Ok(()), |first| Err(CallError::StepsRefused { count, first, ended: ended.cloned().map(Box::new) }))
    }
}

impl Recording {
    fn new(embodiment: &Embodiment) -> Self {
        let features = embodiment.step_features().map(|f| (f.name.clone(), f.dtype, f.values()));
        Self { streams: Streams::of(embodiment), features: features.collect(), steps: 0 }
    }

    fn check(&self, values: &[Values<'_>]) -> Result<(), StepError> {
        if values.len() != self.features.len() {
            return Err(StepError::FeatureCount { found: values.len(), expected: self.features.len() });
        }
        for ((feature, dtype, expected), values) in self.features.iter().zip(values) {
            let (found, found_dtype) = (values.len(), values.dtype());
            if (found, found_dtype) != (*expected, *dtype) {
                let (feature, expected, dtype) = (feature.clone(), *expected, *dtype);
                return Err(StepError::Feature { feature, expected, dtype, found, found_dtype });
            }
        }
        Ok(())
    }
}

fn read_json<T: serde::de::DeserializeOwned>(frame: &'static str, body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|source| CallError::Json { frame, source })
}
