//! An S3 bucket as the experience store, over rustls with ring.
//!
//! It does not know what is stored. Requests time out when nothing moves any more, not when a pack is large.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::StoreError;
use crate::config::S3Config;

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Longest time in which the server acknowledges none of the bytes sent.
const SEND_STALL_MAX: Duration = Duration::from_secs(30);

/// Longest wait for an answer, or for its next bytes: a pack of 1 GiB is on its way in that time at 2 MB/s.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Attempts after the first one: a server that restarts is back by then; robots try again after that anyway.
const RETRIES_MAX: usize = 5;

/// Longest time for all attempts together.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The part of a bucket below `prefix`, and its name for people. Sends nothing yet.
pub(super) fn open(
    config: &S3Config,
    bucket: &str,
    prefix: &str,
) -> Result<(Arc<dyn ObjectStore>, String), StoreError> {
    let server = if config.endpoint.is_empty() { format!("AWS in {}", config.region) } else { config.endpoint.clone() };
    let place = format!("bucket {bucket} at {server}");
    // Without a key in the configuration: AWS's variables, or the role of the machine.
    let own_key = !config.access_key_id.is_empty();
    let mut builder = if own_key { AmazonS3Builder::new() } else { AmazonS3Builder::from_env() };
    builder = builder
        .with_bucket_name(bucket)
        .with_region(&config.region)
        .with_allow_http(config.allow_http)
        .with_http_connector(RingConnector)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_MAX,
        });
    if own_key {
        builder =
            builder.with_access_key_id(&config.access_key_id).with_secret_access_key(config.secret_access_key.expose());
    }
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(&config.endpoint);
    }
    match builder.build() {
        Ok(bucket) if prefix.is_empty() => Ok((Arc::new(bucket), place)),
        Ok(bucket) => Ok((Arc::new(PrefixStore::new(bucket, prefix)), place)),
        Err(source) => Err(StoreError::Setup { place, source: source.into() }),
    }
}

/// HTTP over rustls with ring and the machine's certificate authorities (or those of `SSL_CERT_FILE`).
#[derive(Debug)]
struct RingConnector;

impl HttpConnector for RingConnector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "S3", source };
        let mut roots = rustls::RootCertStore::empty();
        // One malformed certificate of the machine must not stop the hub.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_MAX)
            .tcp_user_timeout(SEND_STALL_MAX)
            .read_timeout(ANSWER_MAX)
            .build();
        Ok(HttpClient::new(client.map_err(|error| failed(error.into()))?))
    }
}
