//! Reads what a request carries: bounded, on lack of progress given up, and refused in the API's one error shape.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use futures::StreamExt as _;
use serde::de::DeserializeOwned;

use super::error::{ApiError, ErrorCode};
use crate::causes::with_causes;

/// Largest JSON body: a list of ten thousand names fits.
pub(super) const JSON_BYTES_MAX: usize = 1024 * 1024;

/// How long a body may bring no byte: a lossy mobile link recovers within this.
pub(super) const BODY_IDLE_SECS_MAX: u64 = 30;

/// Reads a body of at most `bytes_max` bytes that keeps arriving.
pub(super) async fn read_body(body: Body, what: &str, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut pieces = BodyPieces::new(body, what, bytes_max as u64);
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// A body piece by piece, for what is too large for memory.
pub(super) struct BodyPieces<'a> {
    stream: axum::body::BodyDataStream,
    what: &'a str,
    bytes_left: u64,
    bytes_max: u64,
    idle_max: Duration,
}

impl<'a> BodyPieces<'a> {
    pub(super) fn new(body: Body, what: &'a str, bytes_max: u64) -> Self {
        let idle_max = Duration::from_secs(BODY_IDLE_SECS_MAX);
        Self { stream: body.into_data_stream(), what, bytes_left: bytes_max, bytes_max, idle_max }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let what = self.what;
        let next = tokio::time::timeout(self.idle_max, self.stream.next()).await;
        let stalled = |_| {
            let message = format!("{what} stopped arriving for {BODY_IDLE_SECS_MAX} seconds; send it again");
            ApiError::new(ErrorCode::Timeout, message)
        };
        let Some(piece) = next.map_err(stalled)? else {
            return Ok(None);
        };
        let piece =
            piece.map_err(|_| ApiError::new(ErrorCode::BadRequest, format!("{what} broke off; send it again")))?;
        match self.bytes_left.checked_sub(piece.len() as u64) {
            Some(left) => self.bytes_left = left,
            None => {
                let message = format!("{what} has more than {} bytes, the most allowed", self.bytes_max);
                return Err(ApiError::new(ErrorCode::TooLarge, message));
            }
        }
        Ok(Some(piece))
    }
}

/// A JSON body.
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let bytes = read_body(request.into_body(), "the JSON body", JSON_BYTES_MAX).await?;
        parse_json(&bytes).map(Self)
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let refused = ApiError::new(ErrorCode::BadRequest, format!("the JSON body cannot be used: {}", error.inner()));
        match error.path().to_string().as_str() {
            // Broken before any key was read.
            "." | "?" => refused,
            path => refused.in_field(path),
        }
    })?;
    parser.end().map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("the JSON body has something after its end: {error}"))
    })?;
    Ok(value)
}

/// The parameters after `?`.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|query| Self(query.0))
            .map_err(|rejection| ApiError::new(ErrorCode::BadRequest, with_causes(&rejection)).in_field("query"))
    }
}

/// The parts of the path.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0))
            .map_err(|rejection| ApiError::new(ErrorCode::BadRequest, rejection.body_text()).in_field("path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nested {
        #[expect(dead_code, reason = "only its parsing matters")]
        config: Inner,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only its parsing matters")]
        steps: u32,
    }

    #[test]
    fn json_is_refused_by_the_field_at_fault() {
        let refused = |text: &str| parse_json::<Nested>(text.as_bytes()).unwrap_err();
        assert_eq!(refused(r#"{"config":{"steps":-1}}"#).field.as_deref(), Some("config.steps"));
        assert_eq!(refused(r#"{"config":{"steps":1,"stops":2}}"#).field.as_deref(), Some("config.stops"));
        assert_eq!(refused("{").field, None);
        assert!(refused(r#"{"config":{"steps":1}} x"#).message.contains("after its end"));
    }

    #[tokio::test]
    async fn bodies_over_the_bound_are_refused_before_they_are_held() {
        let error = read_body(Body::from(vec![0; 11]), "the chunk", 10).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::TooLarge);
        assert!(error.message.contains("10 bytes"));
        assert_eq!(read_body(Body::from(vec![7; 10]), "the chunk", 10).await.unwrap().len(), 10);
    }

    #[tokio::test]
    async fn bodies_that_stop_arriving_are_given_up() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let mut pieces = BodyPieces { idle_max: Duration::from_millis(5), ..BodyPieces::new(body, "the chunk", 10) };
        assert_eq!(pieces.next().await.unwrap_err().code, ErrorCode::Timeout);
    }
}
