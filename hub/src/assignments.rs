//! When a robot needs a newly signed assignment, and what is in it.
//!
//! Pure: the metadata keeps sets and sequences, the ingest sends what is signed here. It does not know what a skill is.

use zunft_protocol::dsse::Envelope;
use zunft_protocol::ids::{RobotId, TenantId};
use zunft_protocol::release::{AssignedRelease, Assignment};

use crate::metadata::AssignmentRecord;
use crate::pki::TenantKeys;

/// How long an assignment is fresh: a robot that hears nothing for a day says so, and keeps running what it has.
pub const ASSIGNMENT_LIFETIME_SECS: u64 = 24 * 3600;

/// Age at which a connected robot gets a fresh one: it then has half a day to get through.
const RENEW_AFTER_MS: u64 = ASSIGNMENT_LIFETIME_SECS * 1000 / 2;

/// Largest sequence that a robot's word is taken for: beyond it the robot is confused or lies.
const SEQUENCE_MAX: u64 = 1 << 60;

/// What to sign for a robot now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    /// It has what it should have.
    Nothing,
    /// The present set under its present sequence, which the robot has not accepted yet.
    Present,
    /// The present set under a new sequence of at least this.
    Fresh {
        /// The least that the robot will accept.
        sequence_min: u64,
    },
}

/// Decides what a robot gets that has accepted, or was just sent, assignments up to `known`.
pub(crate) fn decide(record: Option<&AssignmentRecord>, known: u64, now_unix_ms: u64) -> Signing {
    let known = known.min(SEQUENCE_MAX);
    let Some(record) = record else {
        return Signing::Nothing;
    };
    if known < record.sequence {
        return Signing::Present;
    }
    let old = now_unix_ms.saturating_sub(record.updated_unix_ms) >= RENEW_AFTER_MS;
    // A robot ahead of us outlived a restored backup: only a higher sequence reaches it.
    if old || known > record.sequence { Signing::Fresh { sequence_min: known + 1 } } else { Signing::Nothing }
}

/// Signs the complete set for one robot.
pub(crate) fn sign(
    tenant: &TenantId,
    robot: &RobotId,
    sequence: u64,
    releases: Vec<AssignedRelease>,
    keys: &TenantKeys,
    now_unix_secs: u64,
) -> Envelope {
    let assignment = Assignment {
        tenant: tenant.clone(),
        robot: robot.clone(),
        sequence,
        root_version: keys.root.version,
        issued_unix_secs: now_unix_secs,
        expires_unix_secs: now_unix_secs + ASSIGNMENT_LIFETIME_SECS,
        releases,
        floors: Vec::new(),
    };
    assignment.sign(&keys.assigner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn check(known: u64, age_ms: u64, expected: Signing) {
        let record = AssignmentRecord {
            robot: "r1".parse().unwrap(),
            sequence: 5,
            releases: vec!["push@2".parse().unwrap()],
            updated_unix_ms: NOW - age_ms,
        };
        assert_eq!(decide(Some(&record), known, NOW), expected);
    }

    #[test]
    fn robots_hear_what_they_have_not_accepted_and_what_grows_old() {
        check(4, 0, Signing::Present);
        check(5, 0, Signing::Nothing);
        check(5, RENEW_AFTER_MS, Signing::Fresh { sequence_min: 6 });
        check(9, 0, Signing::Fresh { sequence_min: 10 });
        check(u64::MAX, 0, Signing::Fresh { sequence_min: SEQUENCE_MAX + 1 });
        assert_eq!(decide(None, 9, NOW), Signing::Nothing);
    }
}
