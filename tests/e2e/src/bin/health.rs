//! A server with gRPC's health service, for a container of a test: `health PORT DIRECTORY`. The file of a service's name
//! in the directory holds the number of its status; that of the server as a whole is `server`. A service without a file
//! is unknown.
//!
//! Messages are read and written by hand: the probe has the library's, and both would be wrong in the same way.

#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
    header::HeaderValue,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

const METHOD: &str = "/grpc.health.v1.Health/Check";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments
        .next()
        .context("no port")?
        .parse()
        .context("not a port")?;
    let directory: Arc<Path> = PathBuf::from(arguments.next().context("no directory")?).into();
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    executor.block_on(serve(port, directory))
}

async fn serve(port: u16, directory: Arc<Path>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (stream, _client) = listener.accept().await?;
        let directory = Arc::clone(&directory);
        let answer = service_fn(move |request| answer(request, Arc::clone(&directory)));
        // What a client does wrong is its own affair.
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer),
        );
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, directory: Arc<Path>) -> Result<Answer, hyper::Error> {
    if request.uri().path() != METHOD {
        return Ok(grpc("12", None));
    }
    let message = request.into_body().collect().await?.to_bytes();
    let Some(service) = service(&message) else {
        return Ok(grpc("3", None));
    };
    let name = if service.is_empty() { "server" } else { &service };
    let status = std::fs::read_to_string(directory.join(name)).ok();
    Ok(match status.and_then(|text| text.trim().parse().ok()) {
        Some(status) => grpc("0", Some(status)),
        None => grpc("5", None),
    })
}

/// Field 1 of the request: a byte that says so, one of length, text. A request for the server as a whole is empty.
fn service(message: &[u8]) -> Option<String> {
    match message.get(5..)? {
        [] => Some(String::new()),
        [0x0a, length, text @ ..] if usize::from(*length) == text.len() => {
            String::from_utf8(text.to_vec()).ok()
        }
        _ => None,
    }
}

/// An answer with its code behind the message, as gRPC has it: not compressed, two bytes long, field 1, the number.
fn grpc(code: &'static str, status: Option<u8>) -> Answer {
    let message = status.map_or(Vec::new(), |status| vec![0, 0, 0, 0, 2, 0x08, status]);
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )]);
    let body = Full::new(Bytes::from(message)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(BoxBody::new(body));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}
