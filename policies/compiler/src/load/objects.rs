//! From JSON to typed objects, each judged by the reader that the compiler uses.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use api::{calico, cluster_policy};
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    calico::{BUILT_IN_TIERS, named_tier},
    field::FieldError,
    load::{
        DEFAULT_NAMESPACE, LoadError, Loaded, fields,
        identity::{Identity, NAMESPACED_KINDS, group_of, identity},
        metadata,
        services::Backends,
        settings, stored,
        unknown::{self, UnknownFields},
    },
    made_up,
    reading::CONFIGURATION,
    view::{ACCOUNT_PROFILE, CalicoObject, ClusterView, NAMESPACE_PROFILE, PodView},
};

const KUBERNETES: &str = "networking.k8s.io/v1";

/// Reads objects one by one.
#[derive(Default)]
pub(super) struct Loader {
    loaded: Loaded,
    backends: Backends,
    /// Where each object stands.
    seen: BTreeMap<Identity, String>,
    /// Tiers that policies name, with the policy and where it stands.
    named_tiers: Vec<(String, String, String)>,
    tiers: BTreeSet<String>,
    /// Networks that policies, network sets and host endpoints speak of.
    stated: Vec<IpNet>,
    unknown_fields: UnknownFields,
    /// Unknown fields that were passed over, of each kind.
    passed_over: BTreeMap<String, BTreeSet<String>>,
}

/// Everything that the compiler would have to close in an object of a policy kind; kinds that policy does not know
/// have nothing wrong with them.
pub fn validate_object(object: &Value) -> Result<(), Vec<FieldError>> {
    let Some(kind) = object.get("kind").and_then(Value::as_str) else {
        return Ok(());
    };
    if items_of(kind, object).is_some() {
        return Ok(());
    }
    let reader = Reader::new("object", kind, object);
    let read = reader.named().and_then(|_| Loader::default().read(&reader));
    match read {
        Err(LoadError::Invalid { errors, .. }) => Err(errors),
        _ => Ok(()),
    }
}

