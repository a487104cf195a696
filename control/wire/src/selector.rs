//! Field selectors: `metadata.name=x,status.phase!=Failed` in a URL. Each resource has a fixed list of
//! fields; another one is refused, because a selector that is silently ignored would return too much.

use api::resources::Resource;
use serde_json::Value;

use crate::Status;

/// Fields that every resource has.
const COMMON: &[&str] = &["metadata.name", "metadata.namespace"];

const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    // A list, which no text equals, as in Kubernetes.
    "status.podIPs",
    "status.nominatedNodeName",
];
const EVENT: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// All requirements must hold; without any, everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses the text form. Refuses fields that `resource` cannot be selected by.
    pub fn parse(resource: &Resource, text: &str) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for term in split_unescaped(text, ',').filter(|term| !term.is_empty()) {
            let requirement = Requirement::parse(term).ok_or_else(|| {
                Status::bad_request(format!("invalid field selector {term:?}: expected FIELD=VALUE"))
            })?;
            if !is_selectable(resource, &requirement.field) {
                return Err(Status::bad_request(format!(
                    "field label not supported: {}",
                    requirement.field
                )));
            }
            requirements.push(requirement);
        }
        Ok(Self { requirements })
    }

    /// Whether `object` satisfies every requirement. An absent field is the empty string.
    pub fn matches(&self, object: &Value) -> bool {
        self.requirements
            .iter()
            .all(|r| (field_of(object, &r.field) == r.value) == r.equal)
    }

    /// Whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that `field` must have, when the selector says so: lets a list of one name become a lookup,
    /// and lets a node's list of its own pods be authorized.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.equal && r.field == field)
            .map(|r| r.value.as_str())
    }
}

impl Requirement {
    fn parse(term: &str) -> Option<Self> {
        let at = term.find(['=', '!'])?;
        let (field, rest) = term.split_at(at);
        let (equal, value) = [("==", true), ("!=", false), ("=", true)]
            .into_iter()
            .find_map(|(operator, equal)| Some((equal, rest.strip_prefix(operator)?)))?;
        Some(Self {
            field: field.trim().to_owned(),
            equal,
            value: unescape(value)?,
        })
    }
}

fn is_selectable(resource: &Resource, field: &str) -> bool {
    let own: &[&str] = match (resource.group, resource.plural) {
        ("", "pods") => POD,
        ("", "events") => EVENT,
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        _ => &[],
    };
    COMMON.contains(&field) || own.contains(&field)
}

/// Text of the field; the component of an event's source stands for the source, as in Kubernetes.
fn field_of(object: &Value, field: &str) -> String {
    let field = if field == "source" {
        "source.component"
    } else {
        field
    };
    match field.split('.').try_fold(object, |value, key| value.get(key)) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        None if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ => String::new(),
    }
}

/// Splits at `separator` where no backslash stands before it.
fn split_unescaped(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c: char| {
        let splits = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

/// Resolves `\\`, `\,` and `\=`; `None` for a bare separator or an unknown escape.
fn unescape(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            '=' => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use api::resources::by_any_name;
    use serde_json::json;

    use super::*;

    fn matches(resource: &str, selector: &str, object: &Value) -> bool {
        FieldSelector::parse(by_any_name(resource).unwrap(), selector)
            .unwrap()
            .matches(object)
    }

    #[test]
    fn selectors_that_kubectl_sends() {
        let pod =
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let describe_node = "spec.nodeName=n,status.phase!=Succeeded,status.phase!=Failed";
        assert!(matches("pods", describe_node, &pod));
        assert!(!matches("pods", "spec.nodeName=", &pod));
        assert!(matches("pods", "metadata.name==a", &pod));
        assert!(matches("pods", "", &pod));
        let event = json!({"involvedObject": {"name": "a", "uid": "u"}, "source": {"component": "agent"}});
        assert!(matches("events", "involvedObject.uid=u,source=agent", &event));
        assert!(matches("nodes", "spec.unschedulable=false", &json!({})));
        assert!(matches("pods", "spec.hostNetwork=false", &pod));
        let addressed = json!({"status": {"podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}]}});
        assert!(matches("pods", "status.podIP=10.1.0.2", &addressed));
        assert!(!matches("pods", "status.podIPs=10.1.0.2", &addressed));
        let request = json!({"spec": {"signerName": "kubernetes.io/kubelet-serving"}});
        let serving = "spec.signerName=kubernetes.io/kubelet-serving";
        assert!(matches("certificatesigningrequests", serving, &request));
        let headless = json!({"spec": {"clusterIP": "None", "type": "ClusterIP"}});
        assert!(matches(
            "services",
            "spec.clusterIP=None,spec.type!=ExternalName",
            &headless
        ));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let pods = by_any_name("pods").unwrap();
        for bad in [
            "spec.hostname=x",
            "metadata.name",
            "=x",
            "metadata.name=a=b",
            "metadata.name=a\\",
            "a!b",
        ] {
            assert!(FieldSelector::parse(pods, bad).is_err(), "{bad:?} was accepted");
        }
        let secrets = by_any_name("secrets").unwrap();
        assert!(FieldSelector::parse(secrets, "spec.nodeName=x").is_err());
    }

    #[test]
    fn escapes_and_required_values() {
        let pods = by_any_name("pods").unwrap();
        let selector = FieldSelector::parse(pods, r"metadata.name=a\,b\=c,spec.nodeName!=m").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b=c"));
        assert_eq!(selector.required("spec.nodeName"), None);
    }
}
