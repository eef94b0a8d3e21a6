//! Script, style and icon: compiled in, named after their content, kept by browsers for ever.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// A file of the page.
struct Asset {
    /// Name with the beginning of its hash.
    name: String,
    kind: &'static str,
    bytes: &'static [u8],
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, bytes: &'static [u8]) -> Self {
        let hash = hex::encode(Sha256::digest(bytes).get(..6).unwrap_or_default());
        Self { name: format!("{stem}-{hash}.{extension}"), kind, bytes }
    }
}

static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("roost", "css", "text/css; charset=utf-8", include_bytes!("../../assets/roost.css")));
static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("roost", "js", "text/javascript; charset=utf-8", include_bytes!("../../assets/roost.js"))
});
static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("roost", "svg", "image/svg+xml", include_bytes!("../../assets/roost.svg")));

/// Address of the style sheet.
pub(crate) fn style() -> String {
    format!("/assets/{}", STYLE.name)
}

/// Address of the script.
pub(crate) fn script() -> String {
    format!("/assets/{}", SCRIPT.name)
}

/// Address of the icon.
pub(crate) fn icon() -> String {
    format!("/assets/{}", ICON.name)
}

/// `GET /assets/{name}`
pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let found = [&*STYLE, &*SCRIPT, &*ICON].into_iter().find(|asset| asset.name == name);
    let Some(asset) = found else { return StatusCode::NOT_FOUND.into_response() };
    let mut response = asset.bytes.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    let for_ever = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(CACHE_CONTROL, for_ever);
    response
}
