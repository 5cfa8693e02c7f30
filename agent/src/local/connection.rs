//! One control program's connection, from its greeting to its end.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zunft_protocol::episode::{Actor, EpisodeEnd, Truncation};
use zunft_protocol::local::{
    self, Act, Begin, BeginActor, Begun, End, FrameType, GREETING_BYTES, HEADER_BYTES, Header, Sample,
};

use super::Services;
use super::acting::Acting;
use super::recording::OpenRecording;
use super::refusal::RequestError;
use crate::events::Subscription;

/// A program that has not said its greeting by then holds a place for nothing.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// Read buffer: about a hundred steps of a common robot.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Between two reads of a program that only records, and fast: a thread that does not wait for the socket is not woken
/// by each step, and waking it is most of what a step costs its program.
const REST: Duration = Duration::from_millis(2);

/// Steps that are closer together than this are fast.
const FAST: Duration = Duration::from_millis(5);

/// A program that asked for something so lately waits for no rest when it asks again.
const ASKED_LATELY: Duration = Duration::from_secs(1);

/// Larger steps are read at once: with a few of them the socket is full, and the program waits.
const RESTING_STEP_BYTES_MAX: u32 = 4 * 1024;

/// Buffers above this are given back after use: one image need not be held for ever.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Tells a program over the limit so, without waiting for it.
pub(super) fn turn_away(mut stream: UnixStream) {
    let (greeting, _) = local::answer_greeting(local::client_greeting());
    let mut bytes = greeting.to_vec();
    local::write_frame(&mut bytes, FrameType::Error, 0, &RequestError::Busy.body());
    // A fresh socket's buffer holds this; if the program is gone already, so be it.
    drop(stream.write_all(&bytes));
}

type Writer = Arc<Mutex<UnixStream>>;

pub(super) struct Connection<'s> {
    reader: BufReader<UnixStream>,
    writer: Option<Writer>,
    services: &'s Services,
    stopping: &'s AtomicBool,
    recording: Option<OpenRecording>,
    acting: Acting,
    subscription: Option<(Arc<Subscription>, JoinHandle<()>)>,
    body: Vec<u8>,
    answer: Vec<u8>,
    pace: Pace,
}

impl<'s> Connection<'s> {
    pub(super) fn new(stream: UnixStream, services: &'s Services, stopping: &'s AtomicBool) -> Self {
        Self {
            writer: stream.try_clone().ok().map(|writer| Arc::new(Mutex::new(writer))),
            reader: BufReader::with_capacity(READ_BUFFER_BYTES, stream),
            services,
            stopping,
            recording: None,
            acting: Acting::default(),
            subscription: None,
            body: Vec::new(),
            answer: Vec::new(),
            pace: Pace::new(crate::activity::now()),
        }
    }

