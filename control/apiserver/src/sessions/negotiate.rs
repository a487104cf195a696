//! Which protocol a client and this server speak, from the headers of the request. Pure.

use control_streams::channels::Version;
use control_wire::Status;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// SPDY's name in `Upgrade`.
const SPDY: &str = "SPDY/3.1";
/// Where clients of SPDY offer versions of a session's protocol.
const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The one version of `exec` and `attach` over SPDY; every kubectl since 1.5 speaks it.
const SPDY_CHANNELS: &str = "v4.channel.k8s.io";
/// `port-forward` over SPDY.
const SPDY_FORWARD: &str = "portforward.k8s.io";
/// The same, inside a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Most names that a client may offer.
const MAX_OFFERS: usize = 32;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Channels in WebSocket messages.
    WebSocket {
        accept: String,
        version: &'static Version,
    },
    /// SPDY in WebSocket messages.
    Tunnel { accept: String },
    /// SPDY itself.
    Spdy { version: &'static str },
}

impl Protocol {
    /// For the record.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::WebSocket { version, .. } if version.name.is_empty() => "WebSocket",
            Self::WebSocket { version, .. } => version.name,
            Self::Tunnel { .. } => TUNNEL,
            Self::Spdy { .. } => SPDY,
        }
    }

    /// The headers that say so to the client.
    pub(super) fn add_headers(&self, headers: &mut HeaderMap) {
        let websocket = |headers: &mut HeaderMap, accept: &str, protocol: &'static str| {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            // Base64 of a hash.
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            if !protocol.is_empty() {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        };
        match self {
            Self::WebSocket { accept, version } => websocket(headers, accept, version.name),
            Self::Tunnel { accept } => websocket(headers, accept, TUNNEL),
            Self::Spdy { version } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
                headers.insert(STREAM_VERSION, HeaderValue::from_static(version));
            }
        }
    }
}

/// Agrees on a protocol, or says which there are.
pub(super) fn choose(headers: &HeaderMap, forward: bool) -> Result<Protocol, Status> {
    let upgrade = headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("websocket") {
        return websocket(headers, forward);
    }
    if !upgrade.eq_ignore_ascii_case(SPDY) {
        return Err(Status::bad_request(
            "Upgrade request required: WebSocket or SPDY/3.1, as kubectl does it",
        ));
    }
    let version = if forward { SPDY_FORWARD } else { SPDY_CHANNELS };
    let offered = offers(headers, &STREAM_VERSION)?;
    if offered.contains(&version) {
        return Ok(Protocol::Spdy { version });
    }
    Err(not_offered(&offered, &[version]))
}

fn websocket(headers: &HeaderMap, forward: bool) -> Result<Protocol, Status> {
    let is = |name, value: &str| {
        headers
            .get(name)
            .is_some_and(|header: &HeaderValue| header.as_bytes() == value.as_bytes())
    };
    if !is(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Status::bad_request("Sec-WebSocket-Version must be 13"));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
    refuse_foreign_page(headers)?;
    let accept = derive_accept_key(key.as_bytes());
    let offered = offers(headers, &header::SEC_WEBSOCKET_PROTOCOL)?;
    if forward {
        return match offered.contains(&TUNNEL) {
            true => Ok(Protocol::Tunnel { accept }),
            false => Err(not_offered(&offered, &[TUNNEL])),
        };
    }
    match Version::choose(&offered) {
        Some(version) => Ok(Protocol::WebSocket { accept, version }),
        None => {
            let served: Vec<_> = control_streams::channels::VERSIONS
                .iter()
                .map(|version| version.name)
                .filter(|name| !name.is_empty())
                .collect();
            Err(not_offered(&offered, &served))
        }
    }
}

