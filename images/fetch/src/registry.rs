//! The pull half of the OCI distribution API: manifests and blobs.
//!
//! TLS everywhere but for registries on this machine's loopback and hosts that the operator configured with
//! `http://`. Every body is read up to a limit; redirects never leave TLS; credentials go over TLS or loopback only.
//! Written here rather than taken from a client crate because those read manifests and tokens without a limit.
//!
//! An image is asked for at each of its places in turn (see [`crate::hosts`]), at each with all credentials that
//! match; of several failures that of the last place, the registry itself, is told. A blob that breaks off goes on where it stopped, as long as the server says that it still is the same;
//! whatever came of that is judged by the digest of the whole.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use api::{Digest, ImageRef};
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};

use crate::{
    FetchError, Grant, Keyring,
    auth::{self, Authorization, Challenge},
    blobs::Incoming,
    credentials::Entry,
    hosts::{Hosts, Place},
    manifest, transport,
};

/// Attempts in a row that bring nothing new before a place is given up.
const MAX_ATTEMPTS: u32 = 4;
/// Delay after the first attempt that failed; it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// A server that asks for a longer wait is given up: whoever wants the image asks again later.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// What a server says a manifest is.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// Authorizations kept; past it all are dropped and asked for again.
const MAX_AUTHORIZATIONS: usize = 256;

/// Client for all registries.
#[derive(Debug)]
pub(crate) struct Registry {
    tls: Client,
    plain: Client,
    /// For hosts with authorities of their own, by the files that hold them.
    own: BTreeMap<Vec<PathBuf>, Client>,
    hosts: Hosts,
    authorizations: Mutex<HashMap<(String, Option<Digest>), Authorization>>,
}

/// What is asked of one place.
struct Question<'a> {
    place: &'a Place,
    image: &'a ImageRef,
    method: Method,
    /// Behind the repository, such as `manifests/1`.
    path: &'a str,
    headers: HeaderMap,
}

impl Registry {
    /// Builds the HTTP clients. The machine's trust store and all files with authorities are read here, once, so
    /// that they need not be readable later; `ca_files` are trusted besides the machine's.
    pub(crate) fn new(ca_files: &[PathBuf], hosts: Hosts) -> Result<Self, FetchError> {
        let mut own = BTreeMap::new();
        for files in hosts.authorities() {
            if !own.contains_key(files) {
                own.insert(files.to_vec(), transport::tls(transport::only(files)?)?);
            }
        }
        Ok(Self {
            tls: transport::tls(transport::with_machines(ca_files)?)?,
            plain: transport::plain()?,
            own,
            hosts,
            authorizations: Mutex::default(),
        })
    }

