//! A hub or an agent as a process of its own, for tests that kill it: `zunft-test-node hub|service|agent CONFIG`;
//! a service is a hub with its HTTP API.

use std::path::Path;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use zunft_agent::config::Config;
use zunft_agent::telemetry::Telemetry;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::Hub;
use zunft_hub::service::Service;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, role, config] = arguments.as_slice() else { bail!("usage: zunft-test-node hub|agent CONFIG") };
    match role.as_str() {
        "hub" => hub(Path::new(config)),
        "service" => service(Path::new(config)),
        "agent" => agent(Path::new(config)),
        other => bail!("{other:?} is neither hub, service nor agent"),
    }
}

fn agent(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let telemetry = Telemetry::begin("zunft-agent", "warn", config.telemetry.otlp_endpoint.as_deref())?;
    zunft_agent::agent::run_until_signal(&config)?;
    telemetry.stop();
    Ok(())
}

fn hub(config: &Path) -> anyhow::Result<()> {
    let config = HubConfig::load(Some(config))?;
    let telemetry = Telemetry::begin("zunft-hub", "warn", None)?;
    let runtime = tokio::runtime::Runtime::new().context("runtime")?;
    runtime.block_on(async {
        let handle = Hub::start(config).await?;
        signal(SignalKind::terminate())?.recv().await;
        handle.shutdown().await;
        telemetry.stop();
        Ok(())
    })
}

fn service(config: &Path) -> anyhow::Result<()> {
    let config = HubConfig::load(Some(config))?;
    let runtime = tokio::runtime::Runtime::new().context("runtime")?;
    runtime.block_on(async {
        let service = Service::start(config).await?;
        signal(SignalKind::terminate())?.recv().await;
        service.shutdown().await;
        Ok(())
    })
}
