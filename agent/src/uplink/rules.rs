//! What may be uploaded, how fast and when: the robot's own file, and what the hub's operator last said.
//!
//! The hub's policy replaces mode, caps, metering and windows of the file. Tasks that stay on site add up: what the file
//! keeps no hub sets free. The policy last heard is kept on disk, so that it holds before the hub is reached again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zunft_protocol::TaskName;
use zunft_protocol::session::policy::UploadPolicy;
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy, UploadMode, Window};

use crate::config::UploadConfig;
use crate::data_dir::replace_file;
use crate::text::chain;

/// The upload policy in force, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// Whose caps, metering and windows hold: `config` or `hub`.
    pub source: PolicySource,
    /// The last change at the hub that this robot heard of; 0: none yet.
    pub revision: u64,
    /// What is sent without being asked for.
    pub mode: UploadMode,
    /// Most bytes a second.
    pub bytes_per_second_max: Option<u64>,
    /// The same while the robot acts.
    pub bytes_per_second_max_acting: Option<u64>,
    /// Whether only labelled episodes are sent.
    pub metered: bool,
    /// When episodes are sent; none: at any time.
    pub windows: Vec<Window>,
    /// Tasks whose episodes stay on site: those of the robot's file, and those that the hub adds.
    pub keep_on_site_tasks: BTreeSet<TaskName>,
}

/// See [`PolicyStatus::source`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicySource {
    /// The robot's own file.
    #[default]
    Config,
    /// The hub.
    Hub,
}

/// Why the policy last heard cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{} cannot be read", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no upload policy", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is beyond what is allowed", path.display())]
    Policy {
        path: PathBuf,
        #[source]
        source: zunft_protocol::upload_policy::PolicyError,
    },
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct UploadRules {
    config: UploadConfig,
    /// Where the hub's policy is kept.
    path: PathBuf,
    /// Newest of the hub's.
    revision: u64,
    in_force: PolicyStatus,
}

impl UploadRules {
    /// The rules of a robot's file and of what the hub said before the agent was started.
    ///
    /// A policy that cannot be read is not obeyed, and nothing is lost by it: a hub says its policy before anything is
    /// offered to it.
    pub(crate) fn open(config: UploadConfig, path: PathBuf) -> Self {
        let pushed = read(&path).unwrap_or_else(|error| {
            tracing::error!(reason = chain(&error), "the hub's upload policy is forgotten until the hub is reached");
            PushedPolicy::default()
        });
        let in_force = merged(&config, &pushed);
        Self { config, path, revision: pushed.revision, in_force }
    }

    /// Keeps to what the hub said, unless something newer is known. Whether it was new.
    pub(super) fn take(&mut self, pushed: &PushedPolicy) -> bool {
        if pushed.revision <= self.revision {
            if pushed.revision < self.revision {
                let (heard, kept) = (pushed.revision, self.revision);
                tracing::warn!(heard, kept, "the hub's upload policy is older than the one it sent before: ignored");
            }
            return false;
        }
        self.revision = pushed.revision;
        self.in_force = merged(&self.config, pushed);
        true
    }

    /// Keeps a policy for the next start. It waits for the disk, on a thread that may.
    pub(super) async fn keep(&self, pushed: &PushedPolicy) {
        let bytes = serde_json::to_vec(pushed).expect("a policy has text keys");
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace_file(&path, &bytes)).await;
        if let Err(error) = written.unwrap_or_else(|failed| Err(io::Error::other(failed))) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the hub's upload policy holds, but is not on disk: a restart forgets it");
        }
    }

    /// The cap while the robot acts or rests.
    pub(super) fn bytes_per_second(&self, acting: bool) -> Option<u64> {
        let acting = self.in_force.bytes_per_second_max_acting.filter(|_| acting);
        [self.in_force.bytes_per_second_max, acting].into_iter().flatten().min()
    }

    /// What the session has to keep to.
    pub(super) fn session_policy(&self) -> UploadPolicy {
        UploadPolicy {
            windows: self.in_force.windows.clone(),
            metered: self.in_force.metered,
            mode: self.in_force.mode,
        }
    }

    /// Whether episodes of this task are never offered.
    pub(super) fn stay_on_site(&self, task: &TaskName) -> bool {
        self.in_force.keep_on_site_tasks.contains(task)
    }

    /// What holds.
    pub(crate) fn status(&self) -> &PolicyStatus {
        &self.in_force
    }
}

fn read(path: &Path) -> Result<PushedPolicy, ReadError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PushedPolicy::default()),
        Err(source) => return Err(ReadError::Io { path: path.to_owned(), source }),
    };
    let pushed: PushedPolicy =
        serde_json::from_slice(&text).map_err(|source| ReadError::Json { path: path.to_owned(), source })?;
    let checked = pushed.policy.as_ref().map_or(Ok(()), HubPolicy::check);
    checked.map_err(|source| ReadError::Policy { path: path.to_owned(), source })?;
    Ok(pushed)
}

