//! `grpc.health.v1.Health/Check` over HTTP/2 without TLS.

use std::{net::SocketAddr, path::Path, time::Duration};

use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use crate::{Outcome, USER_AGENT, http1::chain, socket};

/// Longest answer that is read; the message has one number.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// A flag for compression and four bytes of length stand before each message.
const PREFIX_BYTES: usize = 5;
/// gRPC's code for a method that the server does not have.
const UNIMPLEMENTED: &str = "12";

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(crate) async fn probe(address: SocketAddr, service: &str, netns: &Path, timeout: Duration) -> Outcome {
    let started = tokio::time::Instant::now();
    let seconds = timeout.as_secs();
    let stream = match tokio::time::timeout(timeout, socket::connect(netns, address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let reason = socket::reason(&error);
            let text =
                format!("error: failed to connect service \"{address}\": dial tcp {address}: {reason}");
            return Outcome::Failure(text);
        }
        Err(_elapsed) => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service \"{address}\" within {seconds}s: context deadline exceeded"
            ));
        }
    };
    let left = timeout.saturating_sub(started.elapsed());
    match tokio::time::timeout(left, check(address, service, stream)).await {
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(status)) => {
            let word = match status {
                0 => "UNKNOWN".to_owned(),
                2 => "NOT_SERVING".to_owned(),
                3 => "SERVICE_UNKNOWN".to_owned(),
                other => other.to_string(),
            };
            Outcome::Failure(format!("service unhealthy (responded with {word:?})"))
        }
        Ok(Err(reason)) => Outcome::Failure(format!("error: {reason}")),
        Err(_elapsed) => Outcome::Failure(format!("timeout: health rpc did not complete within {seconds}s")),
    }
}

/// The `status` that the server answers.
async fn check(address: SocketAddr, service: &str, stream: tokio::net::TcpStream) -> Result<i32, String> {
    let failed = |reason: &str| format!("health rpc probe failed: {reason}");
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&chain(&error)))?;
    tokio::spawn(async move { drop(connection.await) });
    let message = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut body = vec![0];
    let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&message.encode_to_vec());
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(&error.to_string()))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&chain(&error)))?;
    let (head, body) = answer.into_parts();
    // An error may come as headers alone.
    demand_ok(&head.headers, false)?;
    let answer = Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| failed(&error.to_string()))?;
    demand_ok(answer.trailers().unwrap_or(&HeaderMap::new()), true)?;
    let bytes = answer.to_bytes();
    let message = bytes.get(PREFIX_BYTES..).unwrap_or_default();
    match (bytes.first(), HealthCheckResponse::decode(message)) {
        (Some(0), Ok(response)) => Ok(response.status),
        _ => Err(failed("the answer is no message")),
    }
}

fn demand_ok(headers: &HeaderMap, required: bool) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let message = text("grpc-message").unwrap_or_default();
    match text("grpc-status") {
        Some("0") => Ok(()),
        None if !required => Ok(()),
        None => Err("health rpc probe failed: the answer has no status".to_owned()),
        Some(UNIMPLEMENTED) => Err(format!(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Some(code) => Err(format!("health rpc probe failed: code {code}: {message}")),
    }
}
