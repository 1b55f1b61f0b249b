//! The studio: one page for people, its files embedded. It may load nothing but itself and run no inline
//! script; what it shows of a prompt or an error it sets as text.

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($path:literal, $kind:expr, $name:literal) => {
        File { path: $path, kind: $kind, text: include_str!(concat!("studio/", $name)) }
    };
}

const PAGE: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 14] = [
    file!("/", PAGE, "index.html"),
    file!("/studio/icon.svg", "image/svg+xml", "icon.svg"),
    file!("/studio/studio.css", STYLE, "studio.css"),
    file!("/studio/composer.css", STYLE, "composer.css"),
    file!("/studio/stage.css", STYLE, "stage.css"),
    file!("/studio/network.css", STYLE, "network.css"),
    file!("/studio/studio.js", SCRIPT, "studio.js"),
    file!("/studio/api.js", SCRIPT, "api.js"),
    file!("/studio/easel.js", SCRIPT, "easel.js"),
    file!("/studio/gallery.js", SCRIPT, "gallery.js"),
    file!("/studio/key.js", SCRIPT, "key.js"),
    file!("/studio/modes.js", SCRIPT, "modes.js"),
    file!("/studio/network.js", SCRIPT, "network.js"),
    file!("/studio/tile.js", SCRIPT, "tile.js"),
];

/// Paths of all files, for the router.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|file| file.path)
}

/// Answers with the file of this path, or with 304 when the browser has it.
pub(super) fn serve(path: &str, headers: &HeaderMap) -> Option<Response> {
    let file = FILES.iter().find(|file| file.path == path)?;
    let hash = blake3::hash(file.text.as_bytes()).to_hex();
    let tag = HeaderValue::from_str(&format!("\"{}\"", &hash[..16])).expect("hexadecimal digits");
    let known = headers.get(header::IF_NONE_MATCH) == Some(&tag);
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.kind)], file.text).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}
