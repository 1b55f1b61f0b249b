//! The API document is true: real answers are checked against its schemas, and every route is in it.

use std::sync::atomic::Ordering;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Response;
use serde_json::{Map, Value, json};

use super::{apple, service, start, value};

/// The part of JSON Schema that the document uses. A keyword it does not know fails the test, so that no
/// schema is passed by not being understood.
struct Schemas<'a>(&'a Value);

impl Schemas<'_> {
    fn check(&self, schema: &Value, value: &Value, at: &str) {
        let Some(schema) = schema.as_object() else { panic!("{at}: {schema} is no schema") };
        for (keyword, argument) in schema {
            match keyword.as_str() {
                "$ref" => self.check(self.resolve(argument), value, at),
                "type" => check_type(argument, value, at),
                "properties" => self.properties(schema, value, at),
                "required" => {
                    for name in argument.as_array().unwrap() {
                        let name = name.as_str().unwrap();
                        if let Some(object) = value.as_object() {
                            assert!(object.contains_key(name), "{at}: {name} is missing in {value}");
                        }
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(argument, item, &format!("{at}[{index}]"));
                    }
                }
                "additionalProperties" => {
                    if argument.is_object() {
                        for (name, item) in value.as_object().into_iter().flatten() {
                            self.check(argument, item, &format!("{at}.{name}"));
                        }
                    }
                }
                "oneOf" | "anyOf" => {
                    let fits = |option: &&Value| {
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            self.check(option, value, at)
                        }))
                        .is_ok()
                    };
                    let count = argument.as_array().unwrap().iter().filter(fits).count();
                    assert!(count >= 1, "{at}: {value} fits none of {argument}");
                }
                "allOf" => self.check(&self.joined(argument.as_array().unwrap()), value, at),
                "enum" => assert!(argument.as_array().unwrap().contains(value), "{at}: {value}"),
                "minimum" => {
                    if let Some(number) = value.as_f64() {
                        assert!(number >= argument.as_f64().unwrap(), "{at}: {value}");
                    }
                }
                "maximum" => {
                    if let Some(number) = value.as_f64() {
                        assert!(number <= argument.as_f64().unwrap(), "{at}: {value}");
                    }
                }
                "description" | "format" | "example" | "default" | "title" | "propertyNames" => {}
                other => panic!("{at}: this test does not know the keyword {other}"),
            }
        }
    }

    /// One schema of all parts: flattened structs are written as parts that each know some properties.
    fn joined(&self, parts: &[Value]) -> Value {
        let mut joined = json!({ "type": "object", "properties": {}, "required": [] });
        for part in parts {
            let part = part.get("$ref").map_or(part, |reference| self.resolve(reference));
            for (keyword, argument) in part.as_object().unwrap() {
                match (keyword.as_str(), argument) {
                    ("properties", Value::Object(more)) => {
                        joined["properties"].as_object_mut().unwrap().extend(more.clone());
                    }
                    ("required", Value::Array(more)) => {
                        joined["required"].as_array_mut().unwrap().extend(more.clone());
                    }
                    ("type" | "description" | "example", _) => {}
                    (other, _) => panic!("this test does not know {other} within allOf"),
                }
            }
        }
        joined
    }

    fn properties(&self, schema: &Map<String, Value>, value: &Value, at: &str) {
        let Some(object) = value.as_object() else { return };
        let properties = schema["properties"].as_object().unwrap();
        for (name, value) in object {
            match properties.get(name) {
                Some(property) => self.check(property, value, &format!("{at}.{name}")),
                None => assert!(
                    schema.contains_key("additionalProperties"),
                    "{at}: {name} is not in the document"
                ),
            }
        }
    }

    fn resolve(&self, reference: &Value) -> &Value {
        let path = reference.as_str().unwrap().trim_start_matches('#');
        self.0.pointer(path).unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }
}

fn check_type(kinds: &Value, value: &Value, at: &str) {
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: unknown type {other}"),
    };
    let fits = match kinds {
        Value::Array(all) => all.iter().any(|kind| is(kind.as_str().unwrap())),
        one => is(one.as_str().unwrap()),
    };
    assert!(fits, "{at}: {value} is not {kinds}");
}

