//! What an operator allows a robot to upload, as the hub stores it and pushes it.
//!
//! On the hub, on the robot's disk and over HTTP it is JSON. What a robot makes of it together with its own file is the
//! agent's business; when a window is open is decided in [`crate::session`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::TaskName;
use crate::limits::{KEPT_TASKS_MAX, UPLOAD_BYTES_PER_SECOND_MIN, UPLOAD_WINDOWS_MAX};

const MINUTES_OF_DAY: u16 = 1_440;

/// A time of day in which uploads are allowed: from its first minute on, up to its last, which is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WindowText", into = "WindowText")]
pub struct Window {
    from_minute: u16,
    to_minute: u16,
}

/// A window as people write it: two times of day, `HH:MM`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowText {
    from: String,
    to: String,
}

/// Why two times of day are no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not a time of day.
    #[error("has minute {minute}, which is not in a day of {MINUTES_OF_DAY}")]
    Minute {
        /// Which.
        minute: u16,
    },
    /// Not a time of day, either.
    #[error("has {text:?}; use a time of day such as \"22:30\"")]
    Time {
        /// What it says.
        text: String,
    },
    /// Both the same: all day, or never?
    #[error("begins when it ends; leave the window out to upload at any time")]
    Empty,
}

impl Window {
    /// A window between two minutes of the day; over midnight where the second is the earlier one.
    pub fn new(from_minute: u16, to_minute: u16) -> Result<Self, WindowError> {
        for minute in [from_minute, to_minute] {
            if minute >= MINUTES_OF_DAY {
                return Err(WindowError::Minute { minute });
            }
        }
        if from_minute == to_minute {
            return Err(WindowError::Empty);
        }
        Ok(Self { from_minute, to_minute })
    }

    /// A window between two times of day, `HH:MM`.
    pub fn parse(from: &str, to: &str) -> Result<Self, WindowError> {
        let minute = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60).then(|| hours * 60 + minutes)
        };
        let of = |text: &str| minute(text).ok_or_else(|| WindowError::Time { text: text.to_owned() });
        Self::new(of(from)?, of(to)?)
    }

    /// Its first minute of the day, and the first after it.
    pub fn minutes(self) -> (u16, u16) {
        (self.from_minute, self.to_minute)
    }
}

impl TryFrom<WindowText> for Window {
    type Error = WindowError;

    fn try_from(text: WindowText) -> Result<Self, WindowError> {
        Self::parse(&text.from, &text.to)
    }
}

impl From<Window> for WindowText {
    fn from(window: Window) -> Self {
        let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        Self { from: text(window.from_minute), to: text(window.to_minute) }
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WindowText { from, to } = (*self).into();
        write!(f, "{from}-{to}")
    }
}

/// What is sent of an episode without being asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadMode {
    /// All of it.
    #[default]
    All,
    /// Its manifest; the rest when an operator asks for it at the hub.
    MetadataFirst,
}

/// What an operator allows by way of the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubPolicy {
    /// What is sent without being asked for.
    pub mode: UploadMode,
    /// Most bytes a second to the hub, counted in UDP payload; none: no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
    /// The same while a control program asks for actions; the lower of the two holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max_acting: Option<u64>,
    /// Whether every byte costs: then only episodes whose outcome is known are sent, and those with interventions.
    pub metered: bool,
    /// Local times of day in which episodes are sent; none: at any time.
    pub windows: Vec<Window>,
    /// Tasks whose episodes stay on site, beside those that the robot's own file names.
    pub keep_on_site_tasks: BTreeSet<TaskName>,
}

/// Why a policy cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A cap under which no connection stands.
    #[error("{key} is {rate}; use at least {UPLOAD_BYTES_PER_SECOND_MIN}, or leave it out for no cap")]
    Rate {
        /// Which.
        key: &'static str,
        /// What it is.
        rate: u64,
    },
    /// Too many windows.
    #[error("windows has {count} entries; {UPLOAD_WINDOWS_MAX} are allowed")]
    Windows {
        /// How many.
        count: usize,
    },
    /// Too many tasks.
    #[error("keep_on_site_tasks has {count} entries; {KEPT_TASKS_MAX} are allowed")]
    Tasks {
        /// How many.
        count: usize,
    },
}

