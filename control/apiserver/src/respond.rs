//! Answers as HTTP responses.

use axum::{body::Body, response::Response};
use control_wire::Status;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

/// A JSON document.
pub(crate) fn json(code: StatusCode, body: &Value) -> Response {
    bytes(code, "application/json", body.to_string())
}

/// A constant text.
pub(crate) fn text(code: StatusCode, body: &'static str) -> Response {
    bytes(code, "text/plain; charset=utf-8", body.to_owned())
}

/// A refusal.
pub(crate) fn status(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_json());
    if let Some(seconds) = status.retry_after_seconds() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A stream of JSON lines.
pub(crate) fn stream(body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Adds a `Warning` header for each text. kubectl prints them.
pub(crate) fn add_warnings(response: &mut Response, warnings: &[String]) {
    for warning in warnings {
        // Quoted string of RFC 9110: what cannot stand in a header is left out.
        let quoted: String = warning.chars().filter(|c| !c.is_control()).collect();
        let quoted = quoted.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Any body.
pub(crate) fn bytes(code: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
