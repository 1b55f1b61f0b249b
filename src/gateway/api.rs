//! The public router, what its handlers share, and what every answer gets: a request id, security
//! headers, a log line without anything the client wrote.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;

use super::{
    ApiError, Service, embeddings, images, info,
    ledger::{Admission, Ledger, Refusal},
    limits,
    metrics::{Metrics, RequestLabels},
    openapi, request,
    settings::Settings,
    studio,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the handlers share.
pub(super) struct App {
    pub settings: Settings,
    pub service: Arc<dyn Service>,
    pub ledger: Arc<Ledger>,
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
    pub begun: Instant,
    places: Arc<Semaphore>,
    picture_places: Arc<Semaphore>,
    /// Pictures are decoded for one request at a time on each.
    decoding: Arc<Semaphore>,
}

impl App {
    pub fn new(
        settings: Settings,
        service: Arc<dyn Service>,
        ledger: Arc<Ledger>,
        registry: Arc<Registry>,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Self {
        let places = Arc::new(Semaphore::new(settings.max_in_flight));
        Self {
            settings,
            service,
            ledger,
            registry,
            metrics,
            shutdown,
            begun: Instant::now(),
            places,
            picture_places: Arc::new(Semaphore::new(limits::PICTURE_BODIES_AT_ONCE)),
            decoding: Arc::new(Semaphore::new(limits::DECODES_AT_ONCE)),
        }
    }

    /// Lets a request for work in by its key.
    pub fn admit(&self, headers: &axum::http::HeaderMap) -> Result<Admission, ApiError> {
        if self.shutdown.is_cancelled() {
            return Err(super::ServiceError::Closing.into());
        }
        let text = request::bearer(headers)?;
        let admission = self.ledger.admit(text, Instant::now()).map_err(|refusal| self.refused(refusal))?;
        tracing::Span::current().record("key", tracing::field::display(admission.key()));
        Ok(admission)
    }

    pub fn refused(&self, refusal: Refusal) -> ApiError {
        self.metrics.refuse(refusal.reason());
        refusal.into()
    }

    /// A place among all requests that run.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.take(&self.places)
    }

    /// A place among the requests whose bodies are large.
    pub fn picture_place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.take(&self.picture_places)
    }

    /// Runs work on pictures on a blocking thread, a few at a time.
    pub async fn decode<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.decoding).acquire_owned().await.map_err(|_| ApiError::internal())?;
        let done = tokio::task::spawn_blocking(move || {
            // Moved in: a client that goes away must not let another decode begin before this one ends.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| ApiError::internal())
    }

    fn take(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(places).try_acquire_owned().map_err(|_| {
            self.metrics.refuse("full");
            ApiError::overloaded("this gateway is full; try again in a moment", request::FULL)
        })
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.settings.timeout_s)
    }

    /// Counts a request as running; as cancelled when dropped before [`Running::finished`].
    pub fn count_cancelled(&self) -> Running {
        self.metrics.in_flight.inc();
        Running { metrics: self.metrics.clone(), finished: false }
    }
}

pub(super) struct Running {
    metrics: Metrics,
    finished: bool,
}

impl Running {
    pub fn finished(mut self) {
        self.finished = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.finished {
            self.metrics.cancelled.inc();
        }
    }
}

pub(super) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/v1/images/generations", post(images::generations))
        .route("/v1/images/edits", post(images::edits))
        .route("/v1/images/variations", post(images::variations))
        .route("/v1/images/image-to-image", post(images::image_to_image))
        .route("/v1/images/inpaint", post(images::inpaint))
        .route("/v1/images/uncrop", post(images::uncrop))
        .route("/v1/images/controls", post(images::controls))
        .route("/v1/images/upscale", post(images::upscale))
        .route("/v1/images/nsfw", post(embeddings::nsfw))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{id}", get(info::model))
        .route("/v1/key", get(info::key))
        .route("/v1/status", get(info::status))
        .route("/health", get(info::health))
        .route("/health/live", get(info::live))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi::document));
    for path in studio::paths() {
        router = router.route(path, get(page));
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .layer(cors(&app.settings.allow_origins))
        .with_state(app)
}

async fn page(uri: Uri, headers: axum::http::HeaderMap) -> Result<Response, ApiError> {
    studio::serve(uri.path(), &headers).ok_or_else(|| ApiError::not_found("unknown_path", "no such file"))
}

async fn no_route(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    let hint =
        if path.starts_with("/images") || path.starts_with("/models") || path.starts_with("/embeddings") {
            format!("; did you mean /v1{path}?")
        } else {
            String::new()
        };
    ApiError::not_found("unknown_path", format!("there is nothing at {path}{hint} (see /openapi.json)"))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        "method_not_allowed",
        format!("{path} does not take {method}"),
    )
}

fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(Duration::from_secs(3600))
}

/// Around every request.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = format!("req_{}", hex::encode(rand::random::<[u8; 12]>()));
    let route =
        request.extensions().get::<MatchedPath>().map_or("unmatched", |path| path.as_str()).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!("http", request = %id, key = tracing::field::Empty);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    app.metrics.requests.get_or_create(&RequestLabels { route: route.clone(), status }).inc();
    span.in_scope(|| {
        tracing::debug!(%method, route, status, elapsed_ms = begun.elapsed().as_millis() as u64, "answered");
    });
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("hexadecimal digits"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
