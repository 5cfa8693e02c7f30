//! `zunft hub init` and `serve`: puts the hub together and stops it in order.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::Hub;
use zunft_hub::service::Service;

use crate::args::{JsonArgs, LeashArgs};
use crate::exit::{Failure, OrFail as _};
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Make a hub's data directory: its certificate authority, signing keys, token and empty stores.
    Init(InitArgs),
    /// Run a hub until SIGTERM or SIGINT. The first start makes its data directory.
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The hub's configuration; docs/hub.toml shows every key. Without it every key has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory, instead of the configuration's.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print the configuration in force and exit.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    leash: LeashArgs,
}

impl ConfigArgs {
    /// The command that serves what these flags name.
    fn serve_command(&self) -> String {
        let flag = |name: &str, path: Option<&PathBuf>| {
            path.map(|path| format!(" --{name} {}", path.display())).unwrap_or_default()
        };
        format!("zunft hub serve{}{}", flag("config", self.config.as_ref()), flag("data-dir", self.data_dir.as_ref()))
    }

    pub(crate) fn load(&self) -> Result<HubConfig, Failure> {
        let mut config = HubConfig::load(self.config.as_deref()).or_input()?;
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }
}

pub(crate) fn run(command: HubCommand) -> Result<(), Failure> {
    match command {
        HubCommand::Init(args) => init(&args),
        HubCommand::Serve(args) => serve(&args),
    }
}

/// What `init` made, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Made {
    data_dir: String,
    #[serde(skip)]
    serve: String,
    token_file: String,
    quic: SocketAddr,
    http: SocketAddr,
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    let config = args.config.load()?;
    let token = runtime()?.block_on(Hub::init(&config)).or_input()?;
    let made = Made {
        data_dir: config.data_dir.display().to_string(),
        serve: args.config.serve_command(),
        token_file: token.display().to_string(),
        quic: config.quic.listen,
        http: config.http.listen,
    };
    Output::new(args.json.json).show(&made, |made| {
        format!(
            "the hub's data directory is {}; back up its pki folder: robots trust those keys\nthe token for its HTTP API is in {}\n\nStart it: {}\n",
            made.data_dir, made.token_file, made.serve
        )
    })
}

fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let config = args.config.load()?;
    if args.print_config {
        return output::print(&toml::to_string_pretty(&config).or_internal()?);
    }
    args.leash.watch();
    runtime()?.block_on(serve_until_signal(config))
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().or_internal()
}

async fn serve_until_signal(config: HubConfig) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).or_internal()?;
    let mut interrupt = signal(SignalKind::interrupt()).or_internal()?;
    let service = Service::start(config).await.or_input()?;
    info!(quic = %service.hub().quic_addr(), http = %service.http_addr(), "hub serves");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("hub stops");
    tokio::select! {
        () = service.shutdown() => Ok(()),
        // Nothing acknowledged depends on an orderly end.
        _ = terminate.recv() => Err(Failure::interrupted()),
        _ = interrupt.recv() => Err(Failure::interrupted()),
    }
}
