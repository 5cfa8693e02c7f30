//! Where a list of a robot's recordings goes on.

use std::fmt;
use std::str::FromStr;

use zunft_protocol::ids::{EpisodeId, RobotId};

/// The last that was listed of one robot. The ordinal alone would not do: it begins anew where a spool was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingCursor<Id> {
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// Which of those with this number.
    pub id: Id,
}

/// The last that was listed of noted episodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedCursor {
    /// Whose it is.
    pub robot: RobotId,
    /// Which of the robot's.
    pub recording: RecordingCursor<EpisodeId>,
}

/// A text that is no cursor.
#[derive(Debug, thiserror::Error)]
#[error("not a cursor")]
pub struct NotACursor;

impl<Id: fmt::Display> fmt::Display for RecordingCursor<Id> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ordinal, self.id)
    }
}

impl<Id: FromStr> FromStr for RecordingCursor<Id> {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (ordinal, id) = text.split_once('/').ok_or(NotACursor)?;
        // The databases count to here.
        let ordinal = ordinal.parse().ok().filter(|ordinal| *ordinal <= i64::MAX as u64).ok_or(NotACursor)?;
        Ok(Self { ordinal, id: id.parse().map_err(|_| NotACursor)? })
    }
}

impl fmt::Display for NotedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.robot, self.recording)
    }
}

impl FromStr for NotedCursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (robot, recording) = text.split_once('/').ok_or(NotACursor)?;
        Ok(Self { robot: robot.parse().map_err(|_| NotACursor)?, recording: recording.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let recording = RecordingCursor { ordinal: 7, id: EpisodeId::of(b"seven") };
        let cursor = NotedCursor { robot: "r-1".parse().unwrap(), recording };
        assert_eq!(cursor.to_string().parse::<NotedCursor>().unwrap(), cursor);
        for text in ["", "7", "r-1/7", "r-1/7/", "r-1//ab", "/7/ab", &format!("r-1/{}/{}", u64::MAX, recording.id)] {
            assert!(text.parse::<NotedCursor>().is_err(), "{text}");
        }
    }
}