impl Loader {
    /// One that passes over unknown fields that no verdict depends on.
    pub(super) fn of_files() -> Self {
        Self {
            unknown_fields: UnknownFields::PassedOver,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, origin: &str, object: &Value, depth: usize) -> Result<(), LoadError> {
        let Some(kind) = object.get("kind").and_then(Value::as_str) else {
            let name = object.pointer("/metadata/name").and_then(Value::as_str);
            return Err(LoadError::NoKind {
                origin: origin.to_owned(),
                name: name.unwrap_or_default().to_owned(),
            });
        };
        if let Some(items) = items_of(kind, object) {
            // As the API writes a list of nothing that was never made: null.
            let items = match items {
                Value::Array(items) => items.as_slice(),
                Value::Null => &[],
                _ => return Err(no_list(origin, kind)),
            };
            let depth = depth.checked_sub(1).ok_or_else(|| LoadError::TooDeep {
                origin: origin.to_owned(),
            })?;
            for item in items {
                self.add(origin, &with_type(item, object, kind), depth)?;
            }
            return Ok(());
        }
        let restored = stored::restored(object);
        let restored = restored.map_err(|errors| Reader::new(origin, kind, object).invalid(errors))?;
        let mut reader = Reader::new(origin, kind, &restored);
        reader.unknown_fields = self.unknown_fields;
        reader.named()?;
        if self.read(&reader)? {
            self.note_passed_over(&reader);
            let namespaced = NAMESPACED_KINDS.contains(&kind);
            reader.usable(metadata::problems(kind, namespaced, &reader.metadata()?))?;
            if let Some(other) = self.seen.insert(identity(object), origin.to_owned()) {
                return Err(LoadError::Twice {
                    origin: origin.to_owned(),
                    object: reader.label,
                    other,
                });
            }
        } else if kind != "PolicyAssertion" {
            // Assertions are about policy; who asks for them reads them for himself.
            let label = reader.label;
            self.loaded.notes.push(format!(
                "{label} is left out: network policy does not depend on it"
            ));
        }
        Ok(())
    }

    /// Says of settings of Calico's each for itself what was passed over, since there are few of them, and of other kinds all
    /// together, at the end.
    fn note_passed_over(&mut self, reader: &Reader<'_>) {
        let fields = reader.passed_over.take();
        if fields.is_empty() {
            return;
        }
        if reader.kind == settings::KIND {
            let fields: Vec<&str> = fields
                .iter()
                .map(|field| field.strip_prefix("spec.").unwrap_or(field))
                .collect();
            self.loaded.notes.push(format!(
                "{}: passed over, as no verdict depends on what they say: {}",
                reader.label,
                fields.join(", ")
            ));
            return;
        }
        let known = self.passed_over.entry(reader.kind.to_owned()).or_default();
        known.extend(fields.iter().map(|field| unknown::without_numbers(field)));
    }

    /// What was read, once all tiers are known, and the networks that objects speak of.
    pub(super) fn finish(mut self) -> Result<(Loaded, Backends, Vec<IpNet>), LoadError> {
        let built_in = |tier: &str| BUILT_IN_TIERS.iter().any(|(name, ..)| *name == tier);
        for (tier, object, origin) in self.named_tiers {
            if !self.tiers.contains(&tier) && !built_in(&tier) {
                let error = FieldError {
                    field: "spec.tier".to_owned(),
                    problem: format!("there is no tier {tier:?}"),
                    fix: "define it, or use an existing one".to_owned(),
                };
                return Err(LoadError::Invalid {
                    origin,
                    object,
                    errors: vec![error],
                });
            }
        }
        self.stated.extend(self.backends.addresses().map(IpNet::from));
        for (kind, fields) in self.passed_over {
            let fields: Vec<String> = fields.into_iter().collect();
            self.loaded.notes.push(format!(
                "{kind}: fields that this version does not know, passed over as no verdict depends on them: {}",
                fields.join(", ")
            ));
        }
        Ok((self.loaded, self.backends, self.stated))
    }

    /// Whether policy depends on the object.
    fn read(&mut self, reader: &Reader<'_>) -> Result<bool, LoadError> {
        let (api_version, kind) = (reader.api_version, reader.kind);
        let view = &mut self.loaded.view;
        match (api_version, kind) {
            ("v1", "Namespace") => view.add_namespace(&reader.parse::<Namespace>()?),
            ("v1", "Node") => view.add_node(&reader.parse_usable(fields::of_node)?),
            ("v1", "ServiceAccount") => {
                let account: ServiceAccount = reader.parse()?;
                let key = (
                    namespace_of(&account.metadata),
                    account.metadata.name.unwrap_or_default(),
                );
                view.service_accounts
                    .insert(key, account.metadata.labels.unwrap_or_default());
            }
            ("v1", "Pod") => {
                let mut pod = reader.parse_usable(fields::of_pod)?;
                pod.metadata.namespace = Some(namespace_of(&pod.metadata));
                match (PodView::from_pod(&pod, None), PodView::on_node_network(&pod)) {
                    (Some(pod), _) => view.pods.push(pod),
                    (None, Some(pod)) => view.node_pods.push(pod),
                    (None, None) => self
                        .loaded
                        .notes
                        .push(format!("{} is left out: it has ended", reader.label)),
                }
            }
            ("v1", "Service") => {
                let mut service = reader.parse_usable(fields::of_service)?;
                service.metadata.namespace = Some(namespace_of(&service.metadata));
                self.backends.add_service(service);
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let mut slice: EndpointSlice = reader.parse()?;
                if slice.address_type == "FQDN" {
                    self.loaded.notes.push(format!(
                        "{} is left out: it has names, and policy knows services by addresses",
                        reader.label
                    ));
                    return Ok(true);
                }
                reader.usable(fields::of_slice(&slice))?;
                slice.metadata.namespace = Some(namespace_of(&slice.metadata));
                self.backends.add_slice(slice);
            }
            (KUBERNETES, "NetworkPolicy") => {
                let mut policy: NetworkPolicy = reader.parse()?;
                policy.metadata.namespace = Some(namespace_of(&policy.metadata));
                self.judge(reader, |view| view.policies.push(policy))?;
            }
            (cluster_policy::API_VERSION, "ClusterNetworkPolicy") => {
                let policy = reader.parse()?;
                self.judge(reader, |view| view.cluster_policies.push(policy))?;
            }
            (calico::API_VERSION | stored::API_VERSION, kind) => {
                return self.read_calico(kind, reader);
            }
            (_, "NetworkPolicy") => {
                return Err(reader.wrong_version("networking.k8s.io/v1 or projectcalico.org/v3"));
            }
            (_, "ClusterNetworkPolicy") => {
                return Err(reader.wrong_version(cluster_policy::API_VERSION));
            }
            (_, kind) if CALICO_KINDS.contains(&kind) => {
                return Err(reader.wrong_version(calico::API_VERSION));
            }
            (_, "Pod" | "Namespace" | "Node" | "Service" | "ServiceAccount") => {
                return Err(reader.wrong_version("v1"));
            }
            (_, "EndpointSlice") => return Err(reader.wrong_version("discovery.k8s.io/v1")),
            _ => return reader.leave_out(),
        }
        Ok(true)
    }

    fn read_calico(&mut self, kind: &str, reader: &Reader<'_>) -> Result<bool, LoadError> {
        let namespaced = |mut object: calico::Object<calico::PolicySpec>| {
            object.metadata.namespace = Some(namespace_of(&object.metadata));
            object
        };
        let object = match kind {
            "Tier" => {
                let tier: calico::Tier = reader.parse()?;
                self.tiers.extend(tier.metadata.name.clone());
                CalicoObject::Tier(tier)
            }
            "NetworkPolicy" => CalicoObject::NetworkPolicy(namespaced(reader.parse()?)),
            "StagedNetworkPolicy" => CalicoObject::StagedNetworkPolicy(namespaced(reader.parse()?)),
            "GlobalNetworkPolicy" => CalicoObject::GlobalNetworkPolicy(reader.parse()?),
            "StagedGlobalNetworkPolicy" => CalicoObject::StagedGlobalNetworkPolicy(reader.parse()?),
            "StagedKubernetesNetworkPolicy" => {
                let mut object: calico::StagedKubernetesNetworkPolicy = reader.parse()?;
                object.metadata.namespace = Some(namespace_of(&object.metadata));
                CalicoObject::StagedKubernetesNetworkPolicy(object)
            }
            "NetworkSet" => {
                let mut object: calico::NetworkSet = reader.parse()?;
                object.metadata.namespace = Some(namespace_of(&object.metadata));
                CalicoObject::NetworkSet(object)
            }
            "GlobalNetworkSet" => CalicoObject::GlobalNetworkSet(reader.parse()?),
            "HostEndpoint" => CalicoObject::HostEndpoint(reader.parse()?),
            "Profile" => {
                let profile: calico::Profile = reader.parse_usable(fields::of_profile)?;
                if is_of_namespace_or_account(&profile) {
                    self.loaded.notes.push(format!(
                        "{} is left out: it is computed from the objects themselves",
                        reader.label
                    ));
                    return Ok(true);
                }
                CalicoObject::Profile(profile)
            }
            settings::KIND => {
                let configuration: calico::FelixConfiguration = reader.parse()?;
                let is_of_files = self.unknown_fields == UnknownFields::PassedOver;
                if is_of_files && reader.name != CONFIGURATION && unknown::is_silent(&configuration) {
                    self.loaded.notes.push(format!(
                        "{} is left out: it says nothing that verdicts depend on",
                        reader.label
                    ));
                    return Ok(true);
                }
                CalicoObject::FelixConfiguration(configuration)
            }
            _ => return reader.leave_out(),
        };
        if let CalicoObject::NetworkPolicy(policy)
        | CalicoObject::GlobalNetworkPolicy(policy)
        | CalicoObject::StagedNetworkPolicy(policy)
        | CalicoObject::StagedGlobalNetworkPolicy(policy) = &object
            && let Some(tier) = named_tier(&policy.spec)
        {
            let named = (tier.to_owned(), reader.label.clone(), reader.origin.to_owned());
            self.named_tiers.push(named);
        }
        self.judge(reader, |view| view.calico.push(object))?;
        Ok(true)
    }

    /// Takes an object in, unless its reader would have to close some of it.
    fn judge(&mut self, reader: &Reader<'_>, add: impl FnOnce(&mut ClusterView)) -> Result<(), LoadError> {
        // On its own, so that what is wrong is this object's; what it refers to is looked at later.
        let mut alone = ClusterView::default();
        add(&mut alone);
        let mut errors = Vec::new();
        let policies = alone.policy_set(|_, error| errors.push(error));
        let cluster = alone.read_cluster(|_, error| errors.push(error));
        if !errors.is_empty() {
            return Err(reader.invalid(errors));
        }
        self.stated
            .extend(made_up::stated(&policies.enforced, &cluster.sets));
        let expected = cluster.members.iter().flat_map(|host| &host.addresses);
        self.stated.extend(expected.copied().map(IpNet::from));
        let names = policies.enforced.tiers.iter().flat_map(|tier| &tier.policies);
        let staged = policies.staged.iter().filter_map(|change| change.policy.as_ref());
        for policy in names.chain(staged) {
            self.loaded
                .origins
                .insert(policy.name.clone(), reader.origin.to_owned());
        }
        let view = &mut self.loaded.view;
        view.policies.append(&mut alone.policies);
        view.cluster_policies.append(&mut alone.cluster_policies);
        view.calico.append(&mut alone.calico);
        Ok(())
    }
}

const CALICO_KINDS: [&str; 11] = [
    "Tier",
    "GlobalNetworkPolicy",
    "StagedNetworkPolicy",
    "StagedGlobalNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
    "NetworkSet",
    "GlobalNetworkSet",
    "HostEndpoint",
    "Profile",
    "FelixConfiguration",
    "NetworkPolicy",
];

/// Groups all of whose kinds are known, with those that policy does not depend on: any other may be a policy, or one that
/// policy depends on, whose name is misspelt.
const KNOWN_GROUPS: [(&str, &[&str]); 6] = [
    ("", &CORE_OTHER_KINDS),
    ("discovery.k8s.io", &[]),
    (
        "networking.k8s.io",
        &[
            "ClusterCIDR",
            "IPAddress",
            "Ingress",
            "IngressClass",
            "ServiceCIDR",
        ],
    ),
    ("policy.networking.k8s.io", &[]),
    ("projectcalico.org", &CALICO_OTHER_KINDS),
    ("crd.projectcalico.org", &CALICO_OTHER_KINDS),
];

/// Kinds of `v1` that no verdict depends on.
const CORE_OTHER_KINDS: [&str; 12] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
];