/// What holds of a robot's file and a hub's policy together.
fn merged(config: &UploadConfig, pushed: &PushedPolicy) -> PolicyStatus {
    let mut keep_on_site_tasks: BTreeSet<TaskName> = config.keep_on_site_tasks.iter().cloned().collect();
    let revision = pushed.revision;
    match &pushed.policy {
        Some(policy) => {
            // Never fewer than the file's: whoever holds the hub must not be able to fetch what was to stay.
            keep_on_site_tasks.extend(policy.keep_on_site_tasks.iter().cloned());
            PolicyStatus {
                source: PolicySource::Hub,
                revision,
                mode: policy.mode,
                bytes_per_second_max: policy.bytes_per_second_max,
                bytes_per_second_max_acting: policy.bytes_per_second_max_acting,
                metered: policy.metered,
                windows: policy.windows.clone(),
                keep_on_site_tasks,
            }
        }
        None => PolicyStatus {
            source: PolicySource::Config,
            revision,
            mode: config.mode,
            bytes_per_second_max: config.bytes_per_second_max,
            bytes_per_second_max_acting: config.bytes_per_second_max_acting,
            metered: config.metered,
            // Windows that are none were refused when the configuration was checked.
            windows: config.windows.iter().filter_map(|window| window.window().ok()).collect(),
            keep_on_site_tasks,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WindowConfig;

    fn task(name: &str) -> TaskName {
        name.parse().unwrap()
    }

    fn config() -> UploadConfig {
        UploadConfig {
            bytes_per_second_max: Some(50_000),
            bytes_per_second_max_acting: Some(10_000),
            metered: true,
            keep_on_site_tasks: vec![task("weld")],
            windows: vec![WindowConfig { from: "22:00".into(), to: "06:00".into() }],
            ..UploadConfig::default()
        }
    }

    fn pushed(revision: u64, policy: HubPolicy) -> PushedPolicy {
        PushedPolicy { revision, policy: Some(policy) }
    }

    fn rules(folder: &tempfile::TempDir) -> UploadRules {
        UploadRules::open(config(), folder.path().join("upload-policy.json"))
    }

    #[test]
    fn the_hubs_policy_replaces_the_files_but_sets_no_task_free() {
        let folder = tempfile::tempdir().unwrap();
        let mut rules = rules(&folder);
        let of_the_file = rules.status().clone();
        assert_eq!((of_the_file.source, of_the_file.revision), (PolicySource::Config, 0));
        assert_eq!((rules.bytes_per_second(false), rules.bytes_per_second(true)), (Some(50_000), Some(10_000)));
        // Nothing but a task: no cap, no windows, not metered.
        let policy = HubPolicy { keep_on_site_tasks: [task("fold")].into(), ..HubPolicy::default() };
        assert!(rules.take(&pushed(3, policy)));
        assert_eq!((rules.status().source, rules.status().revision), (PolicySource::Hub, 3));
        assert_eq!((rules.bytes_per_second(false), rules.bytes_per_second(true)), (None, None));
        assert_eq!(rules.session_policy(), UploadPolicy::default());
        assert!(rules.stay_on_site(&task("fold")) && rules.stay_on_site(&task("weld")));
        assert!(rules.take(&pushed(4, HubPolicy::default())));
        assert!(!rules.stay_on_site(&task("fold")) && rules.stay_on_site(&task("weld")), "the file's word stands");
        assert!(rules.take(&PushedPolicy { revision: 5, policy: None }));
        assert_eq!(rules.status(), &PolicyStatus { revision: 5, ..of_the_file }, "cleared: the file holds again");
    }

    #[test]
    fn the_lower_cap_holds_while_the_robot_acts() {
        let capped = |max, acting| {
            let upload = UploadConfig {
                bytes_per_second_max: max,
                bytes_per_second_max_acting: acting,
                ..UploadConfig::default()
            };
            let rules = UploadRules::open(upload, "/nowhere".into());
            (rules.bytes_per_second(false), rules.bytes_per_second(true))
        };
        assert_eq!(capped(None, None), (None, None));
        assert_eq!(capped(Some(9), Some(5)), (Some(9), Some(5)));
        assert_eq!(capped(Some(9), Some(50)), (Some(9), Some(9)));
        assert_eq!(capped(None, Some(5)), (None, Some(5)));
    }

    #[test]
    fn an_older_policy_never_replaces_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut rules = rules(&folder);
        let capped = |rate| HubPolicy { bytes_per_second_max: Some(rate), ..HubPolicy::default() };
        assert!(!rules.take(&PushedPolicy::default()), "a hub without a policy changes nothing");
        assert!(rules.take(&pushed(7, capped(5000))));
        for (revision, policy) in [(7, capped(6000)), (6, capped(6000)), (0, HubPolicy::default())] {
            assert!(!rules.take(&pushed(revision, policy)));
            assert_eq!((rules.bytes_per_second(false), rules.status().revision), (Some(5000), 7));
        }
        assert!(!rules.take(&PushedPolicy { revision: 6, policy: None }), "an old clearing neither");
        assert_eq!(rules.bytes_per_second(false), Some(5000));
    }

    #[tokio::test]
    async fn a_policy_survives_a_restart_and_a_damaged_one_is_not_obeyed() {
        let folder = tempfile::tempdir().unwrap();
        let policy = HubPolicy {
            bytes_per_second_max: Some(5000),
            metered: true,
            windows: vec![Window::new(60, 120).unwrap()],
            keep_on_site_tasks: [task("fold")].into(),
            ..HubPolicy::default()
        };
        let pushed = pushed(9, policy);
        let mut before = rules(&folder);
        before.take(&pushed);
        before.keep(&pushed).await;
        let mut after = rules(&folder);
        assert_eq!(after.status(), before.status());
        assert!(!after.take(&PushedPolicy { revision: 8, policy: None }), "the revision survives as well");
        for damaged in [&b"{"[..], b"{\"revision\":9,\"policy\":{\"bytes_per_second_max\":1}}", b"\xff"] {
            fs::write(folder.path().join("upload-policy.json"), damaged).unwrap();
            let mut damaged = rules(&folder);
            assert_eq!((damaged.status().source, damaged.status().revision), (PolicySource::Config, 0));
            assert!(damaged.take(&pushed), "the hub says it again");
        }
    }
}
