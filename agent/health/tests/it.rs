//! Probes against real servers in a network namespace that only they and the probe share. Needs root.

#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_health::{Check, HttpGet, Outcome, ask, call};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sched::CloneFlags;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls};

const SECOND: Duration = Duration::from_secs(1);
/// For what is answered or refused, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace with loopback, and listeners in it.
struct Namespace {
    path: PathBuf,
    listeners: Vec<std::net::TcpListener>,
    _keep: std::sync::mpsc::Sender<()>,
}

impl Namespace {
    fn with_listeners(count: usize) -> Self {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (keep, ended) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
            // A child has the namespace of the thread that starts it.
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("ip runs").success());
            let path = format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            );
            let listen = |_| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
                listener.set_nonblocking(true).expect("a listener for tokio");
                listener
            };
            let listeners: Vec<_> = (0..count).map(listen).collect();
            ready
                .send((PathBuf::from(path), listeners))
                .expect("somebody waits");
            // The namespace lives as long as this thread.
            let _ended = ended.recv();
        });
        let (path, listeners) = is_ready.recv().expect("the namespace comes up");
        Self {
            path,
            listeners,
            _keep: keep,
        }
    }

    fn take(&mut self) -> (TcpListener, SocketAddr) {
        let listener = self.listeners.pop().expect("enough listeners");
        let address = listener.local_addr().expect("an address");
        (
            TcpListener::from_std(listener).expect("a listener for tokio"),
            address,
        )
    }
}

fn get(address: SocketAddr, path: &str) -> HttpGet {
    HttpGet {
        address,
        tls: false,
        path: path.to_owned(),
        headers: Vec::new(),
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, http::Error> {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let response = Response::builder();
    let response = match request.uri().path() {
        "/ok" => response.status(204),
        "/header" if header("x-own") == "yes" && header("host") == "own.example" => response,
        "/agent" if header("user-agent").starts_with("kube-probe/") => response,
        "/moved" => response.status(302).header("location", "/ok"),
        "/broken" => response.status(302).header("location", "/error"),
        "/deep/moved" => response.status(302).header("location", "../ok"),
        "/deep/broken" => response.status(302).header("location", "login"),
        "/away" => response.status(302).header("location", "http://192.0.2.1/x"),
        "/round" => response.status(302).header("location", "/round"),
        "/slow" => {
            tokio::time::sleep(60 * SECOND).await;
            response
        }
        _ => response.status(500),
    };
    response.body(Full::from("body"))
}

fn serve_http(listener: TcpListener, tls: Option<TlsAcceptor>) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                match tls {
                    None => drop(
                        builder
                            .serve_connection(TokioIo::new(stream), service_fn(answer))
                            .await,
                    ),
                    Some(tls) => {
                        let stream = tls.accept(stream).await.expect("a handshake");
                        drop(
                            builder
                                .serve_connection(TokioIo::new(stream), service_fn(answer))
                                .await,
                        );
                    }
                }
            });
        }
    });
}

