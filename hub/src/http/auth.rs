//! Who may use the API: whoever holds the admin token, and then everything of the default tenant.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, ErrorCode};

/// What the token is, as a hash, and where its file lies.
#[derive(Debug)]
pub(super) struct Guard {
    token: blake3::Hash,
    token_path: PathBuf,
}

impl Guard {
    pub(super) fn new(token: &str, token_path: PathBuf) -> Self {
        Self { token: blake3::hash(token.as_bytes()), token_path }
    }

    /// Checks the `Authorization` header.
    fn check(&self, header: Option<&str>) -> Result<(), ApiError> {
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        // Equality of hashes takes the same time wherever they differ.
        if token.is_some_and(|token| blake3::hash(token.trim().as_bytes()) == self.token) {
            return Ok(());
        }
        let problem = if token.is_some() { "the token is not this hub's" } else { "a token is needed" };
        let path = self.token_path.display();
        Err(ApiError::new(
            ErrorCode::Unauthorized,
            format!("{problem}; send \"Authorization: Bearer TOKEN\" with the content of {path} on the hub's machine"),
        ))
    }
}

/// Lets only requests with the token through.
pub(super) async fn require_token(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    guard.check(header)?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens_and_refusals_tell_where_it_lies() {
        let guard = Guard::new("secret", "/data/pki/admin.token".into());
        assert_eq!(guard.check(Some("Bearer secret")), Ok(()));
        for wrong in [None, Some("secret"), Some("Bearer "), Some("Bearer secre"), Some("Basic secret")] {
            let error = guard.check(wrong).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unauthorized);
            assert!(error.message.contains("/data/pki/admin.token") && !error.message.contains("secret"));
        }
    }
}