    /// The manifest or index under a tag, not yet verified, and who may have it.
    pub(crate) async fn tagged(
        &self,
        image: &ImageRef,
        tag: &str,
        keys: &Keyring,
        limit: u64,
    ) -> Result<(Vec<u8>, Grant), FetchError> {
        let what = format!("manifest {tag} of {}", image.name());
        let path = format!("manifests/{tag}");
        let mut last = None;
        for place in self
            .hosts
            .places(image)
            .into_iter()
            .filter(|place| place.resolves)
        {
            match self.document(&place, image, &path, keys, (limit, &what)).await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(passed_over(&place, error)),
            }
        }
        Err(last.unwrap_or_else(|| nowhere(image)))
    }

    /// The manifest or index of a digest, verified, and who may have it.
    pub(crate) async fn manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
        keys: &Keyring,
        limit: u64,
    ) -> Result<(Vec<u8>, Grant), FetchError> {
        let what = format!("manifest {digest} of {}", image.name());
        let path = format!("manifests/{digest}");
        let mut last = None;
        for place in self.hosts.places(image) {
            let error = match self.document(&place, image, &path, keys, (limit, &what)).await {
                Ok((bytes, grant)) => match Digest::of(&bytes) {
                    actual if actual == *digest => return Ok((bytes, grant)),
                    actual => FetchError::DigestMismatch {
                        what: format!("manifest {digest}"),
                        expected: *digest,
                        actual,
                    },
                },
                Err(error) => error,
            };
            last = Some(passed_over(&place, error));
        }
        Err(last.unwrap_or_else(|| nowhere(image)))
    }

    /// Which manifest the registry has under a tag or digest, as it says without sending it, and who may have it: what it sends
    /// may be counted, as by Docker Hub. That is no proof of having it. `None` where it has to be asked for the manifest itself.
    pub(crate) async fn head(
        &self,
        image: &ImageRef,
        reference: &str,
        keys: &Keyring,
    ) -> Option<(Digest, Grant)> {
        let is_tag = image.tag.as_deref() == Some(reference);
        let path = format!("manifests/{reference}");
        let places = self.hosts.places(image).into_iter();
        for place in places.filter(|place| place.resolves || !is_tag) {
            let question = Question {
                place: &place,
                image,
                method: Method::HEAD,
                path: &path,
                headers: accepting(),
            };
            let (response, grant) = match self.send(&question, keys).await {
                Ok(answer) => answer,
                // The next one is asked, as it would be for the manifest.
                Err(FetchError::NotFound { .. } | FetchError::Unauthorized { .. }) => continue,
                Err(_) => return None,
            };
            let said = response.headers().get(CONTENT_DIGEST)?.to_str().ok()?;
            return Some((said.parse().ok()?, grant));
        }
        None
    }

    /// Brings a blob into `incoming`, whole and verified; returns who may have it.
    pub(crate) async fn blob(
        &self,
        image: &ImageRef,
        digest: &Digest,
        keys: &Keyring,
        incoming: &mut Incoming,
    ) -> Result<Grant, FetchError> {
        let mut last = None;
        for place in self.hosts.places(image) {
            match self.blob_of(&place, image, digest, keys, incoming).await {
                Ok(grant) => return Ok(grant),
                Err(error) => last = Some(passed_over(&place, error)),
            }
        }
        Err(last.unwrap_or_else(|| nowhere(image)))
    }

    async fn document(
        &self,
        place: &Place,
        image: &ImageRef,
        path: &str,
        keys: &Keyring,
        (limit, what): (u64, &str),
    ) -> Result<(Vec<u8>, Grant), FetchError> {
        let mut attempt = 1;
        loop {
            let headers = accepting();
            let question = Question {
                place,
                image,
                method: Method::GET,
                path,
                headers,
            };
            let answer = match self.send(&question, keys).await {
                Ok((response, grant)) => transport::read_bounded(response, limit, what)
                    .await
                    .map(|bytes| (bytes, grant)),
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.is_passing() && attempt < MAX_ATTEMPTS => pause(attempt, error).await?,
                other => return other,
            }
            attempt += 1;
        }
    }

    async fn blob_of(
        &self,
        place: &Place,
        image: &ImageRef,
        digest: &Digest,
        keys: &Keyring,
        incoming: &mut Incoming,
    ) -> Result<Grant, FetchError> {
        let (mut in_vain, mut anew) = (0, false);
        loop {
            let before = incoming.written();
            let streamed = self.stream(place, image, digest, keys, incoming).await;
            let error = match streamed.and_then(|grant| incoming.verify().map(|()| grant)) {
                Ok(grant) => return Ok(grant),
                Err(error) => error,
            };
            let ended_early =
                matches!(&error, FetchError::SizeMismatch { expected, actual, .. } if actual < expected);
            if !ended_early && error.is_about_content() {
                // What was put together from parts may be of two things: once more, from the beginning.
                let again = incoming.was_resumed() && !std::mem::replace(&mut anew, true);
                incoming.restart()?;
                match again {
                    true => continue,
                    false => return Err(error),
                }
            }
            if !ended_early && !error.is_passing() {
                return Err(error);
            }
            in_vain = if incoming.written() > before {
                1
            } else {
                in_vain + 1
            };
            if in_vain >= MAX_ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%digest, written = incoming.written(), %error, "download broke off, going on");
            pause(in_vain, error).await?;
        }
    }

    /// Streams what is still missing of a blob, or all of it if the server does not go on where we stopped.
    async fn stream(
        &self,
        place: &Place,
        image: &ImageRef,
        digest: &Digest,
        keys: &Keyring,
        incoming: &mut Incoming,
    ) -> Result<Grant, FetchError> {
        let offset = incoming.written();
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (header::RANGE, range)));
            // Another representation of the blob must not be appended to this one.
            let tag = incoming
                .tag_of(&place.base)
                .and_then(|tag| HeaderValue::from_str(tag).ok());
            headers.extend(tag.map(|tag| (header::IF_RANGE, tag)));
        }
        let question = Question {
            place,
            image,
            method: Method::GET,
            path: &format!("blobs/{digest}"),
            headers,
        };
        let (mut response, grant) = self.send(&question, keys).await?;
        let url = transport::shown(response.url());
        match response.status() {
            StatusCode::PARTIAL_CONTENT if offset > 0 && continues(&response, offset) => incoming.resume(),
            // The range was refused, or is another one than was asked for.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                incoming.restart()?;
                return Err(FetchError::Range { url });
            }
            _ if offset > 0 => incoming.restart()?,
            _ => {}
        }
        let tag = response
            .headers()
            .get(header::ETAG)
            .and_then(|tag| tag.to_str().ok());
        // A weak one does not promise the same bytes.
        incoming.set_tag(&place.base, tag.filter(|tag| tag.starts_with('"')));
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| transport::http(&url, source))?
        {
            incoming.write(&chunk)?;
        }
        Ok(grant)
    }

    /// Asks with each of the credentials that match, or with none if none do.
    async fn send(&self, question: &Question<'_>, keys: &Keyring) -> Result<(Response, Grant), FetchError> {
        let Question { place, image, .. } = question;
        let entries = match !place.is_plain() || auth::is_loopback(&place.base) {
            true => keys.matching(&format!("{}/{}", place.account, image.repository)),
            false => Vec::new(),
        };
        if entries.is_empty() {
            return self.send_as(question, None).await;
        }
        let mut last = None;
        for entry in &entries {
            match self.send_as(question, Some(entry)).await {
                // Registries hide what one may not see.
                Err(error @ (FetchError::Unauthorized { .. } | FetchError::NotFound { .. })) => {
                    last = Some(error);
                }
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| nowhere(image)))
    }

    async fn send_as(
        &self,
        question: &Question<'_>,
        who: Option<&Entry>,
    ) -> Result<(Response, Grant), FetchError> {
        let Question { place, image, .. } = question;
        let key = (
            format!("{}/{}", place.base, image.repository),
            who.map(|entry| entry.id()),
        );
        let known = self.known(&key);
        let response = self.ask(question, known.as_ref(), who).await?;
        let with_secret = |used: Option<&Authorization>| match (used, who) {
            (Some(_), Some(entry)) => entry.grant(),
            _ => Grant::Anyone,
        };
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok((accepted(response, question, who)?, with_secret(known.as_ref())));
        }
        let authorization = self.authorize(question, &response, who).await?;
        let response = self.ask(question, Some(&authorization), who).await?;
        let grant = with_secret(Some(&authorization));
        let response = accepted(response, question, who)?;
        let mut all = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_AUTHORIZATIONS {
            all.clear();
        }
        all.insert(key, authorization);
        Ok((response, grant))
    }

    fn known(&self, key: &(String, Option<Digest>)) -> Option<Authorization> {
        let all = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).cloned()
    }

    async fn ask(
        &self,
        question: &Question<'_>,
        authorization: Option<&Authorization>,
        who: Option<&Entry>,
    ) -> Result<Response, FetchError> {
        let Question {
            place,
            image,
            method,
            path,
            ..
        } = question;
        let mut url = format!("{}/{}/{path}", place.base, image.repository);
        if let Some(registry) = &place.mirrors {
            // What mirrors of several registries choose by.
            url = format!("{url}?ns={registry}");
        }
        let request = self
            .client(place)
            .request(method.clone(), &url)
            .headers(question.headers.clone());
        let request = match (authorization, who) {
            (Some(Authorization::Bearer(token)), _) => request.bearer_auth(token.as_str()),
            (Some(Authorization::Basic), Some(entry)) => {
                request.basic_auth(entry.username(), Some(entry.password()))
            }
            _ => request,
        };
        request
            .send()
            .await
            .map_err(|source| transport::http(&url, source))
    }

    fn client(&self, place: &Place) -> &Client {
        match (place.is_plain(), self.own.get(&place.ca)) {
            (true, _) => &self.plain,
            (false, Some(own)) => own,
            (false, None) => &self.tls,
        }
    }

    /// Does what a refusal asks for.
    async fn authorize(
        &self,
        question: &Question<'_>,
        refused: &Response,
        who: Option<&Entry>,
    ) -> Result<Authorization, FetchError> {
        let Question { place, image, .. } = question;
        let problem = |problem| FetchError::Challenge {
            registry: image.registry.clone(),
            problem,
        };
        let challenge = auth::challenge(refused.headers()).map_err(problem)?;
        let parameters = match (challenge, who) {
            (Some(Challenge::Bearer(parameters)), _) => parameters,
            (Some(Challenge::Basic), Some(_)) => return Ok(Authorization::Basic),
            _ => return Err(unauthorized(question, who)),
        };
        let url = auth::token_url(&parameters, &place.repository(&image.repository)).map_err(problem)?;
        let same_host = Url::parse(&place.base).is_ok_and(|base| base.host_str() == url.host_str());
        let client = match url.scheme() {
            // The authorities of a host are trusted for that host only.
            "https" if same_host => self.client(place),
            "https" => &self.tls,
            "http" if auth::is_loopback(&place.base) && auth::is_loopback(url.as_str()) => &self.plain,
            _ => return Err(problem("its realm is not https")),
        };
        let address = transport::shown(&url);
        let mut request = client.get(url);
        if let Some(entry) = who {
            request = request.basic_auth(entry.username(), Some(entry.password()));
        }
        let response = request
            .send()
            .await
            .map_err(|source| transport::http(&address, source))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(unauthorized(question, who)),
            status => {
                return Err(FetchError::Status {
                    url: address,
                    status: status.as_u16(),
                    retry_after: retry_after(response.headers()),
                });
            }
        }
        let what = format!("token answer of {}", image.registry);
        let body = transport::read_bounded(response, auth::MAX_TOKEN_BYTES, &what).await?;
        auth::token(&body).ok_or_else(|| problem("the answer has no token"))
    }
}

