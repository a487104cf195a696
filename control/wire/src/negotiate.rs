//! `Accept` and `Content-Type`: which form a client wants, and which form a body has.

use crate::Status;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Form of an answer that carries objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectForm {
    /// The objects themselves.
    Plain,
    /// `meta.k8s.io/v1` `Table`, which kubectl prints.
    Table,
    /// Only `apiVersion`, `kind` and `metadata`.
    Metadata,
}

/// Form of an answer at `/api` and `/apis`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryForm {
    /// `APIVersions` and `APIGroupList`; clients then ask for each group.
    Legacy,
    /// Everything at once, in the version the client named first.
    Aggregated(AggregatedVersion),
}

/// Version of `apidiscovery.k8s.io`. kubectl 1.28 and 1.29 know only the older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregatedVersion {
    /// `v2`.
    V2,
    /// `v2beta1`.
    V2Beta1,
}

/// Encoding of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// JSON.
    Json,
    /// `runtime.Unknown` around a protobuf message.
    Protobuf,
}

/// Kind of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchForm {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// Kubernetes' own: lists merge by key.
    Strategic,
}

/// Form for objects: the first entry of `accept` that can be served. Tables of the beta version are answered
/// in the stable one's shape under its own name by no server of today, so they fall to the next entry.
pub fn object_form(accept: Option<&str>) -> Result<ObjectForm, Status> {
    let Some(accept) = accept else {
        return Ok(ObjectForm::Plain);
    };
    for entry in entries(accept) {
        if !entry.is_json() {
            continue;
        }
        match (entry.parameter("as"), entry.parameter("g"), entry.parameter("v")) {
            (None, _, _) => return Ok(ObjectForm::Plain),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => return Ok(ObjectForm::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) => {
                return Ok(ObjectForm::Metadata);
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable(&[JSON]))
}

/// Form for discovery: the first entry of `accept` that can be served.
pub fn discovery_form(accept: Option<&str>) -> Result<DiscoveryForm, Status> {
    let Some(accept) = accept else {
        return Ok(DiscoveryForm::Legacy);
    };
    for entry in entries(accept) {
        if !entry.is_json() {
            continue;
        }
        match (entry.parameter("as"), entry.parameter("g"), entry.parameter("v")) {
            (None, _, _) => return Ok(DiscoveryForm::Legacy),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                return Ok(DiscoveryForm::Aggregated(AggregatedVersion::V2));
            }
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                return Ok(DiscoveryForm::Aggregated(AggregatedVersion::V2Beta1));
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable(&[JSON]))
}

/// Encoding of a request body. Without a header it is JSON, as kubectl's `PUT .../scale` needs; a wrong type
/// is refused.
pub fn body_form(content_type: Option<&str>) -> Result<BodyForm, Status> {
    let Some(content_type) = content_type else {
        return Ok(BodyForm::Json);
    };
    match media_type(content_type).as_str() {
        JSON | "" => Ok(BodyForm::Json),
        PROTOBUF => Ok(BodyForm::Protobuf),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format {other:?} - accepted media types include: {JSON}, {PROTOBUF}"
        ))),
    }
}

/// Kind of a patch by its media type.
pub fn patch_form(content_type: Option<&str>) -> Result<PatchForm, Status> {
    const MERGE: &str = "application/merge-patch+json";
    const JSON_PATCH: &str = "application/json-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    match media_type(content_type.unwrap_or_default()).as_str() {
        MERGE => Ok(PatchForm::Merge),
        JSON_PATCH => Ok(PatchForm::Json),
        STRATEGIC => Ok(PatchForm::Strategic),
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            Err(Status::unsupported_media_type(
                "server-side apply is not supported by this version: field ownership is not tracked; \
             use kubectl apply without --server-side",
            ))
        }
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format {other:?} - accepted media types include: \
             {JSON_PATCH}, {MERGE}, {STRATEGIC}"
        ))),
    }
}

/// One entry of an `Accept` header. Entries are taken in their order; clients of Kubernetes do not weigh them.
struct Entry<'a> {
    media_type: String,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Entry<'_> {
    fn is_json(&self) -> bool {
        matches!(self.media_type.as_str(), JSON | "application/*" | "*/*")
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }
}

fn entries(accept: &str) -> impl Iterator<Item = Entry<'_>> {
    accept.split(',').map(|entry| {
        let parameters = entry
            .split(';')
            .skip(1)
            .filter_map(|parameter| parameter.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        Entry {
            media_type: media_type(entry),
            parameters,
        }
    })
}

/// The media type without its parameters, in lower case.
fn media_type(header: &str) -> String {
    header
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_lists_of_real_clients() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(object_form(Some(table)), Ok(ObjectForm::Table));
        assert_eq!(object_form(Some("application/json, */*")), Ok(ObjectForm::Plain));
        assert_eq!(object_form(None), Ok(ObjectForm::Plain));
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(object_form(Some(protobuf)), Ok(ObjectForm::Plain));
        assert_eq!(
            object_form(Some("application/vnd.kubernetes.protobuf, */*")),
            Ok(ObjectForm::Plain)
        );
        assert_eq!(object_form(Some(PROTOBUF)).unwrap_err().code(), 406);
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(object_form(Some(metadata)), Ok(ObjectForm::Metadata));
        let unknown = "application/json;as=Table;v=v9;g=meta.k8s.io";
        assert_eq!(object_form(Some(unknown)).unwrap_err().code(), 406);
    }

    #[test]
    fn discovery_follows_the_order_of_the_client() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let old =
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(
            discovery_form(Some(new)),
            Ok(DiscoveryForm::Aggregated(AggregatedVersion::V2))
        );
        assert_eq!(
            discovery_form(Some(old)),
            Ok(DiscoveryForm::Aggregated(AggregatedVersion::V2Beta1))
        );
        assert_eq!(
            discovery_form(Some("application/json, */*")),
            Ok(DiscoveryForm::Legacy)
        );
    }

    #[test]
    fn bodies_and_patches() {
        assert_eq!(body_form(None), Ok(BodyForm::Json));
        assert_eq!(
            body_form(Some("application/json; charset=utf-8")),
            Ok(BodyForm::Json)
        );
        assert_eq!(body_form(Some(PROTOBUF)), Ok(BodyForm::Protobuf));
        assert_eq!(body_form(Some("text/plain")).unwrap_err().code(), 415);
        assert_eq!(
            patch_form(Some("application/merge-patch+json")),
            Ok(PatchForm::Merge)
        );
        assert_eq!(patch_form(None).unwrap_err().code(), 415);
        let apply = patch_form(Some("application/apply-patch+yaml")).unwrap_err();
        assert!(apply.message().contains("server-side apply"));
    }
}
