//! What registries ask for before they answer, and what is said then. Pure.

use std::{collections::HashMap, net::IpAddr};

use reqwest::{
    Url,
    header::{HeaderMap, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use zeroize::Zeroizing;

pub(crate) const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// How a request is authorized.
#[derive(Clone)]
pub(crate) enum Authorization {
    /// By a token.
    Bearer(Zeroizing<String>),
    /// By user and password.
    Basic,
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization")
    }
}

/// What a refusal asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token, with the parameters that say from where.
    Bearer(HashMap<String, String>),
    /// User and password.
    Basic,
}

/// The challenge that is followed: a token if that is possible. `None` if it is of another kind.
pub(crate) fn challenge(headers: &HeaderMap) -> Result<Option<Challenge>, &'static str> {
    let mut found = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let value = value.to_str().map_err(|_text| "it is not text")?;
        if let Some(parameters) = bearer_parameters(value) {
            return Ok(Some(Challenge::Bearer(parameters)));
        }
        let scheme = value.split(' ').next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    Ok(found)
}

/// Where a token is asked for, and for what: what the challenge says, or else to pull from `repository`. A host knows best what
/// it calls the repository; containerd, too, asks for the challenge's scopes.
pub(crate) fn token_url(parameters: &HashMap<String, String>, repository: &str) -> Result<Url, &'static str> {
    let realm = parameters.get("realm").ok_or("it has no realm")?;
    let mut url = Url::parse(realm).map_err(|_text| "its realm is not a URL")?;
    let mut query = url.query_pairs_mut();
    if let Some(service) = parameters.get("service") {
        query.append_pair("service", service);
    }
    let scopes = parameters.get("scope").map_or("", |scopes| scopes.trim());
    if scopes.is_empty() {
        query.append_pair("scope", &format!("repository:{repository}:pull"));
    }
    for scope in scopes.split_whitespace() {
        query.append_pair("scope", scope);
    }
    drop(query);
    Ok(url)
}

/// The token of an answer.
pub(crate) fn token(body: &[u8]) -> Option<Authorization> {
    // The parser's own text may quote the token.
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    Some(Authorization::Bearer(token))
}

/// Whether a URL leads to this machine's loopback.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    })
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

/// Parameters of a `Bearer name="value",...` challenge (RFC 9110, 11.2); `None` for another scheme.
fn bearer_parameters(challenge: &str) -> Option<HashMap<String, String>> {
    let (scheme, mut rest) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = HashMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => (
                after.split(',').next().unwrap_or_default(),
                after.find(',').map_or("", |at| &after[at..]),
            ),
        };
        parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        rest = after.trim_start().trim_start_matches(',');
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_bearer_challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        let parameters = bearer_parameters(text).unwrap();
        assert_eq!(parameters["realm"], "https://auth.example/token");
        assert_eq!(parameters["scope"], "repository:a/b:pull,push");
        assert_eq!(
            bearer_parameters("bearer realm=x, service=y").unwrap()["service"],
            "y"
        );
        assert_eq!(bearer_parameters("Basic realm=\"x\""), None);
        assert_eq!(bearer_parameters("Bearer realm=\"open"), None);
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(challenge(&headers), Ok(None));
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        assert_eq!(challenge(&headers), Ok(Some(Challenge::Basic)));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"https://a/t\"".parse().unwrap());
        let Ok(Some(Challenge::Bearer(parameters))) = challenge(&headers) else {
            panic!("a token was not preferred");
        };
        let url = token_url(&parameters, "team/app").unwrap();
        assert_eq!(url.as_str(), "https://a/t?scope=repository%3Ateam%2Fapp%3Apull");
        let scoped = |scope: &str| {
            let text = format!("Bearer realm=\"https://a/t\",scope=\"{scope}\"");
            token_url(&bearer_parameters(&text).unwrap(), "team/app").unwrap()
        };
        assert_eq!(
            scoped("repository:proxy/team/app:pull repository:b:pull").as_str(),
            "https://a/t?scope=repository%3Aproxy%2Fteam%2Fapp%3Apull&scope=repository%3Ab%3Apull"
        );
        assert_eq!(scoped(""), url);
        assert!(token(b"{\"token\": 1}").is_none() && token(b"{\"access_token\": \"t\"}").is_some());
    }

    #[test]
    fn loopback_is_by_address() {
        assert!(
            is_loopback("http://127.0.0.1:5000/v2")
                && is_loopback("http://[::1]/")
                && is_loopback("http://localhost")
        );
        assert!(!is_loopback("http://127.0.0.1.example/") && !is_loopback("127.0.0.1"));
    }
}
