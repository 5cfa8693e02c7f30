//! Which episodes of a snapshot are read, what their manifests say, and where each feature lies in a row.
//!
//! [`Dataset`](super::Dataset) and [`Loader`](super::Loader) share it, so that both verify the same things.

use std::collections::{BTreeSet, HashMap};

use zunft_protocol::chunk::{Chunk, Schema};
use zunft_protocol::embodiment::{ACTION, Dtype, Embodiment, Feature};
use zunft_protocol::episode::{ChunkRef, Manifest, Outcome, Stream};
use zunft_protocol::ids::{ChunkId, EpisodeId, RobotId, TaskName};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode};

use super::dataset::{DatasetError, MixedEmbodiments};
use super::selection::{Funnel, Selection};
use super::source::EpisodeSource;

/// What later steps need of a selected episode's manifest.
pub(super) struct Selected {
    pub(super) id: EpisodeId,
    robot: RobotId,
    ordinal: u64,
    pub(super) task: TaskName,
    pub(super) outcome: Outcome,
    pub(super) steps: u64,
    pub(super) schema: Schema,
    /// Chunks of the steps.
    pub(super) chunks: Vec<ChunkRef>,
    /// The streams beside the steps.
    pub(super) others: Vec<Stream>,
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
pub(super) struct Layout {
    columns: Vec<LayoutColumn>,
    pub(super) observation_dim: usize,
    pub(super) action_dim: usize,
}

impl Layout {
    pub(super) fn of(embodiment: &Embodiment) -> Result<Self, DatasetError> {
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

    /// Copies a chunk that begins at `first_step` of its episode into rows, refusing what is not finite.
    ///
    /// # Shapes
    /// - observations: `[steps of the chunk, observation_dim]`
    /// - actions: `[steps of the chunk, action_dim]`
    pub(super) fn copy(
        &self,
        episode: &Selected,
        chunk: &Chunk,
        first_step: usize,
        observations: &mut [f32],
        actions: &mut [f32],
    ) -> Result<(), DatasetError> {
        for column in &self.columns {
            let rows = match column.role {
                Role::Observation => observations.chunks_exact_mut(self.observation_dim),
                Role::Action => actions.chunks_exact_mut(self.action_dim),
            };
            let bytes = chunk.column(&column.name).expect("`select` compared the schema with the layout");
            for (row, (to, from)) in rows.zip(bytes.chunks_exact(4 * column.values)).enumerate() {
                let step = first_step + row;
                column.copy(from, to).map_err(|(index, value)| episode.not_finite(column, index, step, value))?;
            }
        }
        Ok(())
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
pub(super) fn select(
    source: &mut dyn EpisodeSource,
    selection: &Selection,
) -> Result<(Vec<Selected>, Embodiment), DatasetError> {
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
    let others = manifest.streams.split_off(1);
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
        others,
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

/// Stored bytes of a chunk that the episode's manifest lists, verified.
pub(super) fn read_stored(
    source: &mut dyn EpisodeSource,
    episode: EpisodeId,
    chunk_ref: &ChunkRef,
) -> Result<Vec<u8>, DatasetError> {
    let id = chunk_ref.id;
    let bytes = source.chunk(id)?;
    if bytes.len() != chunk_ref.bytes as usize || ChunkId::of(&bytes) != id {
        return Err(DatasetError::Damaged { what: "chunk", id: id.to_string(), episode });
    }
    Ok(bytes)
}

/// Reads verified bytes as a chunk of the episode's steps.
pub(super) fn decode_steps(stored: &[u8], episode: &Selected, chunk_ref: &ChunkRef) -> Result<Chunk, DatasetError> {
    let (chunk, id) = (chunk_ref.id, episode.id);
    let decoded =
        Chunk::decode(stored, &episode.schema).map_err(|source| DatasetError::Chunk { chunk, episode: id, source })?;
    if decoded.steps() != chunk_ref.steps {
        let (found, expected) = (decoded.steps(), chunk_ref.steps);
        return Err(DatasetError::ChunkSteps { chunk, episode: id, found, expected });
    }
    Ok(decoded)
}
