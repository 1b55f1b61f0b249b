//! Forms (multipart/form-data, RFC 7578) as the JSON objects that the endpoints understand: a file becomes
//! base64, a number a number. One path then checks both.
//!
//! The body was read under its limit before; parts, names and values are bounded by it.

use axum::{
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, Multipart, Request},
    http::{HeaderMap, HeaderValue, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::{ApiError, limits};

/// Fields whose text is a number.
const NUMBERS: [&str; 13] = [
    "n",
    "partial_images",
    "steps",
    "guidance",
    "seed",
    "strength",
    "left",
    "right",
    "top",
    "bottom",
    "factor",
    "scale",
    "dimensions",
];
/// Fields whose text is `true` or `false`.
const FLAGS: [&str; 1] = ["stream"];
/// Fields that may be given several times.
const LISTS: [&str; 1] = ["input"];

/// Whether a body is a form, by its header.
pub fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

/// The object that a form stands for.
pub async fn object(headers: &HeaderMap, body: Bytes) -> Result<Value, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).cloned().unwrap_or(HeaderValue::from_static(""));
    let mut request = Request::new(Body::from(body));
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    // It is in memory already.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut form =
        Multipart::from_request(request, &()).await.map_err(|error| not_a_form(&error.body_text()))?;
    let mut object = Map::new();
    let mut parts = 0;
    while let Some(part) = form.next_field().await.map_err(|error| not_a_form(&error.body_text()))? {
        parts += 1;
        if parts > limits::FORM_PARTS {
            return Err(not_a_form(&format!("more than {} parts", limits::FORM_PARTS)));
        }
        // `image[]` is how some clients write a field that could be a list.
        let name = part.name().unwrap_or_default().trim_end_matches("[]").to_owned();
        let is_file = part.file_name().is_some();
        let bytes = part.bytes().await.map_err(|error| not_a_form(&error.body_text()))?;
        let value = if is_file { Value::String(STANDARD.encode(&bytes)) } else { text(&name, &bytes)? };
        put(&mut object, name, value)?;
    }
    Ok(Value::Object(object))
}

fn text(name: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        ApiError::field(name, "invalid_type", format!("{name}: not text; send a file with a name"))
    })?;
    // What is no number stays text, which the check that follows refuses by the field's name.
    let known = NUMBERS.contains(&name) || FLAGS.contains(&name);
    let parsed = known.then(|| serde_json::from_str(text.trim()).ok()).flatten();
    Ok(parsed.filter(|value: &Value| value.is_number() || value.is_boolean()).unwrap_or_else(|| text.into()))
}

fn put(object: &mut Map<String, Value>, name: String, value: Value) -> Result<(), ApiError> {
    if LISTS.contains(&name.as_str()) {
        if let Value::Array(all) = object.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
            all.push(value);
        }
        return Ok(());
    }
    if object.contains_key(&name) {
        let message = format!("{name} is given twice; one is understood");
        return Err(ApiError::field(&name, "duplicate_parameter", message));
    }
    object.insert(name, value);
    Ok(())
}

fn not_a_form(problem: &str) -> ApiError {
    let problem: String = problem.chars().take(200).collect();
    ApiError::invalid("invalid_form", format!("the body is not a multipart form: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parsed(body: &str) -> Result<Value, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "multipart/form-data; boundary=X".parse().unwrap());
        assert!(is_form(&headers));
        object(&headers, Bytes::from(body.replace('\n', "\r\n"))).await
    }

    fn part(name: &str, more: &str, value: &str) -> String {
        format!("--X\nContent-Disposition: form-data; name=\"{name}\"{more}\n\n{value}\n")
    }

    #[tokio::test]
    async fn parts_become_fields() {
        let body = [
            part("prompt", "", "12"),
            part("n", "", "2"),
            part("stream", "", "true"),
            part("image[]", "; filename=\"a.png\"", "abc"),
            part("input", "; filename=\"b.png\"", "d"),
            part("input", "; filename=\"c.png\"", "e"),
            part("steps", "", "ten"),
            "--X--\n".into(),
        ]
        .concat();
        let expected = serde_json::json!({
            "prompt": "12", "n": 2, "stream": true, "image": "YWJj", "input": ["ZA==", "ZQ=="], "steps": "ten"
        });
        assert_eq!(parsed(&body).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn what_is_no_form_is_refused() {
        let twice = [part("n", "", "1"), part("n", "", "2"), "--X--\n".into()].concat();
        assert_eq!(parsed(&twice).await.unwrap_err().detail.code, "duplicate_parameter");
        let endless = part("n", "", "1").trim_end().to_owned();
        assert_eq!(parsed(&endless).await.unwrap_err().detail.code, "invalid_form");
        let many: String = (0..200).map(|i| part(&format!("f{i}"), "", "1")).collect();
        assert_eq!(parsed(&(many + "--X--\n")).await.unwrap_err().detail.code, "invalid_form");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "multipart/form-data".parse().unwrap());
        assert_eq!(object(&headers, Bytes::new()).await.unwrap_err().detail.code, "invalid_form");
    }
}
