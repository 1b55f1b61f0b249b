//! Errors as a client of the API sees them: OpenAI's body, a fitting status, and what to do.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{ServiceError, ledger::Refusal};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people: what is wrong and what to do.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `insufficient_quota`, `rate_limit_error`,
    /// `overloaded_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that is wrong, where it is one.
    pub param: Option<String>,
    /// For programs.
    pub code: &'static str,
}

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub detail: Box<ErrorDetail>,
    /// When it may make sense to ask again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code };
        Self { status, detail: Box::new(detail), retry_after: None }
    }

    /// A field of the request is wrong: 400.
    pub fn field(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(code, message);
        error.detail.param = Some(param.into());
        error
    }

    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
    }

    pub fn unauthorised(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message)
    }

    pub fn too_large(what: &str, limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "request_too_large",
            format!("{what} is over the limit of {limit} bytes"),
        )
    }

    pub fn timed_out() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "server_error",
            "timed_out",
            "the picture was not ready in time; try again, or ask for fewer steps or a smaller size",
        )
    }

    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "internal_error",
            "something went wrong here; the request id finds it in the node's log",
        )
    }

    pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", "no_capacity", message)
            .retry_after(retry_after)
    }

    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: (*self.detail).clone() }
    }

    /// Whole seconds for a `Retry-After` header, never 0, so that nobody retries in a tight loop.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after.map(|after| (after.as_millis().div_ceil(1000) as u64).max(1))
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::UnknownModel(_) => {
                let mut error = Self::not_found("model_not_found", message);
                error.detail.param = Some("model".into());
                error
            }
            ServiceError::Invalid(_) => Self::invalid("invalid_value", message),
            ServiceError::NoCapacity { retry_after } => Self::overloaded(message, retry_after),
            ServiceError::TimedOut => Self::timed_out(),
            ServiceError::Failed(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "server_error", "miner_failed", message)
            }
            ServiceError::Closing => Self::overloaded(message, Duration::from_secs(10)),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::UnknownKey | Refusal::Revoked => Self::unauthorised("invalid_api_key", message),
            Refusal::Rate { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", message)
                    .retry_after(retry_after)
            }
            Refusal::Concurrency { .. } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "concurrency_limit_exceeded",
                message,
            )
            .retry_after(Duration::from_secs(1)),
            Refusal::Credits { .. } => {
                Self::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", "insufficient_quota", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
