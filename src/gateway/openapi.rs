//! The API's own description, `GET /openapi.json`, made from the handlers' types.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Ref, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{embeddings, error::ErrorBody, images, info, work};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Argus",
        description = "Pictures from words and from pictures, made and verified by a network of miners. The image and model endpoints \
            are OpenAI's, so that its client libraries work with `base_url` set to this node. Every error has \
            OpenAI's body; every answer has an `x-request-id`.",
        license(name = "MIT", identifier = "MIT"),
    ),
    paths(
        images::generations,
        images::edits,
        images::variations,
        images::image_to_image,
        images::inpaint,
        images::uncrop,
        images::controls,
        images::upscale,
        embeddings::nsfw,
        embeddings::embeddings,
        info::models,
        info::model,
        info::key,
        info::status,
        info::health,
        info::live,
        info::metrics,
    ),
    components(schemas(work::ProgressEvent, work::CompletedEvent, ErrorBody)),
    modifiers(&Key, &Refusals),
)]
pub struct Document;

struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let key = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("argus-…")
            .description(Some("A key made by the operator with `argus keys new`."))
            .build();
        document.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(key));
    }
}

struct Refusals;

/// How a request for work can fail, whatever the work.
const REFUSALS: [(u16, &str); 10] = [
    (400, "A field or a picture is wrong: `param` names it, the message has the allowed range"),
    (401, "No key, an unknown key or a revoked key"),
    (402, "Not enough credits"),
    (404, "There is no such model"),
    (408, "The body took too long"),
    (413, "The body is too large"),
    (429, "Over the key's rate or concurrency; `Retry-After` says when"),
    (502, "Every miner that was asked failed"),
    (503, "No miner has room; `Retry-After` says when"),
    (504, "No answer in time"),
];

impl Modify for Refusals {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let Some(operation) = &mut item.post else { continue };
            for (status, description) in REFUSALS {
                let body = Content::new(Some(Ref::from_schema_name("ErrorBody")));
                let response =
                    ResponseBuilder::new().description(description).content("application/json", body).build();
                operation.responses.responses.insert(status.to_string(), response.into());
            }
        }
    }
}

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
