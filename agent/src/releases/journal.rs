//! What runs, what ran before, and what is on trial: the one file that decides after a power cut.
//!
//! Pure: the store writes the journal down after every change, before acting on it. An attempt is counted
//! before its switch, so a release that takes the agent down is not tried for ever.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zunft_protocol::dsse::Envelope;
use zunft_protocol::ids::{Digest, ReleaseId, SkillName};
use zunft_protocol::message::{ReleaseReport, ReleaseState};
use zunft_protocol::release::{AssignedRelease, Assignment};

/// The layout that this program writes.
pub(crate) const JOURNAL_VERSION: u32 = 1;

/// Trials after which a release that never finished one is given up.
const TRIAL_ATTEMPTS_MAX: u32 = 2;

/// A verified release on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Installed {
    /// Which.
    pub(crate) release: ReleaseId,
    /// Digest of its signed envelope: also its folder's name.
    pub(crate) envelope: Digest,
}

/// A release whose trial has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trial {
    pub(crate) installed: Installed,
    /// Trials begun, this one included.
    pub(crate) attempts: u32,
}

/// A release that was refused or reverted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failed {
    pub(crate) installed: Installed,
    pub(crate) reason: String,
}

/// One skill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Slot {
    pub(crate) current: Option<Installed>,
    pub(crate) previous: Option<Installed>,
    pub(crate) trial: Option<Trial>,
    pub(crate) failed: Option<Failed>,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(crate) version: u32,
    /// The last assignment accepted: an older one is never accepted again.
    pub(crate) accepted_sequence: u64,
    /// That assignment, as signed.
    pub(crate) assignment: Option<Envelope>,
    pub(crate) skills: BTreeMap<SkillName, Slot>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { version: JOURNAL_VERSION, accepted_sequence: 0, assignment: None, skills: BTreeMap::new() }
    }
}

impl From<&AssignedRelease> for Installed {
    fn from(assigned: &AssignedRelease) -> Self {
        Self { release: assigned.release.clone(), envelope: assigned.envelope }
    }
}

impl Journal {
    /// Takes a new assignment. Skills that it does not name are withdrawn and returned with what ran.
    ///
    /// What failed before is tried again: an operator who assigns it anew wants that.
    pub(crate) fn assign(&mut self, assignment: &Assignment, envelope: Envelope) -> Vec<(SkillName, Slot)> {
        self.accepted_sequence = assignment.sequence;
        self.assignment = Some(envelope);
        for slot in self.skills.values_mut() {
            slot.failed = None;
            slot.trial = None;
        }
        let named = |skill: &SkillName| assignment.releases.iter().any(|assigned| assigned.release.skill == *skill);
        let (kept, withdrawn) = std::mem::take(&mut self.skills).into_iter().partition(|(skill, _)| named(skill));
        self.skills = kept;
        Vec::from_iter::<BTreeMap<_, _>>(withdrawn)
    }

    /// Assigned releases that neither run nor have failed.
    pub(crate) fn missing(&self, assignment: &Assignment) -> Vec<Installed> {
        let settled = |installed: &Installed| {
            self.skills.get(&installed.release.skill).is_some_and(|slot| {
                slot.current.as_ref() == Some(installed)
                    || slot.failed.as_ref().is_some_and(|failed| failed.installed == *installed)
            })
        };
        assignment.releases.iter().map(Installed::from).filter(|installed| !settled(installed)).collect()
    }

    /// Counts a trial of `installed`; `false` when it has had its chances.
    pub(crate) fn begin_trial(&mut self, installed: &Installed) -> bool {
        let slot = self.skills.entry(installed.release.skill.clone()).or_default();
        let before =
            slot.trial.as_ref().filter(|trial| trial.installed == *installed).map_or(0, |trial| trial.attempts);
        if before >= TRIAL_ATTEMPTS_MAX {
            return false;
        }
        slot.trial = Some(Trial { installed: installed.clone(), attempts: before + 1 });
        true
    }

