//! The hub's numbers for Prometheus, in its text format.

use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;
use zunft_protocol::episode::Outcome;

use super::Api;
use super::error::ApiError;
use crate::hub::RobotStatus;
use crate::metadata::TaskCount;

/// What a scraper gets.
type Text = ([(HeaderName, &'static str); 1], String);

/// Shows the hub's numbers in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "hub", operation_id = "hub_metrics",
    responses((status = 200, description = "The numbers", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Text, ApiError> {
    let robots = api.hub.robots(&api.tenant).await.map_err(|error| ApiError::internal("list the robots", &error))?;
    let tasks = api.hub.metadata().task_counts(&api.tenant).await;
    let tasks = tasks.map_err(|error| ApiError::internal("count the episodes", &error))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text(&robots, &tasks)))
}

fn text(robots: &[RobotStatus], tasks: &[TaskCount]) -> String {
    let mut text = String::new();
    let waiting = |of: fn(&crate::metadata::RobotReport) -> u64| -> u64 {
        robots.iter().filter_map(|robot| robot.record.report.as_ref()).map(of).sum()
    };
    let connected = robots.iter().filter(|robot| robot.connected).count() as u64;
    for (name, help, value) in [
        ("robots", "Robots known.", robots.len() as u64),
        ("robots_connected", "Of them, connected now.", connected),
        ("robots_episodes_waiting", "Episodes that robots hold and the hub does not.", waiting(|r| r.episodes_waiting)),
        ("robots_spool_bytes", "Bytes on robots' disks for them.", waiting(|r| r.spool_bytes)),
    ] {
        family(&mut text, name, help, &[(String::new(), value)]);
    }
    let by_task = |of: fn(&TaskCount) -> u64| -> Vec<(String, u64)> {
        tasks.iter().map(|count| (labels(count), of(count))).collect()
    };
    family(&mut text, "episodes", "Episodes stored.", &by_task(|count| count.episodes));
    family(&mut text, "steps", "Steps of stored episodes.", &by_task(|count| count.steps));
    family(&mut text, "episode_bytes", "Stored bytes of their chunks.", &by_task(|count| count.bytes));
    text
}

/// Names have no character that a label would have to escape.
fn labels(count: &TaskCount) -> String {
    let outcome = match count.outcome {
        Outcome::Success => "success",
        Outcome::Failure => "failure",
        Outcome::Unknown => "unknown",
    };
    format!("{{task=\"{}\",outcome=\"{outcome}\"}}", count.task)
}

fn family(text: &mut String, name: &str, help: &str, samples: &[(String, u64)]) {
    text.push_str(&format!("# HELP zunft_hub_{name} {help}\n# TYPE zunft_hub_{name} gauge\n"));
    for (labels, value) in samples {
        text.push_str(&format!("zunft_hub_{name}{labels} {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_with_their_labels() {
        let task = "push".parse().unwrap();
        let count = TaskCount { task, outcome: Outcome::Failure, episodes: 3, steps: 40, bytes: 500 };
        let text = text(&[], &[count]);
        assert!(
            text.starts_with(
                "# HELP zunft_hub_robots Robots known.\n# TYPE zunft_hub_robots gauge\nzunft_hub_robots 0\n"
            )
        );
        for line in [
            "zunft_hub_episodes{task=\"push\",outcome=\"failure\"} 3\n",
            "zunft_hub_steps{task=\"push\",outcome=\"failure\"} 40\n",
            "zunft_hub_episode_bytes{task=\"push\",outcome=\"failure\"} 500\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
