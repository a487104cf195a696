//! URL parameters of list, watch, write, delete and log requests. Parameters that a server need not know
//! (`fieldManager`, `pretty`, `timeout`) are passed over; a malformed value of a known one is an error.

use api::{resources::Resource, selector::LabelSelector};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Status, selector::FieldSelector};

/// Objects on one page when the client asks for more, or for all, stays the server's choice; this is the
/// most that one `limit` may ask for.
pub const MAX_LIMIT: usize = 10_000;

/// Longest watch that may be asked for, in seconds.
pub const MAX_WATCH_SECONDS: u32 = 24 * 3600;

/// Longest continue token that is read, in bytes.
const MAX_TOKEN: usize = 2048;

/// Decoded `key=value` pairs of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(Vec<(String, String)>);

/// Parameters of list, watch and deletecollection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Which labels.
    pub labels: LabelSelector,
    /// Which fields.
    pub fields: FieldSelector,
    /// Most objects on a page; 0 means no limit.
    pub limit: usize,
    /// Where the page starts.
    pub resume: Option<Continue>,
    /// Which state is asked for.
    pub revision: Revision,
    /// What `revision` means for a list.
    pub revision_match: RevisionMatch,
    /// Whether this is a watch.
    pub watch: bool,
    /// When the watch ends, in seconds; absent means the server's choice.
    pub timeout_seconds: Option<u32>,
    /// Whether the watch may carry bookmarks.
    pub bookmarks: bool,
    /// Whether the watch starts with the objects that exist (a streaming list).
    pub send_initial_events: bool,
    /// What a table's rows carry beside their cells.
    pub include: IncludeObject,
}

/// `resourceVersion` of a list or watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// Not given: the newest for a list, from now on (with what exists) for a watch.
    Latest,
    /// `0`: any state will do.
    Any,
    /// A state that the client saw.
    At(u64),
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevisionMatch {
    /// At least as new: the default.
    NotOlderThan,
    /// Exactly that state.
    Exact,
}

/// `includeObject` of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `apiVersion`, `kind`, `metadata`: the default.
    #[default]
    Metadata,
    /// The whole object, which `kubectl --sort-by` needs.
    Object,
}

/// Where a list goes on: opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continue {
    /// Revision of the first page.
    #[serde(rename = "rv")]
    pub revision: u64,
    /// Namespace of the last object of the page before; empty for cluster-scoped objects.
    #[serde(rename = "ns")]
    pub namespace: String,
    /// Its name.
    #[serde(rename = "n")]
    pub name: String,
}

/// Parameters of create, update and patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteQuery {
    /// Whether everything but the write happens.
    pub dry_run: bool,
    /// What happens to fields that a kind does not have.
    pub validation: FieldValidation,
}

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Unknown and duplicate fields refuse the request.
    Strict,
    /// They are dropped, with a warning: the default.
    #[default]
    Warn,
    /// They are dropped.
    Ignore,
}

/// Parameters of pods/log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Container; absent means the only one.
    pub container: Option<String>,
    /// Whether to go on until the container ends.
    pub follow: bool,
    /// Whether to read the run before the last restart.
    pub previous: bool,
    /// Whether each line starts with its time.
    pub timestamps: bool,
    /// Only lines of so many last seconds.
    pub since_seconds: Option<u64>,
    /// Only lines since this moment.
    pub since_time: Option<Timestamp>,
    /// Only so many last lines.
    pub tail_lines: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

impl Parameters {
    /// Decodes the part of a URL behind `?`.
    pub fn parse(query: &str) -> Result<Self, Status> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode_component(key)?, decode_component(value)?))
        });
        pairs.collect::<Result<_, Status>>().map(Self)
    }

    /// First value of `key`; an empty one counts as absent.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether `key` is set: absent, `false` and `0` are not.
    pub fn flag(&self, key: &str) -> bool {
        self.text(key)
            .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// Value of `key` as a number.
    pub fn number<N: std::str::FromStr>(&self, key: &str) -> Result<Option<N>, Status> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_not_a_number: N::Err| invalid(key, text, "a number in range"))
        };
        self.text(key).map(parse).transpose()
    }

    /// Whether `dryRun=All` stands there; another value is refused.
    pub fn dry_run(&self) -> Result<bool, Status> {
        match self
            .all("dryRun")
            .find(|value| !value.is_empty() && *value != "All")
        {
            Some(other) => Err(invalid("dryRun", other, "All")),
            None => Ok(self.all("dryRun").any(|value| value == "All")),
        }
    }
}

