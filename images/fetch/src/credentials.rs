//! Credentials for registries, as Kubernetes keeps them in secrets, and which of them an image is asked for with.
//!
//! The rules are the kubelet's: an entry names a host, or a host and the beginning of a path; each part of the host
//! may have wildcards; the longest entries come first; all that match are tried. What an entry holds is shown to its
//! registry and to nobody else: no error, no log line and no `Debug` has it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use api::{
    Digest, ImageRef,
    pull_secret::{PullSecret, SecretForm},
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Key under which Docker keeps the credentials of its own registry.
const DOCKER_HUB_KEY: &str = "index.docker.io";
/// Entries of one secret; more are a mistake.
const MAX_ENTRIES: usize = 256;

/// As the kubelet decodes: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Credentials that a pull may use. Cheap to clone; empty means anonymous.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// The most specific first.
    entries: Arc<Vec<Entry>>,
}

/// Why a secret holds no credentials. Says nothing of what it holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// It is no JSON of the right form.
    #[error("it is not the JSON of a Docker configuration (line {line}, column {column})")]
    Json {
        /// Where reading stopped.
        line: usize,
        /// Where reading stopped.
        column: usize,
    },
    /// An entry has no user and password that could be read.
    #[error("entry {entry} must have `auth`, the Base64 of USER:PASSWORD, or `username` and `password`")]
    Entry {
        /// Its number, counted from one in the order of their keys.
        entry: usize,
    },
    /// There are more entries than any secret needs.
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// Who lets an image be pulled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Grant {
    /// The registry gives it to everybody who reaches it.
    Anyone,
    /// It was given to whoever has the secret of this identity.
    Secret(String),
}

/// Shared, so that a keyring is cheap to clone.
pub(crate) type Entry = Arc<Secret>;

/// User and password for the registries and repositories that a pattern names.
pub(crate) struct Secret {
    /// Host with wildcards, and a path that images must begin with; `docker.io` for Docker's own.
    pattern: String,
    username: Zeroizing<String>,
    password: Zeroizing<String>,
    /// Identity of the secret.
    origin: String,
    /// Tells credentials apart in memory.
    id: Digest,
}

impl Keyring {
    /// No credentials.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds what a secret holds. Its origin is remembered with what was pulled by it.
    pub fn add(&mut self, secret: &PullSecret<'_>) -> Result<(), KeyringError> {
        let entries = parse(secret.form, secret.content)?;
        let all = Arc::make_mut(&mut self.entries);
        for (index, (pattern, entry)) in entries.into_iter().enumerate() {
            if entry.is_empty() {
                continue;
            }
            let Some((username, password)) = entry.user_and_password() else {
                return Err(KeyringError::Entry { entry: index + 1 });
            };
            let both = Zeroizing::new([username.as_bytes(), b"\0", password.as_bytes()].concat());
            all.push(Arc::new(Secret {
                pattern: normalized(&pattern),
                id: Digest::of(&both),
                username,
                password,
                origin: secret.origin.clone(),
            }));
        }
        // As the kubelet's index: in reverse, so that what is longer comes before what it begins with.
        all.sort_by(|a, b| b.pattern.cmp(&a.pattern));
        Ok(())
    }

    /// What is tried for a repository, `HOST/PATH`, in turn.
    pub(crate) fn matching(&self, repository: &str) -> Vec<Entry> {
        let fitting = |entry: &&Entry| matches(&entry.pattern, repository);
        let found: Vec<Entry> = self.entries.iter().filter(fitting).cloned().collect();
        let hub = ["docker.io/", "registry-1.docker.io/"];
        if found.is_empty() && hub.iter().any(|host| repository.starts_with(host)) {
            let of_hub = self
                .entries
                .iter()
                .filter(|entry| entry.pattern == DOCKER_HUB_KEY);
            return of_hub.cloned().collect();
        }
        found
    }

    /// Whether `grants` of an image let these keys have it.
    pub fn satisfy<'a>(&self, image: &ImageRef, grants: impl IntoIterator<Item = &'a Grant>) -> bool {
        let own = self.origins(&image.name());
        grants.into_iter().any(|grant| match grant {
            Grant::Anyone => true,
            Grant::Secret(origin) => own.contains(origin),
        })
    }

    /// Identities of the secrets that might be shown for a repository.
    pub fn origins(&self, repository: &str) -> Vec<String> {
        let matching = self.matching(repository).into_iter();
        matching.map(|entry| entry.origin.clone()).collect()
    }
}

