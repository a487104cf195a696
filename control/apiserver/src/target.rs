//! What a URL names, decided from the path and the method alone. Pure.
//!
//! Routing is one table ([`api::resources::RESOURCES`]) and one function ([`parse`]): a path that is not in
//! the table names nothing, so a resource cannot be reachable under a second spelling that authorization
//! does not know.

use api::resources::{self, Resource, Subresource};
use http::Method;

/// Older versions under which a resource of the table answers too: group, version, plural. kubectl 1.27 knows
/// no other for `auth whoami`.
const OLDER: &[(&str, &str, &str)] = &[("authentication.k8s.io", "v1beta1", "selfsubjectreviews")];

/// Subresources of pods that Kubernetes has and this server does not: worth a message that names them.
const UNSERVED: &[&str] = &["proxy", "resize"];

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/livez`: the process runs.
    Livez,
    /// `/readyz`: the server can answer.
    Readyz,
    /// `/healthz`: like `/readyz`, for authenticated callers.
    Healthz,
    /// `/version`.
    Version,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`: the resources of a group version.
    GroupVersion {
        /// API group, empty for the core.
        group: String,
        /// Version.
        version: String,
    },
    /// `/openapi/v2`: kubectl 1.27 asks for it before it applies anything.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiIndex,
    /// `/openapi/v3/...`: the rest of the path.
    OpenApiDocument(String),
    /// A resource or one of its subresources.
    Resource(ResourceTarget),
}

/// A resource, as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceTarget {
    /// Row of the resource table.
    pub(crate) resource: &'static Resource,
    /// Version in the path: the row's own, or one of the older ones.
    pub(crate) version: String,
    /// Subresource, if the path names one.
    pub(crate) subresource: Option<&'static Subresource>,
    /// Namespace in the path; `None` for cluster-scoped resources and for "all namespaces".
    pub(crate) namespace: Option<String>,
    /// Object name; `None` for the collection.
    pub(crate) name: Option<String>,
    /// What follows the subresource, such as `flows` in `nodes/n1/proxy/flows`.
    pub(crate) rest: String,
}

impl ResourceTarget {
    /// `apiVersion` of what the path answers.
    pub(crate) fn api_version(&self) -> String {
        match self.resource.group {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Namespace, empty where there is none.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// Name, empty for the collection.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Subresource name, empty for the resource itself.
    pub(crate) fn subresource(&self) -> &'static str {
        self.subresource.map_or("", |sub| sub.name)
    }
}

/// What a request does to a resource: Kubernetes' verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make one.
    Create,
    /// Replace one.
    Update,
    /// Change parts of one.
    Patch,
    /// Remove one.
    Delete,
    /// Remove many.
    DeleteCollection,
}