impl ListQuery {
    /// Reads the parameters of a list or watch of `resource`.
    pub fn parse(resource: &Resource, parameters: &Parameters) -> Result<Self, Status> {
        let labels = parameters.text("labelSelector").unwrap_or_default();
        let labels: LabelSelector = labels
            .parse()
            .map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(resource, parameters.text("fieldSelector").unwrap_or_default())?;
        let query = Self {
            labels,
            fields,
            limit: parameters.number::<usize>("limit")?.unwrap_or(0).min(MAX_LIMIT),
            resume: parameters.text("continue").map(Continue::decode).transpose()?,
            revision: revision(parameters.text("resourceVersion"))?,
            revision_match: match parameters.text("resourceVersionMatch") {
                None | Some("NotOlderThan") => RevisionMatch::NotOlderThan,
                Some("Exact") => RevisionMatch::Exact,
                Some(other) => return Err(invalid("resourceVersionMatch", other, "NotOlderThan or Exact")),
            },
            watch: parameters.flag("watch"),
            timeout_seconds: parameters
                .number("timeoutSeconds")?
                .filter(|seconds| *seconds > 0)
                .map(|seconds: u32| seconds.min(MAX_WATCH_SECONDS)),
            bookmarks: parameters.flag("allowWatchBookmarks"),
            send_initial_events: parameters.flag("sendInitialEvents"),
            include: match parameters.text("includeObject") {
                None | Some("Metadata") => IncludeObject::Metadata,
                Some("None") => IncludeObject::None,
                Some("Object") => IncludeObject::Object,
                Some(other) => return Err(invalid("includeObject", other, "None, Metadata or Object")),
            },
        };
        if query.resume.is_some() && matches!(query.revision, Revision::At(_)) {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(message));
        }
        if query.revision_match == RevisionMatch::Exact && !matches!(query.revision, Revision::At(_)) {
            return Err(Status::bad_request(
                "resourceVersionMatch Exact needs a resourceVersion other than 0",
            ));
        }
        Ok(query)
    }
}