/// Kinds of Calico that say how a network is made, not who may use it.
const CALICO_OTHER_KINDS: [&str; 15] = [
    "BGPConfiguration",
    "BGPFilter",
    "BGPPeer",
    "BlockAffinity",
    "CalicoNodeStatus",
    "ClusterInformation",
    "ExternalNetwork",
    "IPAMBlock",
    "IPAMConfig",
    "IPAMConfiguration",
    "IPAMHandle",
    "IPPool",
    "IPReservation",
    "KubeControllersConfiguration",
    "Node",
];

/// One object on its way in.
struct Reader<'a> {
    origin: &'a str,
    object: &'a Value,
    api_version: &'a str,
    kind: &'a str,
    name: &'a str,
    label: String,
    unknown_fields: UnknownFields,
    /// Those that were passed over.
    passed_over: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    fn new(origin: &'a str, kind: &'a str, object: &'a Value) -> Self {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let name = text("/metadata/name").unwrap_or_default();
        let namespace = text("/metadata/namespace").filter(|namespace| !namespace.is_empty());
        Self {
            origin,
            object,
            api_version: text("/apiVersion").unwrap_or_default(),
            kind,
            name,
            label: match namespace {
                Some(namespace) => format!("{kind} {namespace}/{name}"),
                None => format!("{kind} {name}"),
            },
            unknown_fields: UnknownFields::default(),
            passed_over: RefCell::default(),
        }
    }

    /// The object's name, if it has one.
    fn named(&self) -> Result<&'a str, LoadError> {
        if !self.name.is_empty() {
            return Ok(self.name);
        }
        let (problem, fix) = match self.object.pointer("/metadata/name") {
            None | Some(Value::Null | Value::String(_)) => ("is empty".to_owned(), "name the object"),
            // Such as the boolean that YAML makes of an unquoted word.
            Some(other) => (format!("{other} is not a string"), "put it in quotes"),
        };
        Err(self.invalid(vec![FieldError {
            field: "metadata.name".to_owned(),
            problem,
            fix: fix.to_owned(),
        }]))
    }

    fn metadata(&self) -> Result<ObjectMeta, LoadError> {
        let mut metadata = self.object.get("metadata").cloned().unwrap_or_default();
        settle_nulls(&mut metadata);
        serde_json::from_value(metadata).map_err(|error| {
            self.invalid(vec![FieldError {
                field: "metadata".to_owned(),
                problem: error.to_string(),
                fix: "correct the field".to_owned(),
            }])
        })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        let mut object = self.object.clone();
        settle_nulls(&mut object);
        // The types of Kubernetes do not carry these two.
        if let Value::Object(fields) = &mut object {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        let of_files = self.unknown_fields == UnknownFields::PassedOver;
        if of_files && self.kind == settings::KIND {
            settings::settle(&mut object);
        }
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&object, &mut track);
        let parsed = serde_ignored::deserialize(tracked, |path| unknown.push(shown_path(&path)));
        let parsed = parsed.map_err(|error| {
            self.invalid(vec![FieldError {
                field: track.path().to_string(),
                problem: error.to_string(),
                fix: "correct the field".to_owned(),
            }])
        })?;
        let problem = |field: &String| match self.unknown_fields {
            UnknownFields::Refused => Some(unknown::refused(field)),
            UnknownFields::PassedOver => unknown::problem(self.kind, &object, field),
        };
        let problems: Vec<FieldError> = unknown.iter().filter_map(problem).collect();
        self.usable(problems)?;
        self.passed_over.borrow_mut().extend(unknown);
        Ok(parsed)
    }

    /// The same, if everything that policy needs of it can be used.
    fn parse_usable<T: DeserializeOwned>(&self, unusable: fn(&T) -> Vec<FieldError>) -> Result<T, LoadError> {
        let parsed = self.parse()?;
        self.usable(unusable(&parsed))?;
        Ok(parsed)
    }

    fn usable(&self, unusable: Vec<FieldError>) -> Result<(), LoadError> {
        match unusable.is_empty() {
            true => Ok(()),
            false => Err(self.invalid(unusable)),
        }
    }

    /// That policy does not depend on the object, if that is so.
    fn leave_out(&self) -> Result<bool, LoadError> {
        let (group, kind) = (group_of(self.api_version), self.kind);
        let others = KNOWN_GROUPS.iter().find(|(known, _)| *known == group);
        match others {
            Some((_, others)) if !others.contains(&kind) => Err(LoadError::UnknownKind {
                origin: self.origin.to_owned(),
                object: self.label.clone(),
                group: match group {
                    "" => self.api_version.to_owned(),
                    group => group.to_owned(),
                },
            }),
            _ => Ok(false),
        }
    }

    fn invalid(&self, errors: Vec<FieldError>) -> LoadError {
        LoadError::Invalid {
            origin: self.origin.to_owned(),
            object: self.label.clone(),
            errors,
        }
    }

    fn wrong_version(&self, wanted: &'static str) -> LoadError {
        LoadError::ApiVersion {
            origin: self.origin.to_owned(),
            object: self.label.clone(),
            found: self.api_version.to_owned(),
            wanted,
        }
    }
}

