//! A process that is measured and stopped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// Linux counts a process's CPU time in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// A child that dies with its owner.
pub(crate) struct Node(Child);

impl Node {
    /// Starts a hub or an agent.
    pub(crate) fn start(program: &Path, role: &str, config: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg(role).arg(config);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> anyhow::Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?))
    }

    /// CPU time so far, of all its threads.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.0.id())
    }

    /// The most memory that it has had.
    pub(crate) fn peak_megabytes(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("/proc/PID/status")?;
        let kibibytes: f64 = line.split_whitespace().nth(1).context("VmHWM")?.parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let kill = Command::new("kill").arg(self.0.id().to_string()).status()?;
        ensure!(kill.success(), "no process to stop");
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After an orderly stop there is nobody left to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// CPU time of a process so far.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the last bracket may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).context("/proc/PID/stat");
    Ok(TICK * (ticks(11)? + ticks(12)?))
}