fn self_signed() -> TlsAcceptor {
    let made =
        rcgen::generate_simple_self_signed(vec!["unrelated.example".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

fn failure(text: &str) -> Outcome {
    Outcome::Failure(text.to_owned())
}

#[tokio::test]
async fn requests_are_judged_like_kubernetes_does() {
    let mut namespace = Namespace::with_listeners(2);
    let (listener, address) = namespace.take();
    serve_http(listener, None);
    let netns = namespace.path.clone();
    let probe = async |get: HttpGet, timeout: Duration| ask(&Check::Http(get), &netns, timeout).await;
    for path in ["/ok", "/moved", "/deep/moved", "/agent"] {
        assert_eq!(
            probe(get(address, path), PATIENCE).await,
            Outcome::Success,
            "{path}"
        );
    }
    let mut own = get(address, "/header");
    own.headers = vec![
        ("X-Own".to_owned(), "yes".to_owned()),
        ("Host".to_owned(), "own.example".to_owned()),
    ];
    assert_eq!(probe(own, PATIENCE).await, Outcome::Success);
    for path in ["/error", "/broken", "/deep/broken"] {
        let failed = failure("HTTP probe failed with statuscode: 500");
        assert_eq!(probe(get(address, path), PATIENCE).await, failed, "{path}");
    }
    let away = Outcome::Warning("Probe terminated redirects, Response body: body".to_owned());
    assert_eq!(probe(get(address, "/away"), PATIENCE).await, away);
    let round = format!("Get \"http://{address}/round\": stopped after 10 redirects");
    assert_eq!(probe(get(address, "/round"), PATIENCE).await, failure(&round));
    let slow = probe(get(address, "/slow"), SECOND).await;
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(slow, failure(&format!("Get \"http://{address}/slow\": {late}")));
    let closed = SocketAddr::new(address.ip(), 1);
    let refused = format!("Get \"http://{closed}/ok\": dial tcp {closed}: connect: connection refused");
    assert_eq!(probe(get(closed, "/ok"), PATIENCE).await, failure(&refused));
    assert_eq!(
        call(&get(address, "/error"), &netns, PATIENCE).await,
        Ok(()),
        "hooks take any answer"
    );
    assert!(call(&get(closed, "/"), &netns, PATIENCE).await.is_err());

    let (listener, address) = namespace.take();
    serve_http(listener, Some(self_signed()));
    let mut secure = get(address, "/ok");
    secure.tls = true;
    assert_eq!(probe(secure, PATIENCE).await, Outcome::Success);
    assert!(matches!(
        probe(get(address, "/ok"), PATIENCE).await,
        Outcome::Failure(_)
    ));
}

#[tokio::test]
async fn sockets_are_the_pods_and_not_the_nodes() {
    let mut namespace = Namespace::with_listeners(1);
    let (_listener, inside) = namespace.take();
    // A server of the node: the same loopback address means another place.
    let node = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let outside = node.local_addr().expect("an address");
    let netns = namespace.path.clone();
    let probe = async |address| ask(&Check::Tcp(address), &netns, PATIENCE).await;
    assert_eq!(probe(inside).await, Outcome::Success);
    if outside.port() != inside.port() {
        let refused = format!("dial tcp {outside}: connect: connection refused");
        assert_eq!(probe(outside).await, failure(&refused));
    }
    assert!(
        TcpStream::connect(inside).await.is_err(),
        "this thread stays where it was"
    );
    let gone = ask(&Check::Tcp(inside), Path::new("/proc/1/ns/none"), PATIENCE).await;
    assert!(matches!(gone, Outcome::Failure(_)), "{gone:?}");

    let began = Instant::now();
    for _round in 0..100 {
        assert_eq!(probe(inside).await, Outcome::Success);
    }
    println!("a probe by TCP takes {:?}", began.elapsed() / 100);
}

/// A health server: `good` serves, `bad` does not, everything else is unknown.
async fn health(request: Request<Incoming>) -> Result<Response<Reply>, http::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("a message").to_bytes();
    let text = String::from_utf8_lossy(body.get(5..).unwrap_or_default()).into_owned();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let status = match text.get(2..).unwrap_or_default() {
        _ if path != "/grpc.health.v1.Health/Check" => 0,
        "" | "good" => 1,
        "bad" => 2,
        "slow" => {
            tokio::time::sleep(60 * SECOND).await;
            1
        }
        _ => {
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            trailers.insert("grpc-message", HeaderValue::from_static("unknown service"));
            0
        }
    };
    let message = Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
    let frames: Vec<Result<Frame<Bytes>, hyper::Error>> = vec![Ok(message), Ok(Frame::trailers(trailers))];
    Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(tokio_stream::iter(frames)))
}

type Reply = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, hyper::Error>>>>;

#[tokio::test]
async fn health_services_are_asked_over_grpc() {
    let mut namespace = Namespace::with_listeners(1);
    let (listener, address) = namespace.take();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                drop(
                    builder
                        .serve_connection(TokioIo::new(stream), service_fn(health))
                        .await,
                );
            });
        }
    });
    let netns = namespace.path.clone();
    let probe = async |service: &str, address: SocketAddr, timeout: Duration| {
        let check = Check::Grpc {
            address,
            service: service.to_owned(),
        };
        ask(&check, &netns, timeout).await
    };
    assert_eq!(probe("", address, PATIENCE).await, Outcome::Success);
    assert_eq!(probe("good", address, PATIENCE).await, Outcome::Success);
    let bad = failure("service unhealthy (responded with \"NOT_SERVING\")");
    assert_eq!(probe("bad", address, PATIENCE).await, bad);
    let unknown = failure("error: health rpc probe failed: code 5: unknown service");
    assert_eq!(probe("other", address, PATIENCE).await, unknown);
    let slow = failure("timeout: health rpc did not complete within 1s");
    assert_eq!(probe("slow", address, SECOND).await, slow);
    let closed = SocketAddr::new(address.ip(), 1);
    let refused = format!(
        "error: failed to connect service \"{closed}\": dial tcp {closed}: connect: connection refused"
    );
    assert_eq!(probe("", closed, PATIENCE).await, failure(&refused));
}
