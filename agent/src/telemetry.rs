//! Logs on standard error, and spans to a collector where the configuration names one.
//!
//! The spans go by OTLP over HTTP, which the feature `otlp` builds in. It knows nothing of what is logged.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The program cannot.
    #[error(
        "config key telemetry.otlp_endpoint is {endpoint:?}, and this program was built without OTLP; build it with \
         `cargo build --release --features otlp`, or remove the key"
    )]
    NotBuiltIn {
        /// Where to.
        endpoint: String,
    },
    /// No such place.
    #[error(
        "config key telemetry.otlp_endpoint is {endpoint:?}; it must be http://HOST:PORT: run a collector on this machine, \
         which may pass spans on encrypted"
    )]
    Endpoint {
        /// Where to.
        endpoint: String,
    },
    /// The exporter.
    #[error("spans cannot be exported to {endpoint} (config key telemetry.otlp_endpoint)")]
    Export {
        /// Where to.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What runs behind the logs. [`Telemetry::stop`] hands over what waits.
#[derive(Debug)]
#[must_use = "dropped, it stops to export"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    export: Option<otlp::Export>,
}

impl Telemetry {
    /// Begins to log by `RUST_LOG`, or `level` where that says nothing, and to export the spans of `service` to
    /// `otlp_endpoint`, where there is one.
    pub fn begin(service: &'static str, level: &str, otlp_endpoint: Option<&str>) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let ansi = io::stderr().is_terminal();
        let logs = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(ansi).with_filter(filter);
        let registry = tracing_subscriber::registry().with(logs);
        #[cfg(feature = "otlp")]
        {
            let export = otlp_endpoint.map(|endpoint| otlp::Export::begin(service, endpoint)).transpose()?;
            registry.with(export.as_ref().map(otlp::Export::layer)).init();
            Ok(Self { export })
        }
        #[cfg(not(feature = "otlp"))]
        {
            registry.init();
            match otlp_endpoint {
                None => Ok(Self {}),
                Some(endpoint) => {
                    tracing::debug!(service, "nothing can be exported");
                    Err(TelemetryError::NotBuiltIn { endpoint: endpoint.to_owned() })
                }
            }
        }
    }

    /// Hands over the spans that have ended; gives up after five seconds.
    pub fn stop(self) {
        #[cfg(feature = "otlp")]
        if let Some(export) = self.export {
            export.stop();
        }
    }
}
