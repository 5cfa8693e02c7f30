//! Child processes that live no longer than the demo, and come back when something kills them.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::exit::{ExitCode, Failure};

/// How often the supervisor looks after its children.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a child may take to stop in order.
const STOP_SECS_MAX: u32 = 15;

/// How often one child may die before the demo gives up on it.
const RESTARTS_MAX: u64 = 20;

/// One child: what it is called, how it is started, and the process while it lives.
struct Member {
    name: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
    restarts: u64,
}

/// Children, and the thread that starts them again as an init system would.
pub(super) struct Processes {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

struct Shared {
    members: Mutex<Vec<Member>>,
    stopping: AtomicBool,
    restarts: AtomicU64,
    /// The child that cannot be kept alive.
    lost: Mutex<Option<String>>,
}

/// Why a child was not started.
#[derive(Debug, thiserror::Error)]
#[error("could not start {name}")]
struct StartError {
    name: String,
    #[source]
    source: std::io::Error,
}

impl Processes {
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared {
            members: Mutex::new(Vec::new()),
            stopping: AtomicBool::new(false),
            restarts: AtomicU64::new(0),
            lost: Mutex::new(None),
        });
        let supervisor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.supervise()
        });
        Self { shared, supervisor: Some(supervisor) }
    }

    /// Starts this program again with other arguments; its log goes into a file.
    pub(super) fn start(&self, name: &str, arguments: &[&str], log: &Path) -> Result<(), Failure> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let child = spawn(&arguments, log)
            .map_err(|source| Failure::new(ExitCode::Internal, StartError { name: name.to_owned(), source }))?;
        let member = Member { name: name.to_owned(), arguments, log: log.to_owned(), child, restarts: 0 };
        self.shared.members().push(member);
        Ok(())
    }

    /// Fails when a child cannot be kept alive.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let lost = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.as_ref().map_or(Ok(()), |text| Err(Failure::new(ExitCode::Failed, text.clone())))
    }

    /// How often children had to be started again.
    pub(super) fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::SeqCst)
    }

    /// Asks all children to stop, last started first, and waits for them.
    pub(super) fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.join().expect("the supervisor does not panic");
        }
        let mut members = std::mem::take(&mut *self.shared.members());
        for member in members.iter_mut().rev() {
            signal(&member.child, Signal::TERM);
        }
        for member in members.iter_mut().rev() {
            if !ends_in_time(&mut member.child) {
                tracing::warn!(name = member.name, "did not stop in time and is killed");
                signal(&member.child, Signal::KILL);
                member.child.wait().ok();
            }
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn supervise(&self) {
        while !self.stopping.load(Ordering::SeqCst) {
            for member in self.members().iter_mut() {
                if let Ok(Some(status)) = member.child.try_wait() {
                    self.bring_back(member, status);
                }
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    fn bring_back(&self, member: &mut Member, status: std::process::ExitStatus) {
        tracing::warn!(name = member.name, %status, "ended, and is started again");
        // A configuration that it refuses will not be better the next time.
        let hopeless = member.restarts == RESTARTS_MAX || status.code() == Some(ExitCode::Input as i32);
        let again = if hopeless { None } else { spawn(&member.arguments, &member.log).ok() };
        match again {
            Some(child) => {
                member.child = child;
                member.restarts += 1;
                self.restarts.fetch_add(1, Ordering::SeqCst);
            }
            None => {
                let text = format!("{} does not stay alive ({status}){}", member.name, last_words(&member.log));
                *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            }
        }
    }
}

fn spawn(arguments: &[String], log: &Path) -> std::io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    Command::new(std::env::current_exe()?)
        .args(arguments)
        // A child ends when this pipe closes, however this process ends.
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .env("RUST_LOG", std::env::var_os("ZUNFT_DEMO_LOG").unwrap_or_else(|| "info".into()))
        // Ctrl-C is for the demo, which stops its children in order.
        .process_group(0)
        .spawn()
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended already.
        kill_process(pid, signal).ok();
    }
}

fn ends_in_time(child: &mut Child) -> bool {
    let looks = STOP_SECS_MAX * 50;
    for _ in 0..looks {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    false
}

/// The end of a child's log, for the error that says that it died.
fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().map(|line| format!("\n    {line}")).collect()
}
