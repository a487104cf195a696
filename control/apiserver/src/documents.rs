//! Documents about the API itself: discovery, OpenAPI, version.

use axum::{body::Body, response::Response};
use control_wire::{
    Status, discovery,
    negotiate::{self, DiscoveryForm},
    openapi, version,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{respond, target::Target};

/// The document at `target`. `address` is where this server is reached.
pub(crate) fn document(target: &Target, headers: &HeaderMap, address: &str) -> Result<Response, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let found = |body: Value| Ok(respond::json(StatusCode::OK, &body));
    match target {
        Target::Healthz => Ok(respond::text(StatusCode::OK, "ok")),
        Target::Version => found(version::info()),
        Target::CoreVersions => match negotiate::discovery_form(accept)? {
            DiscoveryForm::Legacy => found(discovery::api_versions(address)),
            DiscoveryForm::Aggregated(version) => {
                let body = discovery::aggregated_core(version);
                Ok(typed(&body, discovery::aggregated_content_type(version)))
            }
        },
        Target::Groups => match negotiate::discovery_form(accept)? {
            DiscoveryForm::Legacy => found(discovery::api_group_list()),
            DiscoveryForm::Aggregated(version) => {
                let body = discovery::aggregated_groups(version);
                Ok(typed(&body, discovery::aggregated_content_type(version)))
            }
        },
        Target::Group(group) => found(discovery::api_group(group).ok_or_else(Status::no_route)?),
        Target::GroupVersion { group, version } => {
            found(discovery::api_resource_list(group, version).ok_or_else(Status::no_route)?)
        }
        Target::OpenApiV2 => openapi_v2(accept),
        Target::OpenApiIndex => found(openapi::index()),
        Target::OpenApiDocument(path) => openapi::by_path(path)
            .map(openapi_document)
            .ok_or_else(Status::no_route),
        Target::Livez | Target::Readyz | Target::Resource(_) => Err(Status::no_route()),
    }
}

/// A document without paths and schemas: the server validates, and says so through OpenAPI v3. kubectl reads
/// protobuf only, other clients JSON.
fn openapi_v2(accept: Option<&str>) -> Result<Response, Status> {
    const ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    // The name that clients ask for is no valid media type; Kubernetes answers with a dot.
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    const TITLE: &str = "Palisade";
    let version = version::git_version();
    if !accept.is_some_and(|accept| accept.contains(ACCEPTED)) {
        let info = json!({"title": TITLE, "version": version});
        return Ok(respond::json(
            StatusCode::OK,
            &json!({"swagger": "2.0", "info": info, "paths": {}}),
        ));
    }
    // openapi.v2.Document { swagger = 1, info = 2 { title = 1, version = 2 }, paths = 8 {} }
    let info = [field(1, TITLE.as_bytes()), field(2, version.as_bytes())].concat();
    let document = [field(1, b"2.0"), field(2, &info), field(8, b"")].concat();
    let mut response = Response::new(Body::from(document));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    Ok(response)
}

/// A length-delimited protobuf field. Numbers and lengths here are below 128, so each is one byte.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    debug_assert!(number < 16 && value.len() < 128, "needs a longer varint");
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[number << 3 | 2, length], value].concat()
}

/// Cacheable for good: the index names it with its hash.
fn openapi_document(document: &openapi::Document) -> Response {
    let mut response = respond::bytes(StatusCode::OK, "application/json", document.body.clone());
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(openapi::IMMUTABLE),
    );
    // Hex digits always fit in a header.
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", document.hash)) {
        headers.insert(header::ETAG, tag);
    }
    response
}

fn typed(body: &Value, content_type: &'static str) -> Response {
    let mut response = respond::json(StatusCode::OK, body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