impl Verb {
    /// Name as authorization, audit and discovery spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Whether the verb changes something.
    pub(crate) fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// Parses a path, or `None` if it names nothing that is served.
pub(crate) fn parse(path: &str) -> Option<Target> {
    let mut segments = Vec::new();
    for raw in path.strip_prefix('/')?.trim_end_matches('/').split('/') {
        segments.push(decode_segment(raw)?);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["livez"] => Some(Target::Livez),
        ["readyz"] => Some(Target::Readyz),
        ["healthz"] => Some(Target::Healthz),
        ["version"] => Some(Target::Version),
        ["openapi", "v2"] => Some(Target::OpenApiV2),
        ["openapi", "v3"] => Some(Target::OpenApiIndex),
        ["openapi", "v3", rest @ ..] => Some(Target::OpenApiDocument(rest.join("/"))),
        ["api"] => Some(Target::CoreVersions),
        ["api", version, rest @ ..] => parse_group_version("", version, rest),
        ["apis"] => Some(Target::Groups),
        ["apis", group] => resources::RESOURCES
            .iter()
            .any(|r| !group.is_empty() && r.group == *group)
            .then(|| Target::Group((*group).to_owned())),
        ["apis", group, version, rest @ ..] if !group.is_empty() => parse_group_version(group, version, rest),
        _ => None,
    }
}

/// The subresource of a pod that `path` names and that is not served.
pub(crate) fn unserved(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.split('/').collect();
    let ["", "api", "v1", "namespaces", _, "pods", _, subresource, ..] = segments.as_slice() else {
        return None;
    };
    UNSERVED.iter().find(|known| *known == subresource).copied()
}

/// The verb that `method` means on `target`, or `None` if the resource does not answer it.
pub(crate) fn verb(method: &Method, target: &ResourceTarget, watch: bool) -> Option<Verb> {
    let named = target.name.is_some();
    let session = target.subresource.is_some_and(Subresource::is_session);
    let verb = match *method {
        // A WebSocket begins with GET, SPDY with POST. Both do the same, so both need the same right: whoever may only
        // read pods must not get into them because WebSockets are spelled that way.
        Method::GET | Method::POST if session => Verb::Create,
        Method::GET if named => Verb::Get,
        Method::GET if watch => Verb::Watch,
        Method::GET => Verb::List,
        // A subresource is created below a named object; an object is created in its collection.
        Method::POST if named == target.subresource.is_some() => Verb::Create,
        Method::PUT if named => Verb::Update,
        Method::PATCH if named => Verb::Patch,
        Method::DELETE if named => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ => return None,
    };
    let answered = match target.subresource {
        Some(sub) => sub.verbs,
        None => target.resource.verbs(),
    };
    // All namespaces at once can be read, never written.
    let everywhere = target.resource.namespaced() && target.namespace.is_none() && verb.mutates();
    (answered.contains(&verb.as_str()) && !everywhere).then_some(verb)
}

fn parse_group_version(group: &str, version: &str, rest: &[&str]) -> Option<Target> {
    if rest.is_empty() {
        return served(group, version).then(|| Target::GroupVersion {
            group: group.to_owned(),
            version: version.to_owned(),
        });
    }
    // `namespaces/NS/PLURAL...` is a namespaced resource unless what follows is a subresource of the
    // namespace object itself.
    if let ["namespaces", namespace, plural, rest @ ..] = rest
        && let Some(resource) = resources::by_path(group, version, plural)
    {
        if !resource.namespaced() || namespace.is_empty() {
            return None;
        }
        return parse_object(resource, version, Some((*namespace).to_owned()), rest);
    }
    let [plural, rest @ ..] = rest else { return None };
    let resource = resources::by_path(group, version, plural).or_else(|| older(group, version, plural))?;
    if resource.namespaced() && !rest.is_empty() {
        return None;
    }
    parse_object(resource, version, None, rest)
}

/// The row of the table that answers for an older version.
fn older(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    let known = OLDER.contains(&(group, version, plural));
    resources::RESOURCES
        .iter()
        .find(|row| known && row.group == group && row.plural == plural)
}

fn parse_object(
    resource: &'static Resource,
    version: &str,
    namespace: Option<String>,
    rest: &[&str],
) -> Option<Target> {
    let (name, subresource, rest) = match rest {
        [] => (None, None, &[] as &[&str]),
        [name] => (Some((*name).to_owned()), None, &[] as &[&str]),
        [name, sub, rest @ ..] => (Some((*name).to_owned()), Some(resource.subresource(sub)?), rest),
    };
    let proxied = subresource.is_some_and(|sub| sub.name == "proxy");
    if name.as_deref() == Some("") || (!rest.is_empty() && !proxied) {
        return None;
    }
    Some(Target::Resource(ResourceTarget {
        resource,
        version: version.to_owned(),
        subresource,
        namespace,
        name,
        rest: rest.join("/"),
    }))
}

fn served(group: &str, version: &str) -> bool {
    resources::RESOURCES
        .iter()
        .any(|r| r.group == group && r.version == version)
}

/// Percent-decodes one segment. A decoded `/`, `.` or `..` segment, NUL or invalid UTF-8 names nothing.
fn decode_segment(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let mut decoded = [0u8; 1];
        hex::decode_to_slice(digits, &mut decoded).ok()?;
        bytes.extend_from_slice(&decoded);
        rest = tail;
    }
    let text = String::from_utf8(bytes).ok()?;
    let dots = text == "." || text == "..";
    (!dots && !text.contains(['/', '\0'])).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> Option<ResourceTarget> {
        match parse(path) {
            Some(Target::Resource(target)) => Some(target),
            _ => None,
        }
    }

