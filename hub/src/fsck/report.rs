//! What a check found, for people and for programs.

use serde::Serialize;
use zunft_protocol::ids::{EpisodeId, RobotId, TenantId};

/// What there is, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packs looked into.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks whose hash was verified.
    pub chunks: u64,
    /// Manifests whose hash was verified.
    pub manifests: u64,
    /// Episodes that the metadata lists now.
    pub episodes: u64,
    /// Snapshots and files of releases whose hash was verified.
    pub objects: u64,
    /// In the order found.
    pub findings: Vec<Finding>,
    /// What was forgotten afterwards, where that was asked and nothing was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swept: Option<Swept>,
}

/// What was forgotten because no episode ever needed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Chunks that no episode names.
    pub chunks: u64,
    /// Packs deleted.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// There is no metadata database, or it is empty while there are packs.
    MetadataGone {
        /// Whether it was rebuilt from the packs.
        rebuilt: bool,
    },
    /// A pack that the metadata does not know: its episodes were never acknowledged, or the metadata is older.
    OrphanPack {
        /// Where it lies.
        key: String,
        /// Episodes in it.
        episodes: u64,
        /// Whether it was registered.
        registered: bool,
    },
    /// A pack that is not what its name says.
    DamagedPack {
        /// Where it lay.
        key: String,
        /// Entries that are what their ids say.
        intact: u64,
        /// Entries that are not.
        broken: u64,
        /// Where it lies now, if it was moved; its intact entries are in another pack then.
        quarantined: Option<String>,
    },
    /// A pack that the metadata knows and the store has not.
    MissingPack {
        /// Where it should lie.
        key: String,
    },
    /// Rows that say something else than the pack itself.
    WrongRows {
        /// Which pack.
        key: String,
        /// How many.
        rows: u64,
        /// Whether they were set right.
        corrected: bool,
    },
    /// An episode that is listed and cannot be read whole.
    UnreadableEpisode {
        /// Whose.
        tenant: TenantId,
        /// Which.
        episode: EpisodeId,
        /// The robot that lived through it, which may have it still.
        robot: RobotId,
        /// Whether it was taken out of the listing, so that its robot can upload it again.
        unlisted: bool,
    },
    /// An episode in an orphan whose recording has another one.
    RivalEpisode {
        /// Whose.
        tenant: TenantId,
        /// Which; it stays unlisted.
        episode: EpisodeId,
    },
    /// A snapshot that the metadata does not know.
    OrphanSnapshot {
        /// Where it lies.
        key: String,
        /// Whether it was registered.
        registered: bool,
    },
    /// A snapshot or file of a release that is not what its name says.
    DamagedObject {
        /// Where it lay.
        key: String,
        /// Where it lies now, if it was moved.
        quarantined: Option<String>,
    },
    /// A snapshot or file of a release that the metadata knows and the store has not.
    MissingObject {
        /// Where it should lie.
        key: String,
    },
    /// An object that is none of the hub's.
    ForeignObject {
        /// Where it lies.
        key: String,
    },
}

impl Finding {
    /// Whether nothing is lost by it, or everything was set right.
    pub fn is_harmless(&self) -> bool {
        match self {
            Self::OrphanPack { .. }
            | Self::OrphanSnapshot { .. }
            | Self::RivalEpisode { .. }
            | Self::ForeignObject { .. } => true,
            Self::MetadataGone { rebuilt } => *rebuilt,
            Self::WrongRows { corrected, .. } => *corrected,
            Self::DamagedPack { quarantined, .. } => quarantined.is_some(),
            // A blob or snapshot has no second copy: moved away, it is missing.
            Self::DamagedObject { .. }
            | Self::MissingPack { .. }
            | Self::MissingObject { .. }
            | Self::UnreadableEpisode { .. } => false,
        }
    }
}

impl Report {
    /// Whether everything acknowledged can be read.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(Finding::is_harmless)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MetadataGone { rebuilt: false } => f.write_str(
                "the metadata database is gone; restore it from a backup, or rebuild what packs tell with --repair",
            ),
            Self::MetadataGone { rebuilt: true } => f.write_str(
                "the metadata database was gone: episodes, robots and snapshots are rebuilt from the packs; \
                 certificates, releases, assignments and runs are not in packs: add the robots and publish again",
            ),
            Self::OrphanPack { key, episodes, registered } => {
                let done = if *registered { "registered" } else { "harmless; --repair registers it" };
                write!(f, "{key} is unknown to the metadata, with {episodes} episodes: {done}")
            }
            Self::DamagedPack { key, intact, broken, quarantined: Some(place) } => {
                write!(
                    f,
                    "{key} was damaged: {intact} intact entries are in a new pack, {broken} broken; moved to {place}"
                )
            }
            Self::DamagedPack { key, intact, broken, quarantined: None } => write!(
                f,
                "{key} is damaged: {intact} entries are intact, {broken} broken; --repair saves those and moves it away"
            ),
            Self::MissingPack { key } => write!(f, "{key} is missing from the store; restore it from a backup"),
            Self::WrongRows { key, rows, corrected } => {
                let done = if *corrected { "corrected" } else { "--repair corrects them" };
                write!(f, "{rows} rows of the metadata do not fit {key}: {done}")
            }
            Self::UnreadableEpisode { tenant, episode, robot, unlisted } => {
                let done = if *unlisted {
                    "; it is taken out of the listing and taken in again if its robot has it still"
                } else {
                    ""
                };
                write!(f, "episode {episode} of robot {robot} ({tenant}) cannot be read whole{done}")
            }
            Self::RivalEpisode { tenant, episode } => {
                write!(f, "episode {episode} ({tenant}) in an orphan stays unlisted: its recording has another episode")
            }
            Self::OrphanSnapshot { key, registered } => {
                let done = if *registered { "registered" } else { "--repair registers it" };
                write!(f, "{key} is unknown to the metadata: {done}")
            }
            Self::DamagedObject { key, quarantined: Some(place) } => {
                write!(f, "{key} was damaged and is moved to {place}; restore it from a backup or make it again")
            }
            Self::DamagedObject { key, quarantined: None } => {
                write!(f, "{key} is damaged; --repair moves it away")
            }
            Self::MissingObject { key } => {
                write!(f, "{key} is missing from the store; restore it from a backup or make it again")
            }
            Self::ForeignObject { key } => write!(f, "{key} is none of the hub's objects"),
        }
    }
}
