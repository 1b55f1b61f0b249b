//! Reading a request: the key from its header, a bounded body, JSON with the wrong field named.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::{ApiError, form, limits};

/// The bearer key of a request.
pub fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(ApiError::unauthorised(
            "missing_api_key",
            "an API key is needed: send the header \"Authorization: Bearer argus-…\"; the operator makes keys \
             with `argus keys new`",
        ));
    };
    let malformed =
        || ApiError::unauthorised("invalid_api_key", "the Authorization header must read \"Bearer argus-…\"");
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, key) = text.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") || key.trim().is_empty() {
        return Err(malformed());
    }
    Ok(key.trim())
}

/// Reads a body up to `limit` bytes.
pub async fn body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let mut stream = body.into_data_stream();
    if announced.is_some_and(|length| length > limits::DRAIN_BODY as u64) {
        return Err(ApiError::too_large("the body", limit));
    }
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit as u64) as usize);
        let mut length = 0_usize;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|_| ApiError::invalid("incomplete_body", "the body ended before it was complete"))?;
            length += chunk.len();
            if length > limits::DRAIN_BODY {
                break;
            }
            if length <= limit {
                bytes.extend_from_slice(&chunk);
            }
        }
        if length > limit { Err(ApiError::too_large("the body", limit)) } else { Ok(Bytes::from(bytes)) }
    };
    tokio::time::timeout(limits::BODY_TIMEOUT, read).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "body_timeout",
            format!("the body took longer than {} s", limits::BODY_TIMEOUT.as_secs()),
        ))
    })
}

/// Reads a body up to `limit` bytes and decodes it: a form, or JSON whatever its content type says.
pub async fn read<T: DeserializeOwned>(headers: &HeaderMap, from: Body, limit: usize) -> Result<T, ApiError> {
    let bytes = body(headers, from, limit).await?;
    if form::is_form(headers) {
        return object(form::object(headers, bytes).await?);
    }
    json(&bytes)
}

/// Decodes a JSON object; an error names the field.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(explained)?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

/// Decodes an object that was read already; an error names the field.
pub fn object<T: DeserializeOwned>(object: serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(object).map_err(explained)
}

fn explained(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    let error = error.into_inner();
    if error.is_data() { wrong_field(&path, &error.to_string()) } else { not_json(&error) }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::invalid("invalid_json", format!("the body is not a JSON object: {error}"))
}

fn wrong_field(path: &str, problem: &str) -> ApiError {
    let quoted =
        |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    if problem.starts_with("unknown field") {
        let mut names = quoted(problem).into_iter();
        let field = names.next().unwrap_or_default();
        let near = names
            .map(|name| (strsim::jaro_winkler(&field, &name), name))
            .filter(|(similarity, _)| *similarity > 0.75)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = near.map(|(_, name)| format!("; did you mean {name:?}?")).unwrap_or_default();
        return ApiError::field(
            &field,
            "unknown_parameter",
            format!("there is no parameter {field:?}{hint} See /openapi.json for all of them.")
                .replace("\" See", "\". See"),
        );
    }
    if problem.starts_with("missing field") {
        let field = quoted(problem).into_iter().next().unwrap_or_default();
        return ApiError::field(&field, "missing_required_parameter", format!("{field:?} is needed"));
    }
    // serde adds where in the text; a client knows its fields, not our columns.
    let problem = problem.split(" at line ").next().unwrap_or(problem);
    let problem: String = problem.chars().take(300).collect();
    if path == "." {
        return ApiError::invalid("invalid_json", format!("the body must be a JSON object: {problem}"));
    }
    ApiError::field(path, "invalid_type", format!("{path}: {problem}"))
}

/// For `Retry-After` when the gateway itself is full.
pub const FULL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        steps: u32,
        #[allow(dead_code)]
        inner: Option<Vec<u32>>,
    }

    fn error(body: &str) -> super::super::error::ErrorDetail {
        *json::<Sample>(body.as_bytes()).unwrap_err().detail
    }

    #[test]
    fn errors_name_the_field_and_what_was_meant() {
        let unknown = error(r#"{"step": 3}"#);
        assert_eq!((unknown.code, unknown.param.as_deref()), ("unknown_parameter", Some("step")));
        assert!(unknown.message.contains("did you mean \"steps\"?"), "{}", unknown.message);
        let missing = error("{}");
        assert_eq!((missing.code, missing.param.as_deref()), ("missing_required_parameter", Some("steps")));
        let typed = error(r#"{"steps": "twenty"}"#);
        assert_eq!((typed.code, typed.param.as_deref()), ("invalid_type", Some("steps")));
        let nested = error(r#"{"steps": 1, "inner": [1, -2]}"#);
        assert_eq!(nested.param.as_deref(), Some("inner[1]"));
    }

    #[test]
    fn whatever_is_no_object_is_refused() {
        for bad in ["", "{", "[]", "3", "{\"steps\":1} x", "\u{0}", "{\"steps\":1,\"steps\":2}"] {
            assert!(json::<Sample>(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{{\"steps\":1,\"inner\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(json::<Sample>(deep.as_bytes()).is_err());
    }

    #[test]
    fn bearer_keys_are_read_in_one_form_only() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with("Bearer argus-1").unwrap(), "argus-1");
        assert_eq!(with("bearer  argus-1").unwrap(), "argus-1");
        for bad in ["argus-1", "Basic argus-1", "Bearer ", "Bearer"] {
            assert_eq!(with(bad).unwrap_err().detail.code, "invalid_api_key", "{bad}");
        }
        assert_eq!(bearer(&HeaderMap::new()).unwrap_err().detail.code, "missing_api_key");
    }
}
