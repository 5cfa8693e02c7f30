//! Acting for one connection: which release answers, and the actions that are left of its last answer.

use std::collections::VecDeque;
use std::sync::Arc;

use zunft_protocol::ids::TaskName;
use zunft_protocol::local::{Act, Action};

use super::recording::OpenRecording;
use super::refusal::RequestError;
use crate::policy::LoadedRelease;
use crate::releases::Releases;

/// The actions that are left, and what they belong to.
#[derive(Default)]
pub(crate) struct Acting {
    of: Option<(Arc<LoadedRelease>, TaskName)>,
    waiting: VecDeque<Vec<f32>>,
}

impl Acting {
    /// Answers ACT: from the actions that are left, or by asking the policy.
    pub(crate) fn act(
        &mut self,
        act: Act,
        releases: &Releases,
        recording: Option<&OpenRecording>,
    ) -> Result<Action, RequestError> {
        let pinned = recording.and_then(|recording| recording.pinned(&act.skill)).cloned();
        let release = pinned
            .or_else(|| releases.active(&act.skill))
            .ok_or_else(|| RequestError::NoRelease { skill: act.skill.to_string() })?;
        // Actions of another release, task or episode answer observations that are no longer true.
        let carries_on =
            !act.first && self.of.as_ref().is_some_and(|(of, task)| Arc::ptr_eq(of, &release) && *task == act.task);
        if !carries_on {
            self.waiting.clear();
        }
        if self.waiting.is_empty() {
            let actions = release.act(&act.task, act.observation).ok_or(RequestError::PolicyGone)?;
            self.waiting = actions?.into();
        }
        let values = self.waiting.pop_front().ok_or(RequestError::PolicyGone)?;
        let action = Action { version: release.release().version, manifest: release.envelope(), values };
        self.of = Some((release, act.task));
        Ok(action)
    }

    /// Forgets the last answer, and with it the release.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}
