//! `zunft data replay`: a LeRobot dataset's episodes go through agents' sockets, as fast as the agents take them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use serde::Serialize;
use zunft_client::{Begin, BeginActor, Data, Embodiment, Robot, Step, Values};
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::TaskName;
use zunft_skills::data::LeRobotEpisode;

use super::{ReplayArgs, import};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, count};
use crate::{interrupt, progress};

/// Episodes that wait for one agent: reading stays ahead of recording, and memory stays bounded.
const WAITING_MAX: usize = 4;

/// What was played, as `--json` shows it.
#[derive(Debug, Default, Serialize)]
struct Replayed {
    episodes: u64,
    steps: u64,
    tasks: BTreeMap<TaskName, u64>,
    agents: usize,
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    interrupt::listen();
    let dataset = import::open_dataset(&args.dataset, &args.reading)?;
    let robots = args.sockets.iter().map(Robot::connect).collect::<Result<Vec<_>, _>>().or_unavailable()?;
    let (played, players) = thread::scope(|scope| {
        let mut queues = Vec::new();
        let mut players = Vec::new();
        for (robot, socket) in robots.into_iter().zip(&args.sockets) {
            let (queue, waiting) = mpsc::sync_channel(WAITING_MAX);
            queues.push(queue);
            players.push(scope.spawn(|| play_all(robot, socket, dataset.embodiment(), waiting)));
        }
        let played = deal(args, &dataset, &queues);
        drop(queues);
        let players: Vec<_> = players.into_iter().map(|player| player.join().expect("players do not panic")).collect();
        (played, players)
    });
    // A player's error explains why its queue closed.
    players.into_iter().collect::<Result<Vec<()>, Failure>>()?;
    let played = played?;
    Output::new(args.json.json).show(&played, |played| {
        format!(
            "{} with {} played into {}\n",
            count(played.episodes, "episode"),
            count(played.steps, "step"),
            count(played.agents as u64, "agent")
        )
    })
}

/// Reads the dataset and gives each episode that is wanted to the next agent.
fn deal(
    args: &ReplayArgs,
    dataset: &zunft_skills::data::LeRobotDataset,
    queues: &[mpsc::SyncSender<LeRobotEpisode>],
) -> Result<Replayed, Failure> {
    let unknown = args.tasks.iter().find(|&task| !dataset.tasks().iter().any(|known| known.name == *task));
    if let Some(task) = unknown {
        let known: Vec<&str> = dataset.tasks().iter().map(|task| task.name.as_str()).collect();
        let error = format!("the dataset has no task {task}; it has {}", known.join(", "));
        return Err(Failure::new(ExitCode::Input, error));
    }
    let bar = progress::bar(dataset.episode_count() as u64, "playing episodes");
    let mut played = Replayed { agents: queues.len(), ..Replayed::default() };
    for episode in dataset.episodes() {
        interrupt::check()?;
        bar.inc(1);
        let episode = episode.or_input()?;
        let so_far = played.tasks.get(&episode.task).copied().unwrap_or(0);
        let wanted = (args.tasks.is_empty() || args.tasks.contains(&episode.task))
            && (!args.successful || episode.outcome == Outcome::Success)
            && args.episodes_per_task.is_none_or(|episodes_max| so_far < episodes_max as u64);
        if !wanted {
            continue;
        }
        *played.tasks.entry(episode.task.clone()).or_default() += 1;
        played.steps += episode.steps as u64;
        let queue = &queues[played.episodes as usize % queues.len()];
        played.episodes += 1;
        if queue.send(episode).is_err() {
            // The player's own error is reported instead.
            return Err(Failure::new(ExitCode::Unavailable, "an agent went away"));
        }
    }
    bar.finish_and_clear();
    Ok(played)
}

fn play_all(
    mut robot: Robot,
    socket: &Path,
    embodiment: &Embodiment,
    waiting: mpsc::Receiver<LeRobotEpisode>,
) -> Result<(), Failure> {
    for episode in waiting {
        play(&mut robot, embodiment, &episode).map_err(|source| {
            Failure::new(ExitCode::Unavailable, PlayError { episode: episode.index, socket: socket.to_owned(), source })
        })?;
    }
    Ok(())
}

/// Why an episode was not recorded.
#[derive(Debug, thiserror::Error)]
#[error("episode {episode} was not recorded by the agent at {}", socket.display())]
struct PlayError {
    episode: u64,
    socket: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn play(
    robot: &mut Robot,
    embodiment: &Embodiment,
    episode: &LeRobotEpisode,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    robot.begin(&Begin { task: episode.task.clone(), embodiment: embodiment.clone(), actor: BeginActor::Human })?;
    let begin_ns = zunft_client::monotonic_ns();
    for step in 0..episode.steps {
        let values: Vec<Values<'_>> = episode
            .features
            .iter()
            .map(|values| {
                let dim = values.len() / episode.steps;
                Values::F32(&values[step * dim..(step + 1) * dim])
            })
            .collect();
        // The recording's own spacing, beginning now.
        let monotonic_ns = begin_ns + episode.monotonic_ns[step].unsigned_abs();
        for (camera, images) in embodiment.streams().zip(&episode.images) {
            robot.sample(&camera.name, monotonic_ns, Data::Jpeg(&images[step]))?;
        }
        robot.step(&Step {
            monotonic_ns,
            reward: Some(episode.rewards[step]),
            intervention: false,
            values: &values,
        })?;
    }
    robot.end(episode.outcome, episode.end)?;
    Ok(())
}
