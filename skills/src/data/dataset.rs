//! The flat arrays that training reads, made from the episodes of a snapshot.
//!
//! Everything is verified here, whatever the source: ids against bytes, chunks against manifests, values against
//! NaN. It knows neither files nor parquet, and nothing of windows or normalisation.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use zunft_protocol::chunk::{Chunk, ChunkError, Schema};
use zunft_protocol::embodiment::{ACTION, Dtype, Embodiment, Feature};
use zunft_protocol::episode::{ChunkRef, Manifest, ManifestError, Outcome};
use zunft_protocol::ids::{ChunkId, EmbodimentId, EpisodeId, RobotId, SnapshotId, TaskName, TenantId};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode};

use super::selection::{Funnel, Selection};
use super::source::{EpisodeSource, SourceError};

/// Most values in one dataset, over observations and actions.
///
/// They lie in memory as f32, so this is 8 GiB: a day of ten arms at 500 Hz with 40 values a step. More needs
/// a loader that streams.
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
            let chunk = read_chunk(source, episode, chunk_ref)?;
            let steps = chunk.steps() as usize;
            for column in &layout.columns {
                let (array, dim) = match column.role {
                    Role::Observation => (&mut self.observations, self.observation_dim),
                    Role::Action => (&mut self.actions, self.action_dim),
                };
                array.resize((end + steps) * dim, 0.0);
                let bytes = chunk.column(&column.name).expect("`select` compared the schema with the layout");
                let rows = array[end * dim..].chunks_exact_mut(dim);
                for (row, (to, from)) in rows.zip(bytes.chunks_exact(4 * column.values)).enumerate() {
                    let step = end - begin + row;
                    column.copy(from, to).map_err(|(index, value)| episode.not_finite(column, index, step, value))?;
                }
            }
            end += steps;
        }
        let task = self.tasks.binary_search(&episode.task).expect("`load` collected every selected task");
        self.episodes.push(DatasetEpisode { id: episode.id, task, outcome: episode.outcome, steps: begin..end });
        Ok(())
    }
}

/// What later steps need of a selected episode's manifest.
struct Selected {
    id: EpisodeId,
    robot: RobotId,
    ordinal: u64,
    task: TaskName,
    outcome: Outcome,
    steps: u64,
    schema: Schema,
    chunks: Vec<ChunkRef>,
}

impl Selected {
    fn not_finite(&self, column: &LayoutColumn, index: usize, step: usize, value: f32) -> DatasetError {
        DatasetError::NotFinite {
            episode: self.id,
            robot: self.robot.clone(),
            ordinal: self.ordinal,
            feature: column.name.clone(),
            index,
            step,
            value,
        }
    }
}

#[derive(Clone, Copy)]
enum Role {
    Observation,
    Action,
}

/// Where one feature lies in a row of its array.
struct LayoutColumn {
    name: String,
    role: Role,
    offset: usize,
    values: usize,
}

impl LayoutColumn {
    /// Copies one step's little-endian values into its row; the index and value of one that is not finite.
    fn copy(&self, from: &[u8], row: &mut [f32]) -> Result<(), (usize, f32)> {
        let to = &mut row[self.offset..self.offset + self.values];
        for (index, (to, bytes)) in to.iter_mut().zip(from.chunks_exact(4)).enumerate() {
            *to = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if !to.is_finite() {
                return Err((index, *to));
            }
        }
        Ok(())
    }
}

/// Which features a dataset holds, and where.
struct Layout {
    columns: Vec<LayoutColumn>,
    observation_dim: usize,
    action_dim: usize,
}