impl Continue {
    /// The token for a client.
    pub fn encode(&self) -> String {
        // A struct of two strings and a number always serialises.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a token. It only says where to go on: what may be listed does not depend on it.
    pub fn decode(token: &str) -> Result<Self, Status> {
        let refuse = || Status::bad_request("continue key is not valid");
        if token.len() > MAX_TOKEN {
            return Err(refuse());
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok().ok_or_else(refuse)?;
        serde_json::from_slice(&bytes).ok().ok_or_else(refuse)
    }
}

impl WriteQuery {
    /// Reads the parameters of a create, update or patch.
    pub fn parse(parameters: &Parameters) -> Result<Self, Status> {
        let validation = match parameters.text("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => return Err(invalid("fieldValidation", other, "Strict, Warn or Ignore")),
        };
        Ok(Self {
            dry_run: parameters.dry_run()?,
            validation,
        })
    }
}

impl LogQuery {
    /// Reads the parameters of pods/log.
    pub fn parse(parameters: &Parameters) -> Result<Self, Status> {
        let since_time = parameters.text("sinceTime");
        let query = Self {
            container: parameters.text("container").map(str::to_owned),
            follow: parameters.flag("follow"),
            previous: parameters.flag("previous"),
            timestamps: parameters.flag("timestamps"),
            since_seconds: parameters.number("sinceSeconds")?,
            since_time: since_time
                .map(|text| {
                    text.parse()
                        .map_err(|_not_a_time: jiff::Error| invalid("sinceTime", text, "an RFC 3339 time"))
                })
                .transpose()?,
            tail_lines: parameters.number("tailLines")?,
            limit_bytes: parameters.number("limitBytes")?,
        };
        if query.since_seconds.is_some() && query.since_time.is_some() {
            return Err(Status::bad_request(
                "at most one of sinceTime or sinceSeconds may be specified",
            ));
        }
        Ok(query)
    }
}

fn revision(text: Option<&str>) -> Result<Revision, Status> {
    match text {
        None => Ok(Revision::Latest),
        Some("0") => Ok(Revision::Any),
        Some(text) => text
            .parse()
            .map(Revision::At)
            .map_err(|_not_a_number: std::num::ParseIntError| {
                invalid("resourceVersion", text, "a number that this server gave out")
            }),
    }
}

fn invalid(key: &str, value: &str, expected: &str) -> Status {
    Status::bad_request(format!(
        "invalid query parameter {key}={value:?}: must be {expected}"
    ))
}

/// Percent-decoding with `+` for a space.
fn decode_component(text: &str) -> Result<String, Status> {
    let refuse = || Status::bad_request("query string is not valid percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let digit = char::from(rest.next()?).to_digit(16)?;
                    u8::try_from(digit).ok()
                };
                let (high, low) = digit().zip(digit()).ok_or_else(refuse)?;
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok().ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use api::resources::by_any_name;

    use super::*;

    fn list(query: &str) -> Result<ListQuery, Status> {
        ListQuery::parse(by_any_name("pods").unwrap(), &Parameters::parse(query)?)
    }

    #[test]
    fn queries_that_kubectl_sends() {
        let query = list("fieldSelector=metadata.name%3Dp2&limit=500&resourceVersion=0").unwrap();
        assert_eq!(query.fields.required("metadata.name"), Some("p2"));
        assert_eq!(
            (query.limit, query.revision, query.watch),
            (500, Revision::Any, false)
        );
        let query =
            list("allowWatchBookmarks=true&resourceVersion=1020&timeoutSeconds=362&watch=true").unwrap();
        assert_eq!(
            (query.revision, query.timeout_seconds),
            (Revision::At(1020), Some(362))
        );
        assert!(query.watch && query.bookmarks);
        let unlimited = list("watch=true&timeoutSeconds=0").unwrap();
        assert_eq!(unlimited.timeout_seconds, None, "no limit, as for Kubernetes");
        assert_eq!(
            list("labelSelector=app+in+%28a%2Cb%29")
                .unwrap()
                .labels
                .requirements
                .len(),
            1
        );
        assert_eq!(
            list("includeObject=Object").unwrap().include,
            IncludeObject::Object
        );
        assert_eq!(list("").unwrap().revision, Revision::Latest);
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [
            "limit=-1",
            "limit=x",
            "resourceVersion=abc",
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Near",
            "continue=%21%21",
            "labelSelector=a%20b",
            "x=%zz",
            "x=%ff",
            "x=%f",
            "includeObject=All",
        ] {
            assert_eq!(list(bad).map_err(|status| status.code()), Err(400), "{bad}");
        }
    }

    #[test]
    fn continue_tokens_round_trip_and_cannot_be_combined_with_a_revision() {
        let token = Continue {
            revision: 7,
            namespace: "a".to_owned(),
            name: "b".to_owned(),
        };
        assert_eq!(Continue::decode(&token.encode()), Ok(token.clone()));
        assert!(list(&format!("continue={}", token.encode())).is_ok());
        assert!(list(&format!("continue={}&resourceVersion=7", token.encode())).is_err());
        assert!(Continue::decode(&"A".repeat(MAX_TOKEN + 1)).is_err());
    }

    #[test]
    fn write_and_log_parameters() {
        let write = |text: &str| WriteQuery::parse(&Parameters::parse(text)?);
        assert_eq!(
            write("fieldManager=kubectl-create&fieldValidation=Strict&dryRun=All"),
            Ok(WriteQuery {
                dry_run: true,
                validation: FieldValidation::Strict
            })
        );
        assert!(write("dryRun=Some").is_err() && write("fieldValidation=Loose").is_err());
        let log = |text: &str| LogQuery::parse(&Parameters::parse(text)?);
        let query = log("container=c&follow=true&tailLines=5&timestamps=true").unwrap();
        assert_eq!(
            (query.container.as_deref(), query.follow, query.tail_lines),
            (Some("c"), true, Some(5))
        );
        assert!(log("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z").is_err());
        assert!(log("tailLines=-1").is_err());
    }
}
