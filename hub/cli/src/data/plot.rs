//! An episode's signals as lines of text, one for each value of a step.

use zunft_protocol::chunk::{Chunk, MONOTONIC_NS, REWARD};
use zunft_protocol::embodiment::Dtype;
use zunft_protocol::episode::Manifest;
use zunft_skills::data::{EpisodeSource as _, SnapshotDir};

use crate::exit::{Failure, OrFail as _};
use crate::output::table;

/// Heights that a character can show.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Characters of one line: with name and bounds it fits a terminal of 100 columns.
const COLUMNS: usize = 56;

/// Shown where a value is missing: NaN stands for a reward that nobody gave.
const MISSING: char = '·';

/// Every numeric signal of the episode's steps.
pub(super) fn episode(snapshot: &mut SnapshotDir, manifest: &Manifest) -> Result<String, Failure> {
    let schema = &manifest.streams[0].schema;
    let columns: Vec<_> = schema.columns.iter().filter(|column| column.name != MONOTONIC_NS).collect();
    let mut signals: Vec<Vec<f64>> = columns.iter().map(|_| Vec::new()).collect();
    for listed in &manifest.streams[0].chunks {
        let chunk = Chunk::decode(&snapshot.chunk(listed.id).or_input()?, schema).or_input()?;
        for (column, signal) in columns.iter().zip(&mut signals) {
            signal.extend(numbers(column.dtype, chunk.column(&column.name).unwrap_or_default()));
        }
    }
    let mut rows = Vec::new();
    for (column, signal) in columns.iter().zip(&signals) {
        let width = column.step_bytes() / column.dtype.bytes();
        let feature = manifest.embodiment.features.iter().find(|feature| feature.name == column.name);
        for value in 0..width {
            let line: Vec<f64> = signal.iter().skip(value).step_by(width).copied().collect();
            if column.name == REWARD && line.iter().all(|reward| reward.is_nan()) {
                continue;
            }
            let name = match feature.and_then(|feature| feature.names.get(value)) {
                Some(name) => format!("{}.{name}", column.name),
                None if width > 1 => format!("{}[{value}]", column.name),
                None => column.name.clone(),
            };
            let (least, greatest) = bounds(&line);
            rows.push(vec![name, spark(&line), format!("{least:.4}"), format!("{greatest:.4}")]);
        }
    }
    Ok(table(&["signal", "from first to last step", "least", "greatest"], 2, &rows))
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|value| f64::from_le_bytes(*value)).collect(),
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|value| i64::from_le_bytes(*value) as f64).collect(),
        Dtype::U8 => bytes.iter().map(|&value| f64::from(value)).collect(),
    }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max))
}

/// Values as heights between their least and their greatest; each character is the mean of its share of them.
fn spark(values: &[f64]) -> String {
    let (least, greatest) = bounds(values);
    let columns = COLUMNS.min(values.len());
    let height = |column: usize| {
        let share = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
        let finite: Vec<f64> = share.iter().copied().filter(|value| value.is_finite()).collect();
        if finite.is_empty() {
            return MISSING;
        }
        let mean = finite.iter().sum::<f64>() / finite.len() as f64;
        let place = if greatest > least { (mean - least) / (greatest - least) } else { 0.5 };
        HEIGHTS[((place * HEIGHTS.len() as f64) as usize).min(HEIGHTS.len() - 1)]
    };
    (0..columns).map(height).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_follow_the_values() {
        assert_eq!(spark(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), "▁▂▃▄▅▆▇█");
        assert_eq!(spark(&[2.0, 2.0]), "▅▅");
        assert_eq!(spark(&[0.0, f64::NAN, 1.0]), "▁·█");
        assert_eq!(spark(&(0..1000).map(f64::from).collect::<Vec<_>>()).chars().count(), COLUMNS);
    }
}