    /// The release on trial passed.
    pub(crate) fn commit(&mut self, skill: &SkillName) {
        let Some(slot) = self.skills.get_mut(skill) else { return };
        if let Some(trial) = slot.trial.take() {
            slot.previous = slot.current.replace(trial.installed);
            slot.failed = None;
        }
    }

    /// `installed` cannot be used.
    pub(crate) fn fail(&mut self, installed: &Installed, reason: String) {
        let slot = self.skills.entry(installed.release.skill.clone()).or_default();
        slot.trial = None;
        slot.failed = Some(Failed { installed: installed.clone(), reason });
    }

    /// The current release of `skill` cannot be loaded any more: back to the one before, if there is one.
    pub(crate) fn revert(&mut self, skill: &SkillName, reason: String) -> Option<Installed> {
        let slot = self.skills.get_mut(skill)?;
        let broken = slot.current.take()?;
        slot.failed = Some(Failed { installed: broken, reason });
        slot.current = slot.previous.take();
        slot.current.clone()
    }

    /// Whether a release's folder is still needed.
    pub(crate) fn refers_to(&self, envelope: &Digest) -> bool {
        self.skills.values().any(|slot| {
            let trial = slot.trial.as_ref().map(|trial| &trial.installed);
            [slot.current.as_ref(), slot.previous.as_ref(), trial]
                .into_iter()
                .flatten()
                .any(|installed| installed.envelope == *envelope)
        })
    }

    /// Every release and how it does.
    pub(crate) fn reports(&self) -> Vec<ReleaseReport> {
        let mut reports = Vec::new();
        let mut report = |installed: &Installed, state, reason: &str| {
            reports.push(ReleaseReport { release: installed.release.clone(), state, reason: reason.to_owned() });
        };
        for slot in self.skills.values() {
            if let Some(current) = &slot.current {
                report(current, ReleaseState::Active, "");
            }
            if let Some(trial) = &slot.trial {
                report(&trial.installed, ReleaseState::Staged, "");
            }
            if let Some(failed) = &slot.failed {
                report(&failed.installed, ReleaseState::Failed, &failed.reason);
            }
            if let Some(previous) = slot.previous.as_ref().filter(|previous| Some(*previous) != slot.current.as_ref()) {
                report(previous, ReleaseState::Previous, "");
            }
        }
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zunft_protocol::ids::SkillVersion;

    fn installed(version: u32) -> Installed {
        let release = ReleaseId { skill: skill(), version: SkillVersion(version) };
        Installed { envelope: Digest::of(&version.to_le_bytes()), release }
    }

    fn skill() -> SkillName {
        "push".parse().unwrap()
    }

    fn running(version: u32) -> Journal {
        let mut journal = Journal::default();
        assert!(journal.begin_trial(&installed(version)));
        journal.commit(&skill());
        journal
    }

    #[test]
    fn a_release_that_takes_the_agent_down_is_tried_twice_and_never_again() {
        let mut journal = running(1);
        assert!(journal.begin_trial(&installed(2)));
        assert!(journal.begin_trial(&installed(2)));
        assert!(!journal.begin_trial(&installed(2)));
        assert_eq!(journal.skills[&skill()].current, Some(installed(1)));
        journal.fail(&installed(2), "it never finished a trial".into());
        assert!(!journal.refers_to(&installed(2).envelope));
    }

    #[test]
    fn the_release_before_is_kept_to_go_back_to() {
        let mut journal = running(1);
        assert!(journal.begin_trial(&installed(2)));
        journal.commit(&skill());
        assert_eq!(journal.revert(&skill(), "damaged".into()), Some(installed(1)));
        let states: Vec<ReleaseState> = journal.reports().iter().map(|report| report.state).collect();
        assert_eq!(states, [ReleaseState::Active, ReleaseState::Failed]);
        assert_eq!(journal.revert(&skill(), "damaged".into()), None);
    }

    #[test]
    fn journal_survives_its_json() {
        let mut journal = running(1);
        journal.fail(&installed(2), "NaN".into());
        let json = serde_json::to_vec(&journal).unwrap();
        assert_eq!(serde_json::from_slice::<Journal>(&json).unwrap(), journal);
    }
}
