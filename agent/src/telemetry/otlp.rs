//! Exports spans by OTLP over HTTP, in protobuf.
//!
//! Spans that end wait in a bounded queue; one thread of its own takes them in batches. Where the queue is full, spans
//! are dropped: nothing ever waits for the collector. Spans and events of this product alone are exported, from INFO on.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;

/// Spans that wait for the collector; one takes about a kilobyte. The next one is dropped.
const QUEUE_MAX: usize = 2048;

/// Spans in one request.
const BATCH_MAX: usize = 256;

/// How long spans wait for company.
const BATCH_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for the collector's answer, and for the last batch when the program stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most bytes of an answer: it is a few, or an error's text.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Spans on their way to a collector.
#[derive(Debug)]
pub(super) struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Begins to export the spans of `service`; `endpoint` is `http://HOST:PORT`, or that with a path of its own.
    pub(super) fn begin(service: &'static str, endpoint: &str) -> Result<Self, TelemetryError> {
        let named = || endpoint.to_owned();
        let host = endpoint.strip_prefix("http://").filter(|host| !host.is_empty());
        let Some(host) = host else { return Err(TelemetryError::Endpoint { endpoint: named() }) };
        let traces = match host.trim_end_matches('/').split_once('/') {
            None => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            Some(_) => named(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_endpoint(traces)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|source| TelemetryError::Export { endpoint: named(), source: source.into() })?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_WAIT)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
        let resource = Resource::builder().with_service_name(service).build();
        let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(processor).build();
        Ok(Self { provider })
    }

    /// What takes the spans.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let ours = Targets::new().with_target("zunft", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer("zunft")).with_filter(ours)
    }

    /// Hands over what has ended.
    pub(super) fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the last spans were not exported");
        }
    }
}

/// HTTP for the exporter's thread, which may wait.
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .build();
        Self(config.into())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(head, body.to_vec()))?;
        let (head, body) = answer.into_parts();
        let bytes = body.into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_none_is_refused_by_the_name_of_its_key() {
        for endpoint in ["https://collector:4318", "collector:4318", "http://"] {
            let error = Export::begin("zunft-agent", endpoint).unwrap_err();
            assert!(matches!(&error, TelemetryError::Endpoint { endpoint: named } if named == endpoint), "{error}");
            assert!(error.to_string().contains("telemetry.otlp_endpoint"));
        }
    }
}