impl Secret {
    /// Tells credentials apart in memory.
    pub(crate) fn id(&self) -> Digest {
        self.id
    }

    pub(crate) fn username(&self) -> &str {
        &self.username
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    /// What a pull with it proves.
    pub(crate) fn grant(&self) -> Grant {
        Grant::Secret(self.origin.clone())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Secret");
        shown.field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, RawEntry>,
}

/// Other fields (`email`, `identitytoken`) mean nothing here, as for the kubelet.
#[derive(Deserialize)]
struct RawEntry {
    username: Option<Zeroizing<String>>,
    password: Option<Zeroizing<String>>,
    auth: Option<Zeroizing<String>>,
}

impl RawEntry {
    /// Docker leaves such an entry for each registry whose password is kept by a credential helper of the machine.
    fn is_empty(&self) -> bool {
        let is_empty = |field: &Option<Zeroizing<String>>| field.as_ref().is_none_or(|text| text.is_empty());
        [&self.username, &self.password, &self.auth]
            .into_iter()
            .all(is_empty)
    }

    fn user_and_password(self) -> Option<(Zeroizing<String>, Zeroizing<String>)> {
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else {
            return Some((self.username?, self.password?));
        };
        // Go's decoder passes over ends of lines.
        let mut packed = Zeroizing::new(Vec::with_capacity(auth.len()));
        packed.extend(auth.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        let decoded = Zeroizing::new(BASE64.decode(&*packed).ok()?);
        let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some((
            Zeroizing::new(username.to_owned()),
            Zeroizing::new(password.to_owned()),
        ))
    }
}

fn parse(form: SecretForm, content: &[u8]) -> Result<BTreeMap<String, RawEntry>, KeyringError> {
    let parsed = match form {
        SecretForm::ConfigJson => serde_json::from_slice(content).map(|config: ConfigJson| config.auths),
        SecretForm::Cfg => serde_json::from_slice(content),
    };
    // The parser's own text may quote the password.
    let entries = parsed.map_err(|error| KeyringError::Json {
        line: error.line(),
        column: error.column(),
    })?;
    match entries.len() > MAX_ENTRIES {
        true => Err(KeyringError::TooMany),
        false => Ok(entries),
    }
}

/// The key of a Docker configuration without scheme, and without the `/v1/` or `/v2/` of an API's address.
fn normalized(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let path = match path.strip_prefix("/v1/").or(path.strip_prefix("/v2/")) {
        Some(rest) => format!("/{rest}"),
        None => path.to_owned(),
    };
    match path.as_str() {
        "/" => host.to_owned(),
        path => format!("{host}{path}"),
    }
}

/// Whether `pattern` names the repository `HOST/PATH`: the same port, as many parts of the host and each of them
/// alike, and the beginning of the path.
fn matches(pattern: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        (host.to_owned(), path.to_owned())
    };
    let ((pattern_host, pattern_path), (host, path)) = (split(pattern), split(repository));
    if !path.starts_with(&pattern_path) {
        return false;
    }
    // The address of an IPv6 registry has colons of its own, and no parts.
    if pattern_host.starts_with('[') || host.starts_with('[') {
        return pattern_host == host;
    }
    let port = |host: &str| host.split_once(':').map(|(_, port)| port.to_owned());
    let parts = |host: &str| -> Vec<String> {
        let name = host.split(':').next().unwrap_or_default();
        name.split('.').map(str::to_owned).collect()
    };
    let (wanted, found) = (parts(&pattern_host), parts(&host));
    port(&pattern_host) == port(&host)
        && wanted.len() == found.len()
        && wanted
            .iter()
            .zip(&found)
            .all(|(glob, part)| alike(glob.as_bytes(), part.as_bytes()))
}

/// `*` is any text, `?` any character. Goes back to the last `*` only, so that no pattern makes it slow.
fn alike(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut in_text) = (0, 0);
    let mut star = None;
    while let Some(found) = text.get(in_text) {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, in_text));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == found => {
                at += 1;
                in_text += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else {
                    return false;
                };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                in_text = taken + 1;
            }
        }
    }
    glob.iter().skip(at).all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret<'a>(origin: &str, form: SecretForm, text: &'a str) -> PullSecret<'a> {
        PullSecret {
            origin: origin.to_owned(),
            form,
            content: text.as_bytes(),
        }
    }

    fn keyring(keys: &[&str]) -> Keyring {
        let mut keyring = Keyring::default();
        for key in keys {
            let auth = BASE64.encode(format!("{key}:pass:word"));
            let text = format!(r#"{{"auths": {{"{key}": {{"auth": "{auth}", "email": "x"}}}}}}"#);
            keyring.add(&secret(key, SecretForm::ConfigJson, &text)).unwrap();
        }
        keyring
    }

    #[test]
    fn entries_match_as_the_kubelets_do() {
        let all = [
            ("r.example", "r.example/team/app", true),
            ("r.example/team", "r.example/team/app", true),
            ("r.example/team", "r.example/other/app", false),
            ("https://r.example/v2/", "r.example/team/app", true),
            ("http://r.example/v1/team", "r.example/team/app", true),
            ("r.example:5000", "r.example/team/app", false),
            ("r.example", "r.example:5000/app", false),
            ("*.example", "r.example/app", true),
            ("*.example", "a.r.example/app", false),
            ("*.*.example", "a.r.example/app", true),
            ("r?.example", "r1.example/app", true),
            ("*-eu.example:5000", "pull-eu.example:5000/app", true),
            ("*", "r.example/app", false),
            ("[::1]:5000", "[::1]:5000/app", true),
            ("[::1]:5000", "[::2]:5000/app", false),
            ("https://index.docker.io/v1/", "docker.io/library/busybox", true),
            ("https://index.docker.io/v1/", "r.example/library/busybox", false),
            ("docker.io/team", "docker.io/team/app", true),
        ];
        for (key, repository, fits) in all {
            let found = keyring(&[key]).origins(repository);
            assert_eq!(!found.is_empty(), fits, "{key} for {repository}");
        }
    }

    #[test]
    fn the_longest_entry_is_tried_first() {
        let keyring = keyring(&["r.example", "r.example/team/app", "r.example/team", "x.example"]);
        let found = keyring.origins("r.example/team/app");
        assert_eq!(found, ["r.example/team/app", "r.example/team", "r.example"]);
        let first = &keyring.matching("r.example/team/app")[0];
        assert_eq!(
            (first.username(), first.password()),
            ("r.example/team/app", "pass:word")
        );
    }

    #[test]
    fn what_the_kubelet_reads_is_read() {
        // A desktop's file: one registry in a credential helper, others by `auth` with padding and without.
        let text = r#"{"credsStore": "desktop", "auths": {
            "https://index.docker.io/v1/": {},
            "empty.example": {"auth": "", "email": "x"},
            "padded.example": {"auth": "dTpodW50ZXIy"},
            "r.example": {"auth": "dTpodW50\nZXI=\n"},
            "raw.example": {"auth": "dTpodW50ZXI"},
            "token.example": {"auth": "dTo=", "identitytoken": "t"}
        }}"#;
        let mut keyring = Keyring::default();
        keyring.add(&secret("s", SecretForm::ConfigJson, text)).unwrap();
        let shown = |repository: &str| -> Vec<(String, String)> {
            let found = keyring.matching(repository);
            let pair = |entry: &Entry| (entry.username().to_owned(), entry.password().to_owned());
            found.iter().map(pair).collect()
        };
        let of = |password: &str| vec![("u".to_owned(), password.to_owned())];
        assert_eq!(shown("padded.example/x"), of("hunter2"));
        assert_eq!(shown("r.example/x"), of("hunter"));
        assert_eq!(shown("raw.example/x"), of("hunter"));
        assert_eq!(shown("token.example/x"), of(""));
        assert_eq!(
            shown("docker.io/library/busybox"),
            [],
            "asked without credentials"
        );
        assert_eq!(shown("empty.example/x"), []);
    }

    #[test]
    fn both_forms_are_read_and_no_error_shows_a_password() {
        let mut keyring = Keyring::default();
        let text = r#"{"r.example": {"username": "u", "password": "hunter2"}}"#;
        keyring.add(&secret("s", SecretForm::Cfg, text)).unwrap();
        let entry = &keyring.matching("r.example/x")[0];
        assert_eq!((entry.username(), entry.password()), ("u", "hunter2"));
        assert!(!format!("{keyring:?}").contains("hunter2"));
        for bad in [
            r#"{"auths": "hunter2"}"#,
            r#"{"auths": {"r.example": "hunter2"}}"#,
            r#"{"auths": {"r.example": {"auth": "hunter2"}}}"#,
            r#"{"auths": {"r.example": {"password": "hunter2"}}}"#,
            r#"{"auths": {"r.example": {"password": ["hunter2"]}}}"#,
        ] {
            let error = Keyring::default()
                .add(&secret("s", SecretForm::ConfigJson, bad))
                .unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
