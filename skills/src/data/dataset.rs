//! The flat arrays that training reads, made from the episodes of a snapshot.
//!
//! Everything is verified here, whatever the source: ids against bytes, chunks against manifests, values against
//! NaN. It knows neither files nor parquet, and nothing of windows or normalisation.

use std::ops::Range;

use zunft_protocol::chunk::ChunkError;
use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::episode::{ManifestError, Outcome};
use zunft_protocol::ids::{ChunkId, EmbodimentId, EpisodeId, RobotId, SnapshotId, TaskName, TenantId};

use super::selected::{Layout, Selected, decode_steps, read_stored, select};
use super::selection::{Funnel, Selection};
use super::source::{EpisodeSource, SourceError};

/// Most values in one dataset, over observations and actions.
///
/// They lie in memory as f32, so this is 8 GiB: a day of ten arms at 500 Hz with 40 values a step. More needs
/// a [`Loader`](super::Loader).
pub const DATASET_VALUES_MAX: usize = 2 * 1024 * 1024 * 1024;

/// Selected episodes of one snapshot as flat arrays.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Where the episodes come from.
    pub snapshot: SnapshotId,
    /// The body that all of them share.
    pub embodiment: Embodiment,
    /// Tasks of the selected episodes, sorted: the one-hot order.
    pub tasks: Vec<TaskName>,
    /// In canonical order: robot, then recording ordinal.
    pub episodes: Vec<DatasetEpisode>,
    /// Values of one observation.
    pub observation_dim: usize,
    /// Values of one action.
    pub action_dim: usize,
    /// `[steps, observation_dim]`: all f32 observation features, flattened, in the embodiment's order.
    pub observations: Vec<f32>,
    /// `[steps, action_dim]`.
    pub actions: Vec<f32>,
}

/// One episode of a [`Dataset`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetEpisode {
    /// Its id.
    pub id: EpisodeId,
    /// Index into [`Dataset::tasks`].
    pub task: usize,
    /// How it went.
    pub outcome: Outcome,
    /// Its rows in the arrays.
    pub steps: Range<usize>,
}

/// Why no dataset could be made.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The source lacks bytes or cannot read them.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A manifest that this program cannot use.
    #[error("episode {episode} has a manifest that cannot be used")]
    Manifest {
        /// The episode.
        episode: EpisodeId,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Bytes that are not what their id says.
    #[error(
        "{what} {id} of episode {episode} is damaged: its bytes have another hash or size; fetch or import the snapshot again"
    )]
    Damaged {
        /// `manifest` or `chunk`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The episode it belongs to.
        episode: EpisodeId,
    },
    /// A snapshot that misstates whose recording an episode is.
    #[error(
        "the snapshot lists episode {episode} as recording {ordinal} of robot {robot} of tenant {tenant}; its manifest says otherwise: make the snapshot again"
    )]
    Contradiction {
        /// The episode.
        episode: EpisodeId,
        /// Whose the snapshot is.
        tenant: TenantId,
        /// The robot it lists.
        robot: RobotId,
        /// The ordinal it lists.
        ordinal: u64,
    },
    /// A chunk with the right hash and contents that contradict the manifest.
    #[error("chunk {chunk} of episode {episode} cannot be decoded")]
    Chunk {
        /// The chunk.
        chunk: ChunkId,
        /// The episode.
        episode: EpisodeId,
        /// Why.
        #[source]
        source: ChunkError,
    },
    /// A chunk with another number of steps than its manifest says.
    #[error(
        "chunk {chunk} of episode {episode} holds {found} steps; the manifest says {expected}: record the episode again"
    )]
    ChunkSteps {
        /// The chunk.
        chunk: ChunkId,
        /// The episode.
        episode: EpisodeId,
        /// Steps found.
        found: u32,
        /// Steps promised.
        expected: u32,
    },
    /// Steps without one of the embodiment's features, or with another shape of it.
    #[error(
        "episode {episode} records feature {feature:?} as {found}; its embodiment says {expected} f32 values a step"
    )]
    Column {
        /// The episode.
        episode: EpisodeId,
        /// The feature.
        feature: String,
        /// What the stream's schema says.
        found: String,
        /// Values a step that the embodiment promises.
        expected: usize,
    },
    /// Two bodies in one selection.
    #[error(transparent)]
    MixedEmbodiments(Box<MixedEmbodiments>),
    /// A body from which nothing can be learned.
    #[error(
        "embodiment {embodiment:?} has no f32 {missing} in its steps; a policy needs an f32 \"action\" and at least one f32 \"observation.*\" feature without a rate of its own"
    )]
    Features {
        /// The embodiment.
        embodiment: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// NaN or an infinity.
    #[error(
        "episode {episode} (robot {robot}, recording {ordinal}) has {value} in {feature:?}[{index}] at step {step}; leave that episode out or record it again"
    )]
    NotFinite {
        /// The episode.
        episode: EpisodeId,
        /// Its robot.
        robot: RobotId,
        /// Its ordinal.
        ordinal: u64,
        /// The feature.
        feature: String,
        /// Which of its values.
        index: usize,
        /// The step, counted from 0 in the episode.
        step: usize,
        /// What was found.
        value: f32,
    },
    /// Nothing left to train on.
    #[error("the selection leaves no episode: {funnel}")]
    Empty {
        /// Episodes after each filter.
        funnel: Funnel,
    },
    /// A task asked for by name that has no episode.
    #[error(
        "no selected episode is of task {task}; the selection has {}: correct `tasks` or widen the other filters", names(.known)
    )]
    UnknownTask {
        /// The task asked for.
        task: TaskName,
        /// The tasks that have episodes.
        known: Vec<TaskName>,
    },
    /// Over the bound.
    #[error(
        "the selection has {steps} steps of {step_values} values; a dataset holds at most {DATASET_VALUES_MAX} values: lower `episodes_per_task_max` or select fewer tasks"
    )]
    TooLarge {
        /// Steps over all selected episodes.
        steps: u64,
        /// Values a step.
        step_values: usize,
    },
}