/// Waits before the next attempt, as long as the server asked for; gives `error` back if that is too long.
async fn pause(attempt: u32, error: FetchError) -> Result<(), FetchError> {
    let own = FIRST_DELAY.saturating_mul(1 << attempt.saturating_sub(1).min(8));
    let wanted = match &error {
        FetchError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
        _ => Duration::ZERO,
    };
    if wanted > MAX_DELAY {
        return Err(error);
    }
    tokio::time::sleep(own.max(wanted)).await;
    Ok(())
}

/// The seconds of `Retry-After`. A date is passed over, and so is what is none: some send the time of day in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let wait = Duration::from_secs(text.trim().parse().ok()?);
    (wait <= DAY).then_some(wait)
}

fn accepting() -> HeaderMap {
    HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(manifest::ACCEPT))])
}

/// Whether an answer begins where we stopped.
fn continues(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

fn passed_over(place: &Place, error: FetchError) -> FetchError {
    if place.mirrors.is_some() {
        tracing::info!(mirror = place.base, %error, "a mirror did not have it");
    }
    error
}

/// No place may say what the tag means, which takes a configuration.
fn nowhere(image: &ImageRef) -> FetchError {
    FetchError::NoPlace {
        registry: image.registry.clone(),
    }
}

fn unauthorized(question: &Question<'_>, who: Option<&Entry>) -> FetchError {
    FetchError::Unauthorized {
        registry: question.place.host.clone(),
        repository: question.image.repository.clone(),
        access: match who {
            Some(_) => "with the given credentials",
            None => "without credentials",
        },
    }
}

fn accepted(
    response: Response,
    question: &Question<'_>,
    who: Option<&Entry>,
) -> Result<Response, FetchError> {
    let ranged = question.headers.contains_key(header::RANGE);
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if ranged => Ok(response),
        StatusCode::NOT_FOUND => Err(FetchError::NotFound {
            what: question.path.to_owned(),
            place: question.image.name(),
        }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(unauthorized(question, who)),
        status => Err(FetchError::Status {
            url: transport::shown(response.url()),
            status: status.as_u16(),
            retry_after: retry_after(response.headers()),
        }),
    }
}