    /// Serves until either side is done, then seals what is open.
    pub(super) fn run(mut self) {
        match self.greet().and_then(|fits| if fits { self.serve() } else { Ok(()) }) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => tracing::debug!(%error, "a control program's connection broke"),
        }
        if let Some(recording) = self.recording.take() {
            let stopping = self.stopping.load(Ordering::Acquire);
            let limit = if stopping { Truncation::AgentStopped } else { Truncation::ClientGone };
            recording.cut_off(EpisodeEnd::Truncated { limit });
        }
        // The server holds the socket, too, so dropping ours would not end it; and a subscriber's thread may
        // stand in a write to a program that does not read.
        drop(self.reader.get_ref().shutdown(std::net::Shutdown::Both));
        if let Some((subscription, thread)) = self.subscription.take() {
            subscription.close();
            drop(thread.join());
        }
    }

    fn greet(&mut self) -> io::Result<bool> {
        let mut greeting = [0; GREETING_BYTES];
        self.reader.get_ref().set_read_timeout(Some(GREETING_PATIENCE))?;
        self.reader.read_exact(&mut greeting)?;
        self.reader.get_ref().set_read_timeout(None)?;
        let (answer, fits) = local::answer_greeting(greeting);
        self.write(&answer)?;
        Ok(fits)
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let mut header = [0; HEADER_BYTES];
            if self.reader.buffer().is_empty() && self.pace.rests() {
                std::thread::sleep(REST);
            }
            self.reader.read_exact(&mut header)?;
            let request = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            let result = match Header::decode(header) {
                Ok(header) => {
                    self.pace.heard(header, crate::activity::now());
                    let mut body = std::mem::take(&mut self.body);
                    body.resize(header.body_bytes as usize, 0);
                    self.reader.read_exact(&mut body)?;
                    let result = self.handle(header, &body);
                    body.clear();
                    if body.capacity() <= KEPT_BYTES_MAX {
                        self.body = body;
                    }
                    result
                }
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(()) => self.flush()?,
                Err(error) => {
                    if error.ends_recording() {
                        self.recording = None;
                    }
                    tracing::debug!(code = error.code(), message = %error, "request refused");
                    self.say(FrameType::Error, request, &error.body());
                    self.flush()?;
                    if error.closes() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn handle(&mut self, header: Header, body: &[u8]) -> Result<(), RequestError> {
        let request = header.request;
        match header.frame_type {
            FrameType::Step => {
                let recording = self.recording.as_mut().ok_or(RequestError::NotRecording)?;
                let step = recording.read(body)?;
                recording.step(&step, &self.services.clock)?;
            }
            FrameType::Sample => {
                let recording = self.recording.as_mut().ok_or(RequestError::NotRecording)?;
                recording.sample(&Sample::decode(body)?, &self.services.clock)?;
            }
            FrameType::Act => {
                let act = Act::decode(body)?;
                self.services.activity.acted(crate::activity::now());
                let action = self.acting.act(act, &self.services.releases, self.recording.as_ref())?;
                let mut values = Vec::with_capacity(64 + action.values.len() * 4);
                action.encode(&mut values);
                self.say(FrameType::Action, request, &values);
            }
            FrameType::Begin => {
                let begun = self.begin(json("BEGIN", body)?)?;
                self.say_json(FrameType::Begun, request, &begun);
            }
            FrameType::End => {
                let end: End = json("END", body)?;
                let recording = self.recording.take().ok_or(RequestError::NotRecording)?;
                self.acting.forget();
                let ended = recording.end(&end)?;
                self.say_json(FrameType::Ended, request, &ended);
            }
            FrameType::Progress => {
                let recording = self.recording.as_ref().ok_or(RequestError::NotRecording)?;
                self.say(FrameType::ProgressIs, request, &recording.progress().encode());
            }
            FrameType::Status => self.say_json(FrameType::StatusIs, request, &(self.services.status)()),
            FrameType::Subscribe => self.subscribe(request),
            FrameType::Echo => self.say(FrameType::Echoed, request, body),
            FrameType::Begun
            | FrameType::Ended
            | FrameType::ProgressIs
            | FrameType::Action
            | FrameType::StatusIs
            | FrameType::Subscribed
            | FrameType::Echoed
            | FrameType::Event
            | FrameType::Error => return Err(RequestError::Direction { frame: "an answer" }),
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin) -> Result<Begun, RequestError> {
        if self.recording.is_some() {
            return Err(RequestError::AlreadyRecording);
        }
        let Services { spool, releases, body, .. } = self.services;
        if body.admit(&begin.embodiment)? {
            // Releases may have waited for the robot's body to be known.
            releases.look_again();
        }
        let pinned = match &begin.actor {
            BeginActor::Human | BeginActor::Script => None,
            BeginActor::Skill { skill } => {
                let none = || RequestError::NoRelease { skill: skill.to_string() };
                Some(releases.active(skill).ok_or_else(none)?)
            }
        };
        if let Some(release) = pinned.as_ref().filter(|release| !release.tasks().contains(&begin.task)) {
            let known = release.tasks().iter().map(|task| task.as_str()).collect::<Vec<_>>().join(", ");
            let (release, task) = (release.release().to_string(), begin.task.to_string());
            return Err(RequestError::UnknownTask { release, task, known });
        }
        let actor = match (&begin.actor, &pinned) {
            (BeginActor::Human, _) => Actor::Human,
            (_, Some(release)) => Actor::Release { release: release.release().clone(), manifest: release.envelope() },
            (BeginActor::Script | BeginActor::Skill { .. }, None) => Actor::Script,
        };
        let recording = spool.record(begin.task, begin.embodiment.clone(), actor)?;
        let begun = Begun {
            recording: recording.id(),
            step_bytes: begin.embodiment.step_bytes() as u32,
            release: pinned.as_ref().map(|release| release.release().clone()),
        };
        self.acting.forget();
        self.recording = Some(OpenRecording::new(recording, begin.embodiment, pinned));
        Ok(begun)
    }

    fn subscribe(&mut self, request: u32) {
        self.say(FrameType::Subscribed, request, &[]);
        let (None, Some(writer)) = (&self.subscription, self.writer.clone()) else { return };
        let subscription = self.services.events.subscribe();
        let queue = Arc::clone(&subscription);
        let spawned = std::thread::Builder::new().name("events".into()).spawn(move || {
            while let Some(event) = queue.next() {
                let json = serde_json::to_vec(&event).expect("an event has string keys");
                let mut frame = Vec::new();
                local::write_frame(&mut frame, FrameType::Event, request, &json);
                if writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame).is_err() {
                    return;
                }
            }
        });
        match spawned {
            Ok(thread) => self.subscription = Some((subscription, thread)),
            Err(error) => tracing::warn!(%error, "no thread for a subscriber"),
        }
    }

    fn say(&mut self, frame_type: FrameType, request: u32, body: &[u8]) {
        local::write_frame(&mut self.answer, frame_type, request, body);
    }

    fn say_json(&mut self, frame_type: FrameType, request: u32, body: &impl Serialize) {
        let json = serde_json::to_vec(body).expect("answers have string keys");
        self.say(frame_type, request, &json);
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.answer.is_empty() {
            return Ok(());
        }
        let answer = std::mem::take(&mut self.answer);
        let written = self.write(&answer);
        self.answer = answer;
        self.answer.clear();
        self.answer.shrink_to(KEPT_BYTES_MAX);
        written
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let writer = self.writer.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }
}

/// How a program talks.
#[derive(Debug)]
struct Pace {
    /// When it last said anything but a small step. An image does not fit into the socket while nobody reads.
    asked: Instant,
    /// When it last sent a small step, and whether that came fast after the one before.
    stepped: Instant,
    fast: bool,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { asked: now, stepped: now, fast: false }
    }

    fn heard(&mut self, header: Header, now: Instant) {
        if header.frame_type == FrameType::Step && header.body_bytes <= RESTING_STEP_BYTES_MAX {
            self.fast = now.saturating_duration_since(self.stepped) < FAST
                && now.saturating_duration_since(self.asked) >= ASKED_LATELY;
            self.stepped = now;
        } else {
            (self.asked, self.fast) = (now, false);
        }
    }

    /// Whether what comes next may lie in the socket for a moment.
    fn rests(&self) -> bool {
        self.fast
    }
}

fn json<T: DeserializeOwned>(frame: &'static str, body: &[u8]) -> Result<T, RequestError> {
    serde_json::from_slice(body).map_err(|error| RequestError::Json { frame, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fast_steps_of_a_program_that_asks_nothing_lie_for_a_moment() {
        let begin = crate::activity::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let header = |frame_type, body_bytes| Header { frame_type, request: 0, body_bytes };
        let step = header(FrameType::Step, RESTING_STEP_BYTES_MAX);
        let (large, question) = (header(FrameType::Step, RESTING_STEP_BYTES_MAX + 1), header(FrameType::Act, 8));
        let mut pace = Pace::new(begin);
        pace.heard(step, at(1));
        pace.heard(step, at(2));
        assert!(!pace.rests(), "it began a moment ago");
        for millis in 1000..1010 {
            pace.heard(step, at(millis));
        }
        assert!(pace.rests());
        pace.heard(step, at(1030));
        assert!(!pace.rests(), "50 Hz is slow");
        pace.heard(step, at(1031));
        assert!(pace.rests());
        pace.heard(question, at(1032));
        assert!(!pace.rests(), "it may act now");
        pace.heard(step, at(1033));
        assert!(!pace.rests(), "and may again");
        pace.heard(step, at(2032));
        pace.heard(step, at(2033));
        assert!(pace.rests());
        pace.heard(large, at(2034));
        assert!(!pace.rests(), "a few of these fill the socket");
    }
}
