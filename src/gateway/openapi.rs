//! The API's own description, `GET /openapi.json`, made from the handlers' types.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{embeddings, images, info};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Argus",
        description = "Pictures from words, made and verified by a network of miners. The image and model endpoints \
            are OpenAI's, so that its client libraries work with `base_url` set to this node. Every error has \
            OpenAI's body; every answer has an `x-request-id`.",
        license(name = "MIT", identifier = "MIT"),
    ),
    paths(
        images::generations,
        embeddings::embeddings,
        info::models,
        info::model,
        info::key,
        info::status,
        info::health,
        info::live,
        info::metrics,
    ),
    components(schemas(images::ProgressEvent, images::CompletedEvent)),
    modifiers(&Key),
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

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
