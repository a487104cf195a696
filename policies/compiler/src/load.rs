//! A cluster from plain objects, such as those of a directory of manifests: for answers without a running cluster.
//!
//! Strict, because an answer about other policies than those that were meant is worse than none: an object that the
//! readers would have to close in part is an error, as are a field that its kind does not have, a kind that a group of
//! policies does not have, an address or port that is none, a tier that nobody defines and an object that is there twice.
//! Only what no verdict depends on is passed over, and said to be (`unknown`): real clusters are newer than these types.

mod addresses;
mod fields;
mod identity;
mod metadata;
mod objects;
mod services;
mod settings;
mod stored;
mod unknown;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub use identity::{Identity, identity};
pub use objects::validate_object;
pub(crate) use services::{add_service, add_slice};

use crate::{
    field::FieldError,
    view::{CalicoObject, ClusterView, NAMESPACE_PROFILE},
};

/// Namespace of objects that do not name one.
const DEFAULT_NAMESPACE: &str = "default";
/// Lists within lists that are followed.
const MAX_LIST_DEPTH: usize = 8;

/// An object and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// For people: the file, with the place in it.
    pub origin: &'a str,
    /// The object.
    pub object: &'a Value,
}

/// A cluster, and what had to be assumed or left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The cluster. Its host addresses are empty: it is seen from no node.
    pub view: ClusterView,
    /// Where each policy stands, by the name that decisions give.
    pub origins: BTreeMap<String, String>,
    /// For people: objects that say nothing to network policy, namespaces that are not among the objects,
    /// pods whose addresses were made up.
    pub notes: Vec<String>,
}

/// Why objects cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No `kind`.
    #[error("{origin}: object {name:?}: kind: is missing; say what it is, such as Pod")]
    NoKind {
        /// Where it stands.
        origin: String,
        /// Its name; empty if it has none.
        name: String,
    },
    /// An `apiVersion` under which the kind is not known.
    #[error("{origin}: {object}: apiVersion {found:?} is not known for this kind; use {wanted}")]
    ApiVersion {
        /// Where it stands.
        origin: String,
        /// `Kind namespace/name`.
        object: String,
        /// What it has.
        found: String,
        /// What it may have.
        wanted: &'static str,
    },
    /// A kind that its group, all of whose kinds are known, does not have: it may be a policy, or what one depends on, and
    /// would be passed over.
    #[error(
        "{origin}: {object}: kind: {group} has none of this name that is known; correct its spelling, or leave the \
         object out"
    )]
    UnknownKind {
        /// Where it stands.
        origin: String,
        /// `Kind namespace/name`.
        object: String,
        /// The group; for that without a name, the `apiVersion`.
        group: String,
    },
    /// Not what its kind says.
    #[error("{origin}: {object}: {}", joined(errors))]
    Invalid {
        /// Where it stands.
        origin: String,
        /// `Kind namespace/name`.
        object: String,
        /// Everything that is wrong with it; at least one.
        errors: Vec<FieldError>,
    },
    /// Two objects of one kind have one name. A namespace that is not written is `default`, and the two groups that
    /// Calico's kinds may have are one.
    #[error("{origin}: {object} is there twice, also in {other}")]
    Twice {
        /// Where the second stands.
        origin: String,
        /// `Kind namespace/name`.
        object: String,
        /// Where the first stands.
        other: String,
    },
    /// Lists are nested deeper than anything sensible.
    #[error("{origin}: lists are nested more than {MAX_LIST_DEPTH} deep")]
    TooDeep {
        /// Where they stand.
        origin: String,
    },
}

/// Reads everything that network policy depends on, and lists of it. Pods without an address get one of each family that
/// depends on their name alone, unless an object speaks of it, and so do nodes of which nothing tells one. Namespaces that are not among the objects are taken to have
/// no labels of their own.
pub fn load_objects<'a>(objects: impl IntoIterator<Item = Source<'a>>) -> Result<Loaded, LoadError> {
    let mut loader = objects::Loader::of_files();
    for source in objects {
        loader.add(source.origin, source.object, MAX_LIST_DEPTH)?;
    }
    let (mut loaded, backends, stated) = loader.finish()?;
    loaded.assume_namespaces();
    loaded.assume_addresses(&stated);
    let on_nodes = loaded.assume_node_addresses(&stated);
    loaded.note_contested_addresses();
    loaded.view.services = backends.resolve([&loaded.view.pods, &on_nodes]);
    Ok(loaded)
}

impl Loaded {
    fn assume_namespaces(&mut self) {
        let pods = self.view.pods.iter().chain(&self.view.node_pods);
        let of_pods = pods.map(|pod| pod.namespace.clone());
        let metadata = self.view.policies.iter().map(|policy| &policy.metadata);
        let metadata = metadata.chain(self.view.calico.iter().filter_map(|object| match object {
            CalicoObject::NetworkPolicy(object) | CalicoObject::StagedNetworkPolicy(object) => {
                Some(&object.metadata)
            }
            CalicoObject::StagedKubernetesNetworkPolicy(object) => Some(&object.metadata),
            CalicoObject::NetworkSet(object) => Some(&object.metadata),
            _ => None,
        }));
        let of_objects = metadata.filter_map(|metadata| metadata.namespace.clone());
        let profiles = self.view.calico.iter().flat_map(|object| match object {
            CalicoObject::HostEndpoint(host) => host.spec.profiles.as_slice(),
            _ => &[],
        });
        let of_profiles = profiles.filter_map(|profile| profile.strip_prefix(NAMESPACE_PROFILE));
        let of_profiles = of_profiles.filter(|namespace| !namespace.is_empty());
        let named: BTreeSet<String> = of_pods
            .chain(of_objects)
            .chain(of_profiles.map(str::to_owned))
            .collect();
        for name in named {
            if !self.view.namespaces.contains_key(&name) {
                let mut namespace = k8s_openapi::api::core::v1::Namespace::default();
                namespace.metadata.name = Some(name.clone());
                self.view.add_namespace(&namespace);
                self.notes
                    .push(format!("namespace {name} is taken to have no labels of its own"));
            }
        }
    }
}

fn joined(errors: &[FieldError]) -> String {
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    errors.join("\n  and ")
}
