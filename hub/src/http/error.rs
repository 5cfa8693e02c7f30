//! The one shape in which every failure of the API leaves the hub.
//!
//! A client sees a code to branch on, a message to show, and the field at fault where there is one. What only an
//! operator may see stays in the log.

use std::error::Error;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::error;
use utoipa::ToSchema;

use crate::causes::with_causes;

/// What kind of failure it is: branch on this, show the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// 400: the request cannot be understood; `field` names the part.
    BadRequest,
    /// 401: no token, or a wrong one.
    Unauthorized,
    /// 404: there is no such thing.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 408: the request's body stopped arriving.
    Timeout,
    /// 409: the request contradicts what the hub holds.
    Conflict,
    /// 413: over a bound; the message names it.
    TooLarge,
    /// 422: understood, but it cannot be done with these values.
    Unprocessable,
    /// 500: the hub failed; its log says why.
    Internal,
    /// 503: a queue is full, or the hub is stopping; try again later.
    Busy,
}

impl ErrorCode {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Every failure of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What is wrong and what to do about it.
    pub message: String,
    /// Which part of the request is at fault, for example `config.steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl ApiError {
    /// A failure with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None }
    }

    /// Names the part of the request at fault.
    #[must_use]
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// A value of `field` that cannot be used, with its causes.
    pub fn refused(field: &str, error: &dyn Error) -> Self {
        Self::new(ErrorCode::Unprocessable, with_causes(error)).in_field(field)
    }

    /// There is no such thing.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {what} {name} on this hub"))
    }

    /// The hub's own failure: logged here, with its causes, and nowhere else.
    pub fn internal(operation: &'static str, error: &dyn Error) -> Self {
        error!(operation, error = with_causes(error), "request failed");
        Self::new(ErrorCode::Internal, format!("the hub could not {operation}; its log says why"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), Json(&self)).into_response();
        if self.code == ErrorCode::Unauthorized {
            let scheme = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
