//! A cluster from plain objects, such as those of a manifest: for answers without a running cluster.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::view::{ClusterView, PodView};

/// Namespace of objects that do not name one.
const DEFAULT_NAMESPACE: &str = "default";
/// Addresses for pods without one come from 198.18.0.0/15, which RFC 2544 keeps for tests.
const GENERATED_BASE: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const GENERATED_COUNT: u32 = 1 << 17;
/// Lists within lists that are followed.
const MAX_LIST_DEPTH: usize = 8;

/// A cluster, and what had to be assumed or left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The cluster. Its host addresses are empty.
    pub view: ClusterView,
    /// For people: objects that say nothing to network policy, namespaces that are not among the objects,
    /// pods whose address was made up.
    pub notes: Vec<String>,
}

/// Why objects cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No `kind`.
    #[error("object {position} has no kind")]
    NoKind {
        /// Position among the objects, from 1.
        position: usize,
    },
    /// Not what its kind says.
    #[error("{object} is not valid: {source}")]
    Invalid {
        /// `Kind name`.
        object: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A field that the kind does not have; a policy with a misspelt field would mean something else.
    #[error("{object} has no field {field}")]
    UnknownField {
        /// `Kind name`.
        object: String,
        /// Path of the field.
        field: String,
    },
    /// Lists are nested deeper than anything sensible.
    #[error("lists are nested more than {MAX_LIST_DEPTH} deep")]
    TooDeep,
}

/// Reads Pods, Namespaces, NetworkPolicies and lists of them. Pods without an address get one that depends
/// on their name alone, unless it is taken. Namespaces that are not among the objects are taken to have no
/// labels of their own.
pub fn load_objects(objects: &[Value]) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded::default();
    for (i, object) in objects.iter().enumerate() {
        loaded.add(object, i + 1, MAX_LIST_DEPTH)?;
    }
    loaded.assume_namespaces();
    loaded.assume_addresses();
    Ok(loaded)
}

impl Loaded {
    fn add(&mut self, object: &Value, position: usize, depth: usize) -> Result<(), LoadError> {
        let kind = object
            .get("kind")
            .and_then(Value::as_str)
            .ok_or(LoadError::NoKind { position })?;
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or("without a name");
        let label = format!("{kind} {name}");
        let items = object.get("items").and_then(Value::as_array);
        match (kind, items) {
            ("Namespace", _) => {
                self.view.add_namespace(&parse::<Namespace>(object, label)?);
            }
            ("Pod", _) => {
                let mut pod = parse::<Pod>(object, label.clone())?;
                pod.metadata
                    .namespace
                    .get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
                match PodView::from_pod(&pod, None) {
                    Some(pod) => self.view.pods.push(pod),
                    None => self
                        .notes
                        .push(format!("{label} is left out: it has no address of its own")),
                }
            }
            ("NetworkPolicy", _) => {
                let mut policy = parse::<NetworkPolicy>(object, label)?;
                policy
                    .metadata
                    .namespace
                    .get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
                self.view.policies.push(policy);
            }
            (list, Some(items)) if list.ends_with("List") => {
                let depth = depth.checked_sub(1).ok_or(LoadError::TooDeep)?;
                for item in items {
                    self.add(&with_kind(item, list), position, depth)?;
                }
            }
            _ => self.notes.push(format!(
                "{label} is left out: network policy does not depend on it"
            )),
        }
        Ok(())
    }

    fn assume_namespaces(&mut self) {
        let of_pods = self.view.pods.iter().map(|pod| pod.namespace.clone());
        let policies = self.view.policies.iter();
        let of_policies = policies.filter_map(|policy| policy.metadata.namespace.clone());
        let named: BTreeSet<String> = of_pods.chain(of_policies).collect();
        for name in named {
            if !self.view.namespaces.contains_key(&name) {
                let mut namespace = Namespace::default();
                namespace.metadata.name = Some(name.clone());
                self.view.add_namespace(&namespace);
                self.notes
                    .push(format!("namespace {name} is taken to have no labels of its own"));
            }
        }
    }

    fn assume_addresses(&mut self) {
        let mut taken: BTreeSet<IpAddr> = self
            .view
            .pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        let mut without: Vec<&mut PodView> = self
            .view
            .pods
            .iter_mut()
            .filter(|pod| pod.addresses.is_empty())
            .collect();
        without.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        for pod in without {
            let wanted = name_hash(&pod.namespace, &pod.name);
            let offsets = (0..GENERATED_COUNT).map(|i| wanted.wrapping_add(i) % GENERATED_COUNT);
            let mut addresses = offsets.map(|offset| IpAddr::V4(Ipv4Addr::from(GENERATED_BASE + offset)));
            let Some(address) = addresses.find(|address| !taken.contains(address)) else {
                continue;
            };
            taken.insert(address);
            pod.addresses.insert(address);
            self.notes.push(format!(
                "Pod {}/{} is taken to have address {address}",
                pod.namespace, pod.name
            ));
        }
    }
}

/// Items of a typed list (`PodList`) may leave out their kind.
fn with_kind(item: &Value, list: &str) -> Value {
    let mut item = item.clone();
    if let (Value::Object(fields), Some(kind)) = (&mut item, list.strip_suffix("List"))
        && !kind.is_empty()
    {
        fields.entry("kind").or_insert_with(|| Value::from(kind));
    }
    item
}

fn parse<T: DeserializeOwned>(object: &Value, label: String) -> Result<T, LoadError> {
    let mut object = object.clone();
    // The types do not carry these two, and the live server adds the third.
    if let Value::Object(fields) = &mut object {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    let mut unknown = None;
    let parsed = serde_ignored::deserialize(&object, |path| {
        // The path marks each optional field that it goes through.
        unknown.get_or_insert_with(|| path.to_string().replace(".?", ""));
    });
    match (parsed, unknown) {
        (Ok(parsed), None) => Ok(parsed),
        (Ok(_), Some(field)) => Err(LoadError::UnknownField { object: label, field }),
        (Err(source), _) => Err(LoadError::Invalid {
            object: label,
            source,
        }),
    }
}

/// FNV-1a, for an address that stays the same from run to run and from machine to machine.
fn name_hash(namespace: &str, name: &str) -> u32 {
    let bytes = namespace.bytes().chain([b'/']).chain(name.bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
