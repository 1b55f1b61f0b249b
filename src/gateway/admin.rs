//! How `argus keys` reaches a node that runs: HTTP on loopback, opened by a token that only the node's
//! user can read (`gateway.json` in the data directory, mode 0600).

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{self, Query, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{
    ApiError,
    keys::{KeyChange, KeyId, NewKey, Secret},
    ledger::{Ledger, LedgerError},
    limits, request,
};

/// Name of the file in the data directory.
pub const FILE: &str = "gateway.json";

/// Where the admin port is and what opens it.
#[derive(Clone, Serialize, Deserialize)]
pub struct AdminFile {
    pub address: SocketAddr,
    pub token: String,
}

impl AdminFile {
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// Reads the file of a node, if there is one.
    pub fn read(data_dir: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::read(Self::path(data_dir)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Into::into),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a new file for a node that starts, readable by its user alone from its first byte on.
    pub(super) fn create(data_dir: &Path, address: SocketAddr, token: &Secret) -> std::io::Result<()> {
        let (path, fresh) = (Self::path(data_dir), data_dir.join(format!("{FILE}.new")));
        let text = serde_json::to_vec(&Self { address, token: token.expose().to_owned() })?;
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(fresh, path)
    }
}

struct Admin {
    ledger: Arc<Ledger>,
    token: [u8; 32],
}

pub(super) fn router(ledger: Arc<Ledger>, token: &Secret) -> Router {
    let admin = Arc::new(Admin { ledger, token: *token.hash().as_bytes() });
    Router::new()
        .route("/keys", get(list).post(create))
        .route("/keys/{id}", get(show).patch(change).delete(revoke))
        .fallback(|| async { ApiError::not_found("unknown_path", "there is nothing here") })
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), authorise))
        .with_state(admin)
}

async fn authorise(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let given = match request::bearer(request.headers()) {
        Ok(text) => super::keys::KeyHash::of(text),
        Err(error) => return error.into_response(),
    };
    if bool::from(given.as_bytes().ct_eq(&admin.token)) {
        next.run(request).await
    } else {
        ApiError::unauthorised(
            "invalid_token",
            format!("the token is in {FILE} of the node's data directory"),
        )
        .into_response()
    }
}

async fn list(State(admin): State<Arc<Admin>>) -> Response {
    Json(admin.ledger.list()).into_response()
}

async fn create(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let new: NewKey = request::json(&request::body(&headers, body, limits::ADMIN_BODY).await?)?;
    Ok((StatusCode::CREATED, Json(admin.ledger.create(new)?)).into_response())
}

async fn show(
    State(admin): State<Arc<Admin>>,
    extract::Path(id): extract::Path<String>,
) -> Result<Response, ApiError> {
    Ok(Json(admin.ledger.get(&parse(&id)?)?).into_response())
}

async fn change(
    State(admin): State<Arc<Admin>>,
    extract::Path(id): extract::Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let change: KeyChange = request::json(&request::body(&headers, body, limits::ADMIN_BODY).await?)?;
    Ok(Json(admin.ledger.change(&parse(&id)?, change)?).into_response())
}

#[derive(Deserialize)]
struct Revocation {
    #[serde(default)]
    forget: bool,
}

async fn revoke(
    State(admin): State<Arc<Admin>>,
    extract::Path(id): extract::Path<String>,
    Query(how): Query<Revocation>,
) -> Result<Response, ApiError> {
    let id = parse(&id)?;
    let view = if how.forget { admin.ledger.forget(&id)? } else { admin.ledger.revoke(&id)? };
    Ok(Json(view).into_response())
}

fn parse(id: &str) -> Result<KeyId, ApiError> {
    Ok(id.parse().map_err(LedgerError::Key)?)
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        let (code, message) = (error.reason(), error.to_string());
        match error {
            LedgerError::Key(_) | LedgerError::Revoked(_) => ApiError::invalid(code, message),
            LedgerError::NotFound(_) => ApiError::not_found(code, message),
            LedgerError::Full => ApiError::new(StatusCode::CONFLICT, "invalid_request_error", code, message),
            LedgerError::Store(_) => {
                ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "server_error", code, message)
            }
        }
    }
}
