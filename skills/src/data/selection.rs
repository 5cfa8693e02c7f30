//! Which episodes of a snapshot a training run uses.
//!
//! Filters apply in the order of the fields, the bound a task last, so that "50 demonstrations a task" means the
//! first 50 successful episodes and not the successful among the first 50.

use std::fmt;

use serde::{Deserialize, Serialize};
use zunft_protocol::episode::{Actor, Manifest, Outcome};
use zunft_protocol::ids::{RobotId, TaskName};

/// What to take from a snapshot. The default takes everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Tasks to keep; all when empty. Each one named must have at least one episode left in the end.
    pub tasks: Vec<TaskName>,
    /// Robots to keep; all when empty.
    pub robots: Vec<RobotId>,
    /// Who acted; anyone when empty.
    pub actors: Vec<ActorKind>,
    /// Outcomes to keep, for example only successes; all when empty.
    pub outcomes: Vec<Outcome>,
    /// At most so many episodes of each task: the first in canonical order that passed every other filter.
    pub episodes_per_task_max: Option<usize>,
}

/// [`Actor`] without the particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// A person.
    Human,
    /// A scripted program.
    Script,
    /// A release of a skill.
    Release,
}

impl From<&Actor> for ActorKind {
    fn from(actor: &Actor) -> Self {
        match actor {
            Actor::Human => Self::Human,
            Actor::Script => Self::Script,
            Actor::Release { .. } => Self::Release,
        }
    }
}

/// How many episodes each filter left, for the error when none is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Funnel {
    /// Episodes of the snapshot.
    pub snapshot: usize,
    /// Left by `tasks`.
    pub tasks: usize,
    /// Left by `robots`.
    pub robots: usize,
    /// Left by `actors`.
    pub actors: usize,
    /// Left by `outcomes`.
    pub outcomes: usize,
    /// Left by `episodes_per_task_max`.
    pub bounded: usize,
}

impl fmt::Display for Funnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the snapshot has {}, `tasks` left {}, `robots` {}, `actors` {}, `outcomes` {}, `episodes_per_task_max` {}",
            self.snapshot, self.tasks, self.robots, self.actors, self.outcomes, self.bounded
        )
    }
}

impl Selection {
    /// Whether every filter but the bound a task keeps this episode; counts in `funnel`.
    pub(crate) fn keeps(&self, manifest: &Manifest, funnel: &mut Funnel) -> bool {
        fn passes<T: PartialEq>(allowed: &[T], found: &T, left: &mut usize) -> bool {
            let kept = allowed.is_empty() || allowed.contains(found);
            *left += usize::from(kept);
            kept
        }
        funnel.snapshot += 1;
        passes(&self.tasks, &manifest.task, &mut funnel.tasks)
            && passes(&self.robots, &manifest.robot, &mut funnel.robots)
            && passes(&self.actors, &ActorKind::from(&manifest.actor), &mut funnel.actors)
            && passes(&self.outcomes, &manifest.outcome, &mut funnel.outcomes)
    }
}