#[tokio::test]
async fn real_answers_are_as_the_document_says() {
    let running = start().await;
    let document = value(running.get("/openapi.json").send().await.unwrap()).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let schemas = Schemas(&document);
    let picture = STANDARD.encode(super::api::png(4, 4, [5, 6, 7]));
    let small = STANDARD.encode(super::api::png(64, 64, [5, 6, 7]));
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let images = "/v1/images/generations";
    let posts = [
        (images, apple(), 200),
        (images, json!({ "prompt": service::BUSY }), 503),
        (images, json!({ "prompt": service::LATE }), 504),
        (images, json!({ "prompt": service::BROKEN }), 502),
        (images, json!({ "prompt": service::NUDE }), 400),
        (images, with(apple(), "n", 99.into()), 400),
        (images, with(apple(), "model", "none".into()), 404),
        (images, json!({ "prompt": "x".repeat(100_000) }), 413),
        ("/v1/embeddings", json!({ "input": [picture.clone(), picture.clone()] }), 200),
        ("/v1/embeddings", json!({ "input": picture, "encoding_format": "base64" }), 200),
        ("/v1/embeddings", json!({ "input": "?" }), 400),
        ("/v1/images/edits", json!({ "prompt": "x", "image": small }), 200),
        ("/v1/images/variations", json!({ "image": small }), 200),
        ("/v1/images/image-to-image", json!({ "prompt": "x", "image": small, "strength": 0.5 }), 200),
        ("/v1/images/inpaint", json!({ "prompt": "x", "image": small, "mask": small }), 200),
        ("/v1/images/inpaint", json!({ "prompt": "x", "image": small, "mask": "?" }), 400),
        ("/v1/images/uncrop", json!({ "prompt": "x", "image": small, "left": 64 }), 200),
        ("/v1/images/controls", json!({ "prompt": "x", "scribble": small }), 200),
        ("/v1/images/controls", json!({ "prompt": "x", "depth": { "image": small, "scale": 0.5 } }), 200),
        ("/v1/images/upscale", json!({ "image": small, "factor": 2 }), 200),
        ("/v1/images/nsfw", json!({ "input": [small] }), 200),
    ];
    let mut seen = Vec::new();
    for (path, body, status) in posts {
        if status < 400 {
            let schema =
                &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
            schemas.check(schema, &body, path);
        }
        let response = running.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        seen.push(checked(&schemas, path, "post", response).await);
    }
    let anonymous = running.http.post(running.url(images)).json(&apple()).send().await.unwrap();
    seen.push(checked(&schemas, images, "post", anonymous).await);
    for (path, template, status) in [
        ("/v1/models", "/v1/models", 200),
        ("/v1/models/local-disc", "/v1/models/{id}", 200),
        ("/v1/models/none", "/v1/models/{id}", 404),
        ("/v1/key", "/v1/key", 200),
        ("/v1/status", "/v1/status", 200),
        ("/health", "/health", 200),
        ("/health/live", "/health/live", 200),
        ("/metrics", "/metrics", 200),
    ] {
        let response = running.get(path).bearer_auth(&running.key).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        seen.push(checked(&schemas, template, "get", response).await);
    }
    running.local.miners.store(0, Ordering::SeqCst);
    let unready = running.get("/health").send().await.unwrap();
    seen.push(checked(&schemas, "/health", "get", unready).await);
    // Every route that is described was asked.
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(seen.iter().any(|(template, status)| template == path && *status == 200), "{path}");
    }
}

/// Checks an answer against the document: status, content type and body.
async fn checked(schemas: &Schemas<'_>, template: &str, method: &str, response: Response) -> (String, u16) {
    let status = response.status().as_u16();
    let described = &schemas.0["paths"][template][method]["responses"][status.to_string()];
    assert!(described.is_object(), "{method} {template} {status} is not in the document");
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let content = described["content"].as_object().unwrap();
    let same = |name: &&String| name.split(';').next() == kind.split(';').next();
    let name =
        content.keys().find(same).unwrap_or_else(|| panic!("{template}: {kind} is not in the document"));
    let text = response.text().await.unwrap();
    let body = if kind.starts_with("application/json") {
        serde_json::from_str(&text).unwrap()
    } else {
        Value::String(text)
    };
    schemas.check(&content[name]["schema"], &body, template);
    (template.to_owned(), status)
}

#[tokio::test]
async fn events_are_as_the_document_says() {
    let running = start().await;
    let document = value(running.get("/openapi.json").send().await.unwrap()).await;
    let schemas = Schemas(&document);
    let body = json!({ "prompt": service::RETRIED, "stream": true, "n": 2 });
    let text = running.images(&body).send().await.unwrap().text().await.unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for event in text.split("\n\n").filter(|event| event.starts_with("event: ")) {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let schema = match name {
            "image_generation.progress" => "ProgressEvent",
            "image_generation.completed" => "CompletedEvent",
            other => panic!("{other}"),
        };
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        schemas.check(&document["components"]["schemas"][schema], &data, name);
        kinds.insert(name);
    }
    assert_eq!(kinds.len(), 2);
}