impl Layout {
    fn of(embodiment: &Embodiment) -> Result<Self, DatasetError> {
        let missing = |missing| DatasetError::Features { embodiment: embodiment.name.clone(), missing };
        let mut columns = Vec::new();
        let mut observation_dim = 0;
        for feature in embodiment.observations().filter(|feature| feature.dtype == Dtype::F32) {
            let values = feature.values();
            columns.push(LayoutColumn {
                name: feature.name.clone(),
                role: Role::Observation,
                offset: observation_dim,
                values,
            });
            observation_dim += values;
        }
        if columns.is_empty() {
            return Err(missing("observation"));
        }
        let action: &Feature =
            embodiment.action().filter(|action| action.dtype == Dtype::F32).ok_or_else(|| missing("action"))?;
        let action_dim = action.values();
        columns.push(LayoutColumn { name: ACTION.to_owned(), role: Role::Action, offset: 0, values: action_dim });
        Ok(Self { columns, observation_dim, action_dim })
    }

    /// Refuses a stream whose columns are not what the embodiment promises.
    fn check(&self, schema: &Schema, episode: EpisodeId) -> Result<(), DatasetError> {
        for column in &self.columns {
            let found = schema.columns.iter().find(|found| found.name == column.name);
            let fits = found.is_some_and(|found| found.dtype == Dtype::F32 && found.values as usize == column.values);
            if !fits {
                let found = found.map_or_else(
                    || "nothing".to_owned(),
                    |found| format!("{} {:?} values a step", found.values, found.dtype),
                );
                let feature = column.name.clone();
                return Err(DatasetError::Column { episode, feature, found, expected: column.values });
            }
        }
        Ok(())
    }
}

/// Reads every manifest of the snapshot and keeps the selected ones, in the snapshot's canonical order.
fn select(source: &mut dyn EpisodeSource, selection: &Selection) -> Result<(Vec<Selected>, Embodiment), DatasetError> {
    let Snapshot { tenant, episodes, .. } = source.snapshot().clone();
    let mut funnel = Funnel::default();
    let mut selected = Vec::new();
    let mut known = BTreeSet::new();
    let mut body: Option<(Embodiment, EpisodeId)> = None;
    for SnapshotEpisode { robot, ordinal, id } in episodes {
        let manifest = read_manifest(source, id)?;
        if (&manifest.tenant, &manifest.robot, manifest.ordinal) != (&tenant, &robot, ordinal) {
            return Err(DatasetError::Contradiction { episode: id, tenant, robot, ordinal });
        }
        let kept = selection.keeps(&manifest, &mut funnel);
        known.insert(manifest.task.clone());
        if !kept {
            continue;
        }
        let (embodiment, first) = body.get_or_insert_with(|| (manifest.embodiment.clone(), id));
        if *embodiment != manifest.embodiment {
            return Err(mixed(embodiment, *first, &manifest.embodiment, id));
        }
        Layout::of(embodiment)?.check(&manifest.streams[0].schema, id)?;
        selected.push(keep(manifest, id));
    }
    if let Some(count_max) = selection.episodes_per_task_max {
        let mut counts: HashMap<TaskName, usize> = HashMap::new();
        selected.retain(|episode| {
            let count = counts.entry(episode.task.clone()).or_default();
            *count += 1;
            *count <= count_max
        });
    }
    funnel.bounded = selected.len();
    if let Some(task) = selection.tasks.first().filter(|_| funnel.snapshot > 0 && funnel.tasks == 0) {
        return Err(DatasetError::UnknownTask { task: task.clone(), known: known.into_iter().collect() });
    }
    match body {
        Some((embodiment, _)) if !selected.is_empty() => Ok((selected, embodiment)),
        _ => Err(DatasetError::Empty { funnel }),
    }
}

fn read_manifest(source: &mut dyn EpisodeSource, id: EpisodeId) -> Result<Manifest, DatasetError> {
    let bytes = source.manifest(id)?;
    if EpisodeId::of(&bytes) != id {
        return Err(DatasetError::Damaged { what: "manifest", id: id.to_string(), episode: id });
    }
    Manifest::decode(&bytes).map_err(|source| DatasetError::Manifest { episode: id, source })
}

