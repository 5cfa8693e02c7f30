//! The tasks that a simulated cell can pose, by the names that episodes and skills carry.
//!
//! It does not know how a task is posed or judged: `start` samples it, `cell` judges it.

use std::{fmt, str::FromStr};

/// One task of the simulated cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Push a puck along the table to a goal, by contact alone.
    Push,
    /// Grasp an object by friction, carry it, and let go of it at a goal.
    PickPlace,
    /// Follow a curved seam with the torch at a steady speed.
    WeldSeam,
}

impl Task {
    /// Every task, in the order in which reports list them.
    pub const ALL: [Self; 3] = [Self::Push, Self::PickPlace, Self::WeldSeam];

    /// The task's name in episodes, skills and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::PickPlace => "pick-place",
            Self::WeldSeam => "weld-seam",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| UnknownTask { name: name.to_owned() })
    }
}

/// A task name that no simulated cell knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task {name:?}: choose push, pick-place or weld-seam")]
pub struct UnknownTask {
    /// The name that was asked for.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_found_by_its_name() {
        for task in Task::ALL {
            assert_eq!(task.to_string().parse(), Ok(task));
        }
    }

    #[test]
    fn unknown_task_is_named_with_the_remedy() {
        let error = "fold-towel".parse::<Task>().unwrap_err();
        assert_eq!(error.to_string(), "unknown task \"fold-towel\": choose push, pick-place or weld-seam");
    }
}