    #[test]
    fn every_row_of_the_table_is_reachable_under_its_own_path_only() {
        for row in resources::RESOURCES {
            let namespace = row.namespaced().then_some("ns");
            let collection = row.collection_path(namespace);
            let target = resource(&collection).unwrap_or_else(|| panic!("{collection}"));
            assert_eq!(
                (target.resource, target.namespace.as_deref(), target.name),
                (row, namespace, None)
            );
            let target = resource(&format!("{collection}/x")).unwrap();
            assert_eq!((target.resource, target.name()), (row, "x"));
            for sub in row.subresources {
                let target = resource(&format!("{collection}/x/{}", sub.name)).unwrap();
                assert_eq!(target.subresource, Some(sub));
            }
            assert_eq!(resource(&format!("{collection}/x/nosuch")), None);
            if row.namespaced() {
                assert_eq!(
                    resource(&format!("{}/x", row.collection_path(None))),
                    None,
                    "object without namespace"
                );
            } else {
                assert_eq!(
                    resource(&format!("{}/namespaces/ns/{}", row.base_path(), row.plural)),
                    None
                );
            }
        }
    }

    #[test]
    fn odd_spellings_name_nothing() {
        for path in [
            "",
            "/",
            "//api/v1/pods",
            "/api/v1/namespaces//pods",
            "/api/v1//pods",
            "/api/v2/pods",
            "/apis//v1/pods",
            "/api/v1/namespaces/a%2Fb/pods",
            "/api/v1/namespaces/../pods/x",
            "/api/v1/namespaces/ns/pods/%2e%2e",
            "/api/v1/namespaces/ns/pods/x/log/y",
            "/api/v1/pods/x",
            "/API/v1/pods",
            "/api/v1/namespaces/ns/pods/%zz",
            "/api/v1/namespaces/ns/pods/%c3%28",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
        let older = resource("/apis/authentication.k8s.io/v1beta1/selfsubjectreviews").unwrap();
        assert_eq!(older.api_version(), "authentication.k8s.io/v1beta1");
        assert_eq!(
            resource("/apis/authorization.k8s.io/v1beta1/selfsubjectaccessreviews"),
            None
        );
        assert_eq!(resource("/api/v1/nodes/n1/proxy/flows").unwrap().rest, "flows");
        assert_eq!(resource("/api/v1/namespaces/ns/pods/%61").unwrap().name(), "a");
    }

    #[test]
    fn what_is_not_served_is_named() {
        let path = "/api/v1/namespaces/ns/pods/x/resize";
        assert_eq!((parse(path), unserved(path)), (None, Some("resize")));
        assert_eq!(unserved("/api/v1/namespaces/ns/pods/x/nosuch"), None);
        for row in resources::RESOURCES.iter().filter(|row| row.kind == "Pod") {
            assert!(UNSERVED.iter().all(|name| row.subresource(name).is_none()));
        }
    }

    #[test]
    fn verbs_follow_method_and_place() {
        let verb_of = |method: Method, path: &str, watch| verb(&method, &resource(path).unwrap(), watch);
        assert_eq!(verb_of(Method::GET, "/api/v1/pods", true), Some(Verb::Watch));
        assert_eq!(verb_of(Method::GET, "/api/v1/pods", false), Some(Verb::List));
        assert_eq!(
            verb_of(Method::POST, "/api/v1/pods", false),
            None,
            "create needs a namespace"
        );
        assert_eq!(verb_of(Method::DELETE, "/api/v1/pods", false), None);
        assert_eq!(
            verb_of(Method::DELETE, "/api/v1/namespaces/a/pods", false),
            Some(Verb::DeleteCollection)
        );
        for session in ["exec", "attach", "portforward"] {
            let path = format!("/api/v1/namespaces/a/pods/p/{session}");
            for method in [Method::GET, Method::POST] {
                assert_eq!(verb_of(method, &path, false), Some(Verb::Create));
            }
            assert_eq!(verb_of(Method::DELETE, &path, false), None);
        }
        assert_eq!(
            verb_of(Method::POST, "/api/v1/namespaces/a/pods/p/binding", false),
            Some(Verb::Create)
        );
        assert_eq!(verb_of(Method::POST, "/api/v1/namespaces/a/pods/p", false), None);
        assert_eq!(
            verb_of(Method::DELETE, "/api/v1/namespaces/a/pods/p/status", false),
            None
        );
        assert_eq!(
            verb_of(
                Method::GET,
                "/apis/authentication.k8s.io/v1/selfsubjectreviews",
                false
            ),
            None
        );
    }
}