/// A browser sends the user's certificate to whomever a page names, and WebSockets know no same-origin rule but this one.
/// Anybody's page on the user's own machine is `http://localhost`, so that is foreign too; what is no browser need not say
/// where it is from.
fn refuse_foreign_page(headers: &HeaderMap) -> Result<(), Status> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().unwrap_or("?"))
    };
    let Some(origin) = text(header::ORIGIN) else {
        return Ok(());
    };
    let own = text(header::HOST).is_some_and(|host| origin.strip_prefix("https://") == Some(host));
    if own {
        return Ok(());
    }
    Err(Status::forbidden_path(format!(
        "sessions are not opened for pages of another origin ({origin:?})"
    )))
}

/// Names in a header that may stand several times and holds lists.
fn offers<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Vec<&'a str>, Status> {
    let mut names = Vec::new();
    for value in headers.get_all(name) {
        let text = value
            .to_str()
            .map_err(|_not_text| Status::bad_request(format!("header {name} is not text")))?;
        names.extend(text.split(',').map(str::trim).filter(|name| !name.is_empty()));
    }
    match names.len() > MAX_OFFERS {
        true => Err(Status::bad_request(format!("header {name} offers too much"))),
        false => Ok(names),
    }
}

fn not_offered(offered: &[&str], served: &[&str]) -> Status {
    Status::bad_request(format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {served:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const WEBSOCKET: [(&str, &str); 3] = [
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with(more: &[(&'static str, &'static str)]) -> HeaderMap {
        headers(&[&WEBSOCKET[..], more].concat())
    }

    #[test]
    fn every_kubectl_finds_its_protocol() {
        let name = |headers: &HeaderMap, forward| choose(headers, forward).unwrap().name();
        let v5 = with(&[("sec-websocket-protocol", "v5.channel.k8s.io")]);
        assert_eq!(name(&v5, false), "v5.channel.k8s.io");
        let several = with(&[("sec-websocket-protocol", "channel.k8s.io, v4.channel.k8s.io")]);
        assert_eq!(name(&several, false), "v4.channel.k8s.io");
        assert_eq!(name(&with(&[]), false), "WebSocket");
        let tunnel = with(&[("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")]);
        assert_eq!(name(&tunnel, true), "SPDY/3.1+portforward.k8s.io");
        let spdy = headers(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "portforward.k8s.io"),
        ]);
        assert_eq!((name(&spdy, false), name(&spdy, true)), ("SPDY/3.1", "SPDY/3.1"));
    }

    #[test]
    fn the_answer_names_what_was_agreed_on() {
        let mut answer = HeaderMap::new();
        let agreed = choose(&with(&[("sec-websocket-protocol", "v4.channel.k8s.io")]), false).unwrap();
        agreed.add_headers(&mut answer);
        // The example of RFC 6455.
        assert_eq!(answer["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer["sec-websocket-protocol"], "v4.channel.k8s.io");
    }

    #[test]
    fn anything_else_is_refused() {
        for (headers, forward) in [
            (headers(&[]), false),
            (headers(&[("upgrade", "h2c")]), false),
            (headers(&[("upgrade", "SPDY/3.1")]), false),
            (
                headers(&[
                    ("upgrade", "SPDY/3.1"),
                    ("x-stream-protocol-version", "channel.k8s.io"),
                ]),
                false,
            ),
            (with(&[("sec-websocket-protocol", "v9.channel.k8s.io")]), false),
            (with(&[("sec-websocket-protocol", "v4.channel.k8s.io")]), true),
            (headers(&WEBSOCKET[..2]), false),
            (headers(&WEBSOCKET[..1]), false),
        ] {
            assert_eq!(choose(&headers, forward).unwrap_err().code(), 400, "{headers:?}");
        }
    }

    #[test]
    fn pages_of_other_origins_get_no_session() {
        for (origin, allowed) in [
            ("https://api.example:6443", true),
            ("http://localhost", false),
            ("https://evil.example", false),
            ("http://api.example:6443", false),
            ("null", false),
        ] {
            let headers = with(&[("host", "api.example:6443"), ("origin", origin)]);
            assert_eq!(choose(&headers, false).is_ok(), allowed, "{origin}");
        }
    }
}
