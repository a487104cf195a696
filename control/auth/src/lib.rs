//! Who is asking, and may they: identities from client certificates and tokens of service accounts, and the fixed
//! roles of this version.
//!
//! Both answers are values with private fields. [`Authenticated`] comes only out of a certificate or out of a token
//! that was verified and compared with what it is bound to ([`token`]), [`Authorized`] only out of [`authorize`]; the API server's later stages demand them, so a request path
//! that forgets a check does not compile.
//!
//! Pure: no clock, no files, no sockets. Verifying the certificate chain is the TLS layer's work
//! (`control/pki`). Non-goal: configurable roles.
//!
//! Start at [`authorize`].

#![forbid(unsafe_code)]

mod identity;
mod node;
mod node_index;
mod roles;
pub mod token;

use std::fmt;

pub use identity::{
    Authenticated, BACKDATED_SECONDS, CREDENTIAL_ID, GROUP_AUTHENTICATED, Identity, IdentityError,
};
pub use node::{NodeView, ReferencedKind};
pub use node_index::NodeIndex;
pub use roles::only_collects;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`; for paths the
    /// HTTP method in lower case.
    pub verb: String,
    /// Resource or path.
    pub target: Target,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An API resource.
    Resource(ResourceTarget),
    /// Any other URL path, such as `/version`.
    Path(String),
}

/// An API resource, one object or all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceTarget {
    /// API group; empty for the core group.
    pub group: String,
    /// Plural name.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace; empty for cluster-scoped resources and for requests across namespaces.
    pub namespace: String,
    /// Object name. For `create` the name in the body, for `list` and `watch` that of a `metadata.name`
    /// field selector; empty where the request names no object.
    pub name: String,
}

/// Proof that [`authorize`] said yes to exactly these attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    identity: Identity,
    attributes: Attributes,
}

/// The refusal, in the words of Kubernetes. Its text follows `... is forbidden: ` in a Status message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("User {user:?} cannot {attributes}{}{}", if reason.is_empty() { "" } else { ": " }, reason)]
pub struct Denied {
    /// Who asked.
    pub user: String,
    /// For what.
    pub attributes: Box<Attributes>,
    /// Why, where more can be said than that no role allows it; otherwise empty.
    pub reason: String,
}

/// Decides. Whatever no role allows is denied.
pub fn authorize(
    who: &Authenticated,
    attributes: Attributes,
    nodes: &dyn NodeView,
) -> Result<Authorized, Denied> {
    let identity = who.identity();
    match roles::decide(identity, &attributes, nodes) {
        Decision::Allow => Ok(Authorized {
            identity: identity.clone(),
            attributes,
        }),
        Decision::Deny(reason) => Err(Denied {
            user: identity.user.clone(),
            attributes: Box::new(attributes),
            reason,
        }),
    }
}

/// Outcome of one role.
enum Decision {
    Allow,
    /// With a reason, or with an empty one: "no role allows it".
    Deny(String),
}

impl Decision {
    const NO_ROLE: Self = Self::Deny(String::new());

    fn allow_if(condition: bool) -> Self {
        match condition {
            true => Self::Allow,
            false => Self::NO_ROLE,
        }
    }
}

impl Authorized {
    /// Who asked.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For what.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }
}

impl Attributes {
    /// Attributes of a request for an API resource.
    pub fn resource(verb: impl Into<String>, target: ResourceTarget) -> Self {
        Self {
            verb: verb.into(),
            target: Target::Resource(target),
        }
    }

    /// Attributes of a request for another path.
    pub fn path(verb: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            verb: verb.into(),
            target: Target::Path(path.into()),
        }
    }
}

impl ResourceTarget {
    /// `resource` or `resource/subresource`.
    pub fn full_resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

impl fmt::Display for Attributes {
    /// `get resource "pods" in API group "" in the namespace "default"`, as Kubernetes puts it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Path(path) => write!(f, "{} path {path:?}", self.verb),
            Target::Resource(target) => {
                let (verb, resource, group) = (&self.verb, target.full_resource(), &target.group);
                write!(f, "{verb} resource {resource:?} in API group {group:?} ")?;
                match target.namespace.as_str() {
                    "" => f.write_str("at the cluster scope"),
                    namespace => write!(f, "in the namespace {namespace:?}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_like_kubernetes() {
        let denied = |attributes| Denied {
            user: "jane".into(),
            attributes: Box::new(attributes),
            reason: String::new(),
        };
        let pods = ResourceTarget {
            resource: "pods".into(),
            subresource: "log".into(),
            namespace: "prod".into(),
            name: "web".into(),
            ..Default::default()
        };
        assert_eq!(
            denied(Attributes::resource("get", pods)).to_string(),
            r#"User "jane" cannot get resource "pods/log" in API group "" in the namespace "prod""#
        );
        let policies = ResourceTarget {
            group: "palisade.dev".into(),
            resource: "imagepolicies".into(),
            ..Default::default()
        };
        assert_eq!(
            denied(Attributes::resource("list", policies)).to_string(),
            r#"User "jane" cannot list resource "imagepolicies" in API group "palisade.dev" at the cluster scope"#
        );
        assert_eq!(
            denied(Attributes::path("get", "/metrics")).to_string(),
            r#"User "jane" cannot get path "/metrics""#
        );
    }
}