impl PolicyError {
    /// The key at fault.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Rate { key, .. } => key,
            Self::Windows { .. } => "windows",
            Self::Tasks { .. } => "keep_on_site_tasks",
        }
    }
}

impl HubPolicy {
    /// Checks everything that types do not say.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (key, rate) in [
            ("bytes_per_second_max", self.bytes_per_second_max),
            ("bytes_per_second_max_acting", self.bytes_per_second_max_acting),
        ] {
            if let Some(rate) = rate.filter(|&rate| rate < UPLOAD_BYTES_PER_SECOND_MIN) {
                return Err(PolicyError::Rate { key, rate });
            }
        }
        if self.windows.len() > UPLOAD_WINDOWS_MAX {
            return Err(PolicyError::Windows { count: self.windows.len() });
        }
        if self.keep_on_site_tasks.len() > KEPT_TASKS_MAX {
            return Err(PolicyError::Tasks { count: self.keep_on_site_tasks.len() });
        }
        Ok(())
    }
}

/// A policy on its way to one robot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushedPolicy {
    /// Grows with every change; 0: the hub never had one. A robot takes none that is older than the one it has.
    pub revision: u64,
    /// `None`: the robot's own file alone holds.
    pub policy: Option<HubPolicy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_window_is_refused() {
        assert_eq!(Window::new(0, 1440), Err(WindowError::Minute { minute: 1440 }));
        assert_eq!(Window::new(5, 5), Err(WindowError::Empty));
        for text in ["24:00", "7:60", "7", "", "-1:00", "a:b", "1093:00"] {
            assert_eq!(Window::parse(text, "08:00"), Err(WindowError::Time { text: text.into() }));
        }
    }

    #[test]
    fn the_json_of_a_policy_is_frozen() {
        let policy = HubPolicy {
            mode: UploadMode::MetadataFirst,
            bytes_per_second_max: Some(100_000),
            bytes_per_second_max_acting: None,
            metered: true,
            windows: vec![Window::new(22 * 60, 6 * 60 + 5).unwrap()],
            keep_on_site_tasks: ["weld".parse().unwrap()].into(),
        };
        let pushed = PushedPolicy { revision: 7, policy: Some(policy) };
        let text = r#"{"revision":7,"policy":{"mode":"metadata-first","bytes_per_second_max":100000,"metered":true,"windows":[{"from":"22:00","to":"06:05"}],"keep_on_site_tasks":["weld"]}}"#;
        assert_eq!(serde_json::to_string(&pushed).unwrap(), text);
        assert_eq!(serde_json::from_str::<PushedPolicy>(text).unwrap(), pushed);
        assert_eq!(serde_json::from_str::<HubPolicy>("{}").unwrap(), HubPolicy::default(), "what is left out is free");
    }

    #[test]
    fn mistakes_in_json_are_refused() {
        for text in [
            r#"{"meterd":true}"#,
            r#"{"windows":[{"from":"25:00","to":"06:00"}]}"#,
            r#"{"windows":[{"from":"06:00"}]}"#,
            r#"{"keep_on_site_tasks":["No Task"]}"#,
        ] {
            assert!(serde_json::from_str::<HubPolicy>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_policy_beyond_its_limits_is_refused_by_its_key() {
        let check = |policy: HubPolicy, key: &str| assert_eq!(policy.check().unwrap_err().key(), key);
        let least = HubPolicy { bytes_per_second_max: Some(UPLOAD_BYTES_PER_SECOND_MIN), ..HubPolicy::default() };
        assert_eq!(least.check(), Ok(()));
        check(HubPolicy { bytes_per_second_max: Some(4095), ..least.clone() }, "bytes_per_second_max");
        check(HubPolicy { bytes_per_second_max_acting: Some(0), ..least.clone() }, "bytes_per_second_max_acting");
        let windows = vec![Window::new(0, 1).unwrap(); UPLOAD_WINDOWS_MAX + 1];
        check(HubPolicy { windows, ..least.clone() }, "windows");
        let keep_on_site_tasks = (0..=KEPT_TASKS_MAX).map(|n| format!("t{n}").parse().unwrap()).collect();
        check(HubPolicy { keep_on_site_tasks, ..least }, "keep_on_site_tasks");
    }
}