/// Two bodies in one selection.
#[derive(Debug, thiserror::Error)]
#[error(
    "episodes of two embodiments cannot train one skill: {first_name:?} ({first_id}) in episode {first_episode}, {other_name:?} ({other_id}) in episode {other_episode}; select robots of one embodiment"
)]
pub struct MixedEmbodiments {
    /// Name of the first episode's.
    pub first_name: String,
    /// Its id.
    pub first_id: EmbodimentId,
    /// That episode.
    pub first_episode: EpisodeId,
    /// Name of the other.
    pub other_name: String,
    /// Its id.
    pub other_id: EmbodimentId,
    /// An episode with it.
    pub other_episode: EpisodeId,
}

fn names(tasks: &[TaskName]) -> String {
    tasks.iter().map(TaskName::as_str).collect::<Vec<_>>().join(", ")
}

impl Dataset {
    /// Reads the selected episodes, verifying every hash.
    pub fn load(source: &mut dyn EpisodeSource, selection: &Selection) -> Result<Self, DatasetError> {
        let snapshot = source.snapshot().id();
        let (selected, embodiment) = select(source, selection)?;
        let layout = Layout::of(&embodiment)?;
        let mut tasks: Vec<TaskName> = selected.iter().map(|episode| episode.task.clone()).collect();
        tasks.sort();
        tasks.dedup();
        if let Some(task) = selection.tasks.iter().find(|task| tasks.binary_search(task).is_err()) {
            return Err(DatasetError::UnknownTask { task: task.clone(), known: tasks });
        }
        let steps = total_steps(&selected, &layout)?;
        let mut dataset = Self {
            snapshot,
            embodiment,
            tasks,
            episodes: Vec::with_capacity(selected.len()),
            observation_dim: layout.observation_dim,
            action_dim: layout.action_dim,
            observations: Vec::with_capacity(steps * layout.observation_dim),
            actions: Vec::with_capacity(steps * layout.action_dim),
        };
        for episode in &selected {
            dataset.append(source, episode, &layout)?;
        }
        Ok(dataset)
    }

    /// The streams of the embodiment beside the steps, which are not in the arrays: cameras, and features with a rate of
    /// their own. Policies do not read them.
    pub fn streams_left_out(&self) -> Vec<&str> {
        self.embodiment.streams().map(|feature| feature.name.as_str()).collect()
    }

    /// Rows of the arrays.
    pub fn steps(&self) -> usize {
        self.episodes.last().map_or(0, |episode| episode.steps.end)
    }

    fn append(
        &mut self,
        source: &mut dyn EpisodeSource,
        episode: &Selected,
        layout: &Layout,
    ) -> Result<(), DatasetError> {
        let begin = self.steps();
        let mut end = begin;
        for chunk_ref in &episode.chunks {
            let chunk = decode_steps(&read_stored(source, episode.id, chunk_ref)?, episode, chunk_ref)?;
            let steps = chunk.steps() as usize;
            self.observations.resize((end + steps) * self.observation_dim, 0.0);
            self.actions.resize((end + steps) * self.action_dim, 0.0);
            let observations = &mut self.observations[end * layout.observation_dim..];
            let actions = &mut self.actions[end * layout.action_dim..];
            layout.copy(episode, &chunk, end - begin, observations, actions)?;
            end += steps;
        }
        let task = self.tasks.binary_search(&episode.task).expect("`load` collected every selected task");
        self.episodes.push(DatasetEpisode { id: episode.id, task, outcome: episode.outcome, steps: begin..end });
        Ok(())
    }
}

