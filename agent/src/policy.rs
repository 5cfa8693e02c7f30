//! A release that is loaded and answers: one OS thread each, asked through a bounded mailbox.
//!
//! It knows nothing of sockets, nor of which release should run.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zunft_protocol::ids::{Digest, ReleaseId, TaskName};
use zunft_skills::runtime::{ActError, LoadError, SkillRuntime};

/// Questions that may wait for one release. Every connection asks one at a time; when it is full they wait.
const QUESTIONS_MAX: usize = 16;

/// Answers whose time is measured in a trial.
const TRIAL_ACTS: usize = 20;

/// Why a release cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The package, its weights or its golden vectors.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not answer.
    #[error("it does not answer a plain observation")]
    Act(#[from] ActError),
    /// It answers too slowly.
    #[error("it needs {found:?} for an action; this robot's control step is {allowed:?}")]
    Slow {
        /// Median of the trial.
        found: Duration,
        /// The control step.
        allowed: Duration,
    },
    /// The system gave no thread, or the thread failed.
    #[error("its thread failed; see the agent's log")]
    Thread,
}

struct Question {
    task: TaskName,
    observation: Vec<f32>,
    answer: SyncSender<Result<Actions, ActError>>,
}

/// The actions to carry out before the policy is asked again, soonest first.
pub type Actions = Vec<Vec<f32>>;

/// A release ready to act.
#[derive(Debug)]
pub struct LoadedRelease {
    release: ReleaseId,
    envelope: Digest,
    tasks: Vec<TaskName>,
    questions: Option<SyncSender<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl LoadedRelease {
    /// Loads the package in `folder`, lets it answer its golden vectors and measures how long it takes.
    pub fn load(folder: &Path, envelope: Digest) -> Result<Self, TrialError> {
        let (questions, asked) = sync_channel(QUESTIONS_MAX);
        let (ready, loaded) = sync_channel(1);
        let folder = folder.to_owned();
        let thread = std::thread::Builder::new()
            .name("policy".into())
            .spawn(move || {
                let runtime = SkillRuntime::load(&folder).map_err(TrialError::from);
                match runtime.and_then(|runtime| check_latency(&runtime).map(|()| runtime)) {
                    Ok(runtime) => {
                        // Whoever waits may have given up; then the questions end at once, too.
                        drop(ready.send(Ok((runtime.release().clone(), runtime.tasks().to_vec()))));
                        answer(&runtime, &asked);
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|_| TrialError::Thread)?;
        let (release, tasks) = loaded.recv().map_err(|_| TrialError::Thread)??;
        Ok(Self { release, envelope, tasks, questions: Some(questions), thread: Some(thread) })
    }

    /// Which release this is.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// Digest of its signed envelope.
    pub fn envelope(&self) -> Digest {
        self.envelope
    }

    /// The tasks that it knows.
    pub fn tasks(&self) -> &[TaskName] {
        &self.tasks
    }

    /// Asks for the next actions; `None` when the release's thread is gone.
    pub fn act(&self, task: &TaskName, observation: Vec<f32>) -> Option<Result<Actions, ActError>> {
        let (answer, answered) = sync_channel(1);
        let question = Question { task: task.clone(), observation, answer };
        self.questions.as_ref()?.send(question).ok()?;
        answered.recv().ok()
    }
}

impl Drop for LoadedRelease {
    fn drop(&mut self) {
        self.questions = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(release = %self.release, "the policy's thread failed");
        }
    }
}

fn answer(runtime: &SkillRuntime, asked: &Receiver<Question>) {
    while let Ok(Question { task, observation, answer }) = asked.recv() {
        // The connection may have closed meanwhile.
        drop(answer.send(act(runtime, &task, &observation)));
    }
}

fn act(runtime: &SkillRuntime, task: &TaskName, observation: &[f32]) -> Result<Actions, ActError> {
    let chunk = runtime.act(task, observation)?;
    Ok(chunk.actions().take(runtime.policy().n_action_steps()).map(<[f32]>::to_vec).collect())
}

/// A release that cannot keep up with the robot's control rate is of no use to it.
fn check_latency(runtime: &SkillRuntime) -> Result<(), TrialError> {
    let task = runtime.tasks().first().expect("a loaded skill knows a task");
    let observation = vec![0.0; runtime.shape().observation_dim];
    let mut times = Vec::with_capacity(TRIAL_ACTS);
    for _ in 0..TRIAL_ACTS {
        let began = now();
        act(runtime, task, &observation)?;
        times.push(now() - began);
    }
    times.sort_unstable();
    let found = times[TRIAL_ACTS / 2];
    let allowed = Duration::from_secs_f64(1.0 / runtime.embodiment().rate_hz);
    if found > allowed { Err(TrialError::Slow { found, allowed }) } else { Ok(()) }
}

#[expect(clippy::disallowed_methods, reason = "measuring how long an answer takes needs the clock")]
fn now() -> Instant {
    Instant::now()
}
