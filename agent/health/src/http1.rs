//! Requests over HTTP/1.1, plain or with TLS.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use url::{Position, Url};

use crate::{
    HttpGet, Outcome, USER_AGENT,
    outcome::{MAX_OUTPUT_BYTES, shortened},
    socket,
};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// Kubernetes' rule: 200 to 399 is success. Redirects to the same host are followed; one to another host is
/// not, and is a success worth a warning.
pub(crate) async fn probe(get: &HttpGet, netns: &Path, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, follow(get, netns)).await {
        Ok(outcome) => outcome.unwrap_or_else(|reason| failed(get, &reason)),
        Err(_elapsed) => failed(
            get,
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
        ),
    }
}

/// Whether anything answers.
pub(crate) async fn answered(get: &HttpGet, netns: &Path, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, send(get, netns)).await {
        Ok(answer) => answer.map(drop),
        Err(_elapsed) => Err(format!("no answer from {} within {timeout:?}", get.url())),
    }
}

fn failed(get: &HttpGet, reason: &str) -> Outcome {
    Outcome::Failure(format!("Get {:?}: {reason}", get.url()))
}

async fn follow(get: &HttpGet, netns: &Path) -> Result<Outcome, String> {
    let mut get = get.clone();
    for _hop in 0..=MAX_REDIRECTS {
        let answer = send(&get, netns).await?;
        let status = answer.status();
        let location = answer.headers().get(header::LOCATION);
        let location = location.filter(|_there| status.is_redirection());
        if let Some(location) = location.filter(|location| !location.is_empty()) {
            match redirected(&get, &String::from_utf8_lossy(location.as_bytes()))? {
                Some(next) => {
                    get = next;
                    continue;
                }
                None => {
                    let text = shortened(&body(answer).await);
                    return Ok(Outcome::Warning(format!(
                        "Probe terminated redirects, Response body: {text}"
                    )));
                }
            }
        }
        return Ok(if (200..400).contains(&status.as_u16()) {
            Outcome::Success
        } else {
            Outcome::Failure(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
        });
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

/// The request that `location` asks for, beside what was asked for before (RFC 9110, 10.2.2), if it stays on the host.
fn redirected(get: &HttpGet, location: &str) -> Result<Option<HttpGet>, String> {
    let url = Url::parse(&get.url()).and_then(|asked| asked.join(location));
    let url = url.map_err(|error| format!("failed to parse Location header {location:?}: {error}"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let mut headers = get.headers.iter();
    let named = headers.find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let own = named.map(|(_, value)| value.rsplit_once(':').map_or(value.as_str(), |(host, _)| host));
    let is_address = host
        .parse::<IpAddr>()
        .is_ok_and(|address| address == get.address.ip());
    if !is_address && !own.is_some_and(|own| own.eq_ignore_ascii_case(host)) {
        return Ok(None);
    }
    let (tls, usual_port) = match url.scheme() {
        "http" => (false, 80),
        "https" => (true, 443),
        other => return Err(format!("unsupported protocol scheme {other:?}")),
    };
    Ok(Some(HttpGet {
        address: SocketAddr::new(get.address.ip(), url.port().unwrap_or(usual_port)),
        tls,
        path: url[Position::BeforePath..Position::AfterQuery].to_owned(),
        headers: get.headers.clone(),
    }))
}

async fn send(get: &HttpGet, netns: &Path) -> Result<Response<Incoming>, String> {
    let dial = |error: &std::io::Error| format!("dial tcp {}: {}", get.address, socket::reason(error));
    let stream = socket::connect(netns, get.address)
        .await
        .map_err(|error| dial(&error))?;
    if !get.tls {
        return exchange(get, stream).await;
    }
    let name = ServerName::IpAddress(get.address.ip().into());
    let connector = TlsConnector::from(Arc::new(danger_any_certificate()?));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("tls: {error}"))?;
    exchange(get, stream).await
}

async fn exchange(
    get: &HttpGet,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| chain(&error))?;
    // Ends with the exchange: nothing else holds the sender.
    tokio::spawn(async move { drop(connection.await) });
    let request = request(get).map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(|error| chain(&error))
}

fn request(get: &HttpGet) -> http::Result<Request<Empty<Bytes>>> {
    let has = |name: &str| get.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    let mut request = Request::get(get.path.as_str());
    for (name, value) in &get.headers {
        // An empty value takes a default header away, as it does for the kubelet.
        if !(value.is_empty() && matches!(name.to_ascii_lowercase().as_str(), "accept" | "user-agent")) {
            request = request.header(name, value);
        }
    }
    if !has("host") {
        request = request.header(header::HOST, get.address.to_string());
    }
    if !has("user-agent") {
        request = request.header(header::USER_AGENT, USER_AGENT);
    }
    if !has("accept") {
        request = request.header(header::ACCEPT, "*/*");
    }
    request.header(header::CONNECTION, "close").body(Empty::new())
}

/// The beginning of an answer's body.
async fn body(answer: Response<Incoming>) -> Vec<u8> {
    let mut body = answer.into_body();
    let mut kept = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            kept.extend_from_slice(data);
        }
        if kept.len() >= MAX_OUTPUT_BYTES {
            break;
        }
    }
    kept
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string cannot fail.
        let _infallible = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Takes every certificate: a probe asks whether something answers, over a path that does not leave the pod,
/// and sends nothing that is secret. Kubernetes' rule for `scheme: HTTPS`.
fn danger_any_certificate() -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(DangerAnyCertificate(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let config = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(config.with_no_client_auth())
}

#[derive(Debug)]
struct DangerAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for DangerAnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_host() {
        let get = HttpGet {
            address: "10.0.0.1:80".parse().expect("an address"),
            tls: false,
            path: "/a/b".to_owned(),
            headers: vec![("Host".to_owned(), "own.example:80".to_owned())],
        };
        let to = |location: &str| redirected(&get, location).map(|next| next.map(|next| next.url()));
        let url = |text: &str| Ok::<_, String>(Some(text.to_owned()));
        assert_eq!(to("/x?y"), url("http://10.0.0.1:80/x?y"));
        assert_eq!(to("https://10.0.0.1/x"), url("https://10.0.0.1:443/x"));
        assert_eq!(to("http://OWN.example:81/"), url("http://10.0.0.1:81/"));
        assert_eq!(to("http://169.254.169.254/"), Ok(None));
        assert_eq!(to("//other.example/x"), Ok(None));
        assert!(to("http://[").is_err());
        assert!(to("ftp://10.0.0.1/x").is_err());
    }

    #[test]
    fn relative_redirects_begin_at_what_was_asked_for() {
        let get = HttpGet {
            address: "[2001:db8::1]:8080".parse().expect("an address"),
            tls: true,
            path: "/a/b?c=/d".to_owned(),
            headers: Vec::new(),
        };
        for (location, path) in [
            ("login", "/a/login"),
            ("login?x=1#y", "/a/login?x=1"),
            ("x/y", "/a/x/y"),
            ("../x", "/x"),
            ("./", "/a/"),
            ("?e", "/a/b?e"),
            ("/x", "/x"),
        ] {
            let next = redirected(&get, location).expect("a URL").expect("the same host");
            assert_eq!(
                next.url(),
                format!("https://[2001:db8::1]:8080{path}"),
                "{location}"
            );
        }
    }
}