fn keep(mut manifest: Manifest, id: EpisodeId) -> Selected {
    let stream = manifest.streams.swap_remove(0);
    Selected {
        id,
        robot: manifest.robot,
        ordinal: manifest.ordinal,
        task: manifest.task,
        outcome: manifest.outcome,
        steps: manifest.steps,
        schema: stream.schema,
        chunks: stream.chunks,
    }
}

fn mixed(first: &Embodiment, first_episode: EpisodeId, other: &Embodiment, other_episode: EpisodeId) -> DatasetError {
    DatasetError::MixedEmbodiments(Box::new(MixedEmbodiments {
        first_name: first.name.clone(),
        first_id: first.id(),
        first_episode,
        other_name: other.name.clone(),
        other_id: other.id(),
        other_episode,
    }))
}

fn total_steps(selected: &[Selected], layout: &Layout) -> Result<usize, DatasetError> {
    let step_values = layout.observation_dim + layout.action_dim;
    let steps = selected.iter().fold(0_u64, |sum, episode| sum.saturating_add(episode.steps));
    match usize::try_from(steps).ok().and_then(|steps| steps.checked_mul(step_values)) {
        Some(values) if values <= DATASET_VALUES_MAX => Ok(steps as usize),
        _ => Err(DatasetError::TooLarge { steps, step_values }),
    }
}

fn read_chunk(source: &mut dyn EpisodeSource, episode: &Selected, chunk_ref: &ChunkRef) -> Result<Chunk, DatasetError> {
    let id = chunk_ref.id;
    let bytes = source.chunk(id)?;
    if bytes.len() != chunk_ref.bytes as usize || ChunkId::of(&bytes) != id {
        return Err(DatasetError::Damaged { what: "chunk", id: id.to_string(), episode: episode.id });
    }
    let chunk = Chunk::decode(&bytes, &episode.schema).map_err(|source| DatasetError::Chunk {
        chunk: id,
        episode: episode.id,
        source,
    })?;
    if chunk.steps() != chunk_ref.steps {
        return Err(DatasetError::ChunkSteps {
            chunk: id,
            episode: episode.id,
            found: chunk.steps(),
            expected: chunk_ref.steps,
        });
    }
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use zunft_protocol::episode::Actor;

    use super::*;
    use crate::data::fixture::{embodiment, episode, episode_of};
    use crate::data::selection::ActorKind;

    /// Episodes in memory.
    struct Memory {
        snapshot: Snapshot,
        manifests: HashMap<EpisodeId, Vec<u8>>,
        chunks: HashMap<ChunkId, Vec<u8>>,
    }

    impl Memory {
        fn of(episodes: Vec<(Manifest, Vec<Vec<u8>>)>) -> Self {
            let mut memory = Self {
                snapshot: Snapshot::new("acme".parse().unwrap(), "test".into(), Vec::new()),
                manifests: HashMap::new(),
                chunks: HashMap::new(),
            };
            for (manifest, chunks) in episodes {
                memory.chunks.extend(chunks.into_iter().map(|bytes| (ChunkId::of(&bytes), bytes)));
                let (id, robot) = (manifest.id(), manifest.robot.clone());
                memory.snapshot.episodes.push(SnapshotEpisode { robot, ordinal: manifest.ordinal, id });
                memory.manifests.insert(id, manifest.encode());
            }
            memory.snapshot.episodes.sort();
            memory
        }

        fn load(&mut self, selection: &Selection) -> Result<Dataset, DatasetError> {
            Dataset::load(self, selection)
        }
    }

    impl EpisodeSource for Memory {
        fn snapshot(&self) -> &Snapshot {
            &self.snapshot
        }

        fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError> {
            let missing = SourceError::Missing { what: "episode", id: id.to_string() };
            self.manifests.get(&id).cloned().ok_or(missing)
        }

        fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError> {
            let missing = SourceError::Missing { what: "chunk", id: id.to_string() };
            self.chunks.get(&id).cloned().ok_or(missing)
        }
    }

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