fn total_steps(selected: &[Selected], layout: &Layout) -> Result<usize, DatasetError> {
    let step_values = layout.observation_dim + layout.action_dim;
    let steps = selected.iter().fold(0_u64, |sum, episode| sum.saturating_add(episode.steps));
    match usize::try_from(steps).ok().and_then(|steps| steps.checked_mul(step_values)) {
        Some(values) if values <= DATASET_VALUES_MAX => Ok(steps as usize),
        _ => Err(DatasetError::TooLarge { steps, step_values }),
    }
}

#[cfg(test)]
mod tests {
    use zunft_protocol::embodiment::{Dtype, Feature};
    use zunft_protocol::episode::{Actor, ChunkRef, Manifest};

    use super::*;
    use crate::data::fixture::{Memory, embodiment, episode, episode_of};
    use crate::data::selection::ActorKind;

    /// `reach` at 0, 2, 3 (a failure) and 4, `push` at 1.
    fn fleet() -> Vec<(Manifest, Vec<Vec<u8>>)> {
        let mut episodes = vec![
            episode(0, "reach", &[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
            episode(1, "push", &[[7.0, 8.0]]),
            episode(2, "reach", &[[9.0, 10.0]]),
            episode(3, "reach", &[[11.0, 12.0]]),
            episode(4, "reach", &[[13.0, 14.0]]),
        ];
        episodes[3].0.outcome = Outcome::Failure;
        episodes
    }

    #[test]
    fn arrays_hold_every_step_in_canonical_order() {
        let mut backwards = fleet();
        backwards.reverse();
        let dataset = Memory::of(backwards).load(&Selection::default()).unwrap();
        assert_eq!(dataset, Memory::of(fleet()).load(&Selection::default()).unwrap());
        assert_eq!((dataset.observation_dim, dataset.action_dim, dataset.steps()), (2, 1, 7));
        assert_eq!(dataset.observations, (1..=14).map(|value| value as f32).collect::<Vec<_>>());
        assert_eq!(dataset.actions, [3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 27.0]);
        let tasks: Vec<&str> = dataset.tasks.iter().map(TaskName::as_str).collect();
        assert_eq!(tasks, ["push", "reach"]);
        let episodes: Vec<_> = dataset.episodes.iter().map(|episode| (episode.task, episode.steps.clone())).collect();
        assert_eq!(episodes, [(1, 0..3), (0, 3..4), (1, 4..5), (1, 5..6), (1, 6..7)]);
        assert_eq!(dataset.episodes[3].outcome, Outcome::Failure);
    }

    #[test]
    fn all_f32_observations_are_flattened_in_order_and_others_left_out() {
        let mut body = embodiment();
        body.features.push(Feature::vector("observation.force", 3));
        let mut camera = Feature::vector("observation.images.top", 4);
        camera.dtype = Dtype::U8;
        body.features.push(camera);
        let mut memory = Memory::of(vec![episode_of(body, 0, "reach", &[[1.0, 2.0], [3.0, 4.0]])]);
        let dataset = memory.load(&Selection::default()).unwrap();
        assert_eq!(dataset.observation_dim, 5);
        assert_eq!(dataset.observations, [1.0, 2.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn n_demonstrations_are_the_first_n_that_passed_the_other_filters() {
        let selection = Selection {
            outcomes: vec![Outcome::Success],
            episodes_per_task_max: Some(2),
            tasks: vec!["reach".parse().unwrap()],
            ..Selection::default()
        };
        let dataset = Memory::of(fleet()).load(&selection).unwrap();
        let all = Memory::of(fleet()).snapshot.episodes;
        let ids: Vec<EpisodeId> = dataset.episodes.iter().map(|episode| episode.id).collect();
        assert_eq!(ids, [all[0].id, all[2].id]);
        let three = Selection { episodes_per_task_max: Some(3), ..selection };
        assert_eq!(Memory::of(fleet()).load(&three).unwrap().episodes[2].id, all[4].id);
    }

    #[test]
    fn an_empty_selection_says_which_filter_took_what() {
        let refused = |selection: Selection, expected: &str| {
            let error = Memory::of(fleet()).load(&selection).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let tasks = || vec!["push".parse().unwrap()];
        refused(
            Selection { tasks: tasks(), outcomes: vec![Outcome::Failure], ..Selection::default() },
            "the snapshot has 5, `tasks` left 1, `robots` 1, `actors` 1, `outcomes` 0",
        );
        refused(Selection { actors: vec![ActorKind::Human], ..Selection::default() }, "`robots` 5, `actors` 0");
        refused(Selection { episodes_per_task_max: Some(0), ..Selection::default() }, "`episodes_per_task_max` 0");
        let unknown = vec!["push".parse().unwrap(), "weld".parse().unwrap()];
        refused(Selection { tasks: unknown, ..Selection::default() }, "no selected episode is of task weld");
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_place() {
        let mut episodes = fleet();
        episodes[0] = episode(0, "reach", &[[1.0, 2.0], [3.0, 4.0], [5.0, f32::NAN]]);
        let error = Memory::of(episodes).load(&Selection::default()).unwrap_err().to_string();
        assert!(error.contains("recording 0) has NaN in \"observation.state\"[1] at step 2"), "{error}");
        let bad = vec![episode(0, "reach", &[[f32::MAX, f32::MAX]])];
        let error = Memory::of(bad).load(&Selection::default()).unwrap_err().to_string();
        assert!(error.contains("has inf in \"action\"[0] at step 0"), "{error}");
    }

    #[test]
    fn two_bodies_are_refused_with_both_names() {
        let mut other = embodiment();
        other.name = "leg".into();
        let mut episodes = fleet();
        episodes.push(episode_of(other, 9, "reach", &[[1.0, 2.0]]));
        let error = Memory::of(episodes).load(&Selection::default()).unwrap_err().to_string();
        assert!(error.contains("\"arm\"") && error.contains("\"leg\""), "{error}");
    }

    #[test]
    fn bodies_without_anything_to_learn_are_refused() {
        let mut body = embodiment();
        body.features[0].dtype = Dtype::I64;
        let blind = vec![episode_of(body, 0, "reach", &[[1.0, 2.0]])];
        let error = Memory::of(blind).load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::Features { missing: "observation", .. }));
    }

    #[test]
    fn bytes_that_do_not_match_their_ids_are_refused() {
        let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
        let mut memory = Memory::of(fleet());
        memory.chunks.values_mut().for_each(flip);
        let error = memory.load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::Damaged { what: "chunk", .. }));
        let mut memory = Memory::of(fleet());
        memory.manifests.values_mut().for_each(flip);
        let error = memory.load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::Damaged { what: "manifest", .. }));
        let mut memory = Memory::of(fleet());
        memory.chunks.clear();
        let error = memory.load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::Source(SourceError::Missing { .. })));
    }

    #[test]
    fn manifests_that_contradict_chunks_body_or_snapshot_are_refused() {
        let check = |change: fn(&mut Manifest), expected: &str| {
            let (mut manifest, chunks) = episode(0, "reach", &[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
            change(&mut manifest);
            let error = Memory::of(vec![(manifest, chunks)]).load(&Selection::default()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(|m| (m.streams[0].chunks[1].steps, m.steps) = (2, 4), "holds 1 steps; the manifest says 2");
        check(|m| drop(m.streams[0].schema.columns.remove(1)), "records feature \"observation.state\" as nothing");
        check(|m| m.streams[0].schema.columns[1].values = 3, "as 3 F32 values a step; its embodiment says 2");
        check(|m| m.streams[0].schema.columns[0].values = 2, "cannot be decoded");
        let mut memory = Memory::of(fleet());
        memory.snapshot.episodes[0].ordinal = 7;
        let error = memory.load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::Contradiction { ordinal: 7, .. }));
    }

    #[test]
    fn a_selection_larger_than_memory_is_refused_before_it_is_read() {
        let mut episodes = fleet();
        let chunk = episodes[0].0.streams[0].chunks[0].clone();
        for (manifest, _) in &mut episodes {
            manifest.streams[0].chunks = vec![ChunkRef { steps: 200_000_000, ..chunk.clone() }];
            manifest.steps = 200_000_000;
        }
        let error = Memory::of(episodes).load(&Selection::default()).unwrap_err();
        assert!(matches!(error, DatasetError::TooLarge { steps: 1_000_000_000, step_values: 3 }));
    }

    #[test]
    fn selections_with_unknown_keys_are_refused() {
        let parse = |text: &str| serde_json::from_str::<Selection>(text);
        let selection =
            parse(r#"{"outcomes": ["success"], "actors": ["script"], "episodes_per_task_max": 50}"#).unwrap();
        assert_eq!((selection.outcomes.len(), selection.actors[0]), (1, ActorKind::from(&Actor::Script)));
        assert!(parse(r#"{"outcome": ["success"]}"#).unwrap_err().to_string().contains("outcome"));
    }
}