/// Members that are maps from text to text.
const TEXT_MAPS: [&str; 6] = [
    "labels",
    "annotations",
    "matchLabels",
    "nodeSelector",
    "selector",
    "labelsToApply",
];

/// What the API makes of `null`: a member that is not there, and in a map of texts an empty one, which asks for more than
/// none would. In a list it stays, and is refused.
pub(super) fn settle_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            for (name, member) in members {
                match member {
                    Value::Object(texts) if TEXT_MAPS.contains(&name.as_str()) => {
                        let nulls = texts.values_mut().filter(|text| text.is_null());
                        nulls.for_each(|text| *text = Value::from(""));
                    }
                    other => settle_nulls(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(settle_nulls),
        _ => {}
    }
}

/// Whether this is what Calico writes of a namespace or a service account, as it stands in what was read from a cluster.
/// One that says anything else about traffic is not: it would not count.
fn is_of_namespace_or_account(profile: &calico::Profile) -> bool {
    let name = profile.metadata.name.as_deref().unwrap_or_default();
    let all = calico::Rule {
        action: "Allow".to_owned(),
        ..calico::Rule::default()
    };
    let allows_all = |rules: &[calico::Rule]| matches!(rules, [rule] if bare(rule) == all);
    let spec = &profile.spec;
    let of_namespace =
        name.starts_with(NAMESPACE_PROFILE) && allows_all(&spec.ingress) && allows_all(&spec.egress);
    let of_account = name.starts_with(ACCOUNT_PROFILE) && spec.ingress.is_empty() && spec.egress.is_empty();
    of_namespace || of_account
}

/// The rule without ends that ask for nothing.
fn bare(rule: &calico::Rule) -> calico::Rule {
    let mut rule = rule.clone();
    rule.source = rule.source.filter(|end| *end != calico::EntityRule::default());
    rule.destination = rule
        .destination
        .filter(|end| *end != calico::EntityRule::default());
    rule
}

/// A path as errors name it: `spec.ingress[0].from`.
fn shown_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", shown_path(parent)),
        Path::Map { parent, key } => match shown_path(parent) {
            above if above.is_empty() => key.clone(),
            above => format!("{above}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            shown_path(parent)
        }
    }
}

/// What a list holds, if the object is one.
fn items_of<'a>(kind: &str, object: &'a Value) -> Option<&'a Value> {
    object.get("items").filter(|_| kind.ends_with("List"))
}

/// An empty one is not set, as for the API.
fn namespace_of(metadata: &ObjectMeta) -> String {
    let namespace = metadata.namespace.clone().filter(|name| !name.is_empty());
    namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

fn no_list(origin: &str, kind: &str) -> LoadError {
    LoadError::Invalid {
        origin: origin.to_owned(),
        object: kind.to_owned(),
        errors: vec![FieldError {
            field: "items".to_owned(),
            problem: "is not a list".to_owned(),
            fix: "write the objects as a list".to_owned(),
        }],
    }
}

/// Items of a typed list (`PodList`) may leave out their type.
fn with_type(item: &Value, list: &Value, list_kind: &str) -> Value {
    let mut item = item.clone();
    if let (Value::Object(fields), Some(kind)) = (&mut item, list_kind.strip_suffix("List"))
        && !kind.is_empty()
    {
        fields.entry("kind").or_insert_with(|| Value::from(kind));
        let api_version = list.get("apiVersion").cloned().unwrap_or_default();
        fields.entry("apiVersion").or_insert(api_version);
    }
    item
}
