//! What the hub's errors are to a client: which are its own fault, and which are only for the log.

use super::error::{ApiError, ErrorCode};
use crate::causes::with_causes;
use crate::hub::{AddRobotError, AssignError, ImportError};
use crate::registry::PublishError;
use crate::snapshots::SnapshotStoreError;

impl From<AddRobotError> for ApiError {
    fn from(error: AddRobotError) -> Self {
        match &error {
            AddRobotError::OtherSite { .. } => Self::new(ErrorCode::Conflict, error.to_string()).in_field("site"),
            AddRobotError::Pki(_) | AddRobotError::Metadata(_) => Self::internal("add the robot", &error),
        }
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        let refused = |code| Self::new(code, with_causes(&error));
        match error {
            ImportError::Manifest(_) | ImportError::Chunk { .. } => refused(ErrorCode::Unprocessable),
            ImportError::TooLarge { .. } => refused(ErrorCode::TooLarge),
            ImportError::Conflict { .. } => refused(ErrorCode::Conflict),
            ImportError::Full | ImportError::Stopped => refused(ErrorCode::Busy),
            ImportError::Robot(error) => error.into(),
            ImportError::Failed => Self::internal("import the episode", &error),
        }
    }
}

impl From<SnapshotStoreError> for ApiError {
    fn from(error: SnapshotStoreError) -> Self {
        let refused = |code| Self::new(code, error.to_string());
        match &error {
            SnapshotStoreError::Empty { .. } => refused(ErrorCode::Unprocessable).in_field("query"),
            SnapshotStoreError::Missing { .. } => refused(ErrorCode::NotFound),
            SnapshotStoreError::Damaged { .. } | SnapshotStoreError::Metadata(_) | SnapshotStoreError::Store(_) => {
                Self::internal("use the snapshot", &error)
            }
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let refused = |code| Self::new(code, with_causes(&error));
        match &error {
            PublishError::Package(_)
            | PublishError::Load(_)
            | PublishError::Trust(_)
            | PublishError::Envelope
            | PublishError::Tenant { .. }
            | PublishError::NoTenant { .. } => refused(ErrorCode::Unprocessable),
            PublishError::Version { .. } => refused(ErrorCode::Conflict),
            PublishError::Read { .. } | PublishError::Store(_) | PublishError::Metadata(_) => {
                Self::internal("publish the release", &error)
            }
        }
    }
}

impl From<AssignError> for ApiError {
    fn from(error: AssignError) -> Self {
        let refused = |code| Self::new(code, error.to_string());
        match &error {
            AssignError::NoRelease { .. } => refused(ErrorCode::NotFound).in_field("release"),
            AssignError::NoRobot { .. } | AssignError::Nobody { .. } => {
                refused(ErrorCode::Unprocessable).in_field("robots")
            }
            AssignError::WrongEmbodiment { .. } => refused(ErrorCode::Unprocessable).in_field("release"),
            AssignError::Metadata(_) => Self::internal("assign the release", &error),
        }
    }
}
