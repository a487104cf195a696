//! Strategic merge: RFC 7386 plus lists that merge by key and directives inside the patch.
//!
//! | directive | where | effect |
//! |---|---|---|
//! | `$patch: replace` | object, or an item of a list | the rest of the object or list replaces the old one |
//! | `$patch: delete` | object, or an item of a list | it is removed |
//! | `$retainKeys: [..]` | object | members that are not named are removed |
//! | `$setElementOrder/F: [..]` | beside list F | order of F after the merge |
//! | `$deleteFromPrimitiveList/F: [..]` | beside list F | values to remove from F |

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::keys::{ListMerge, list_merge};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Why a patch makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StrategicError {
    /// `$patch` has another value than merge, replace or delete.
    #[error("{path}: unknown $patch directive {directive}")]
    Directive { path: String, directive: String },
    /// A directive that wants a list has something else.
    #[error("{path}: {directive} must be a list")]
    NotAList { path: String, directive: String },
    /// An item of a list that merges by key does not have the key.
    #[error("{path}: every item must have the merge key {key}")]
    MissingKey { path: String, key: &'static str },
}

/// Merges `patch` into `current`, an object of `kind`.
pub(super) fn merge(kind: &str, current: Value, patch: Value) -> Result<Value, StrategicError> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Ok(Value::Null);
    };
    let merged = Merge { kind }.objects(current, patch, "")?;
    Ok(Value::Object(merged.unwrap_or_default()))
}

struct Merge<'a> {
    kind: &'a str,
}

impl Merge<'_> {
    /// `None` means that the object is removed.
    fn objects(
        &self,
        mut current: Map<String, Value>,
        mut patch: Map<String, Value>,
        path: &str,
    ) -> Result<Option<Map<String, Value>>, StrategicError> {
        match patch.remove(PATCH) {
            None => {}
            Some(Value::String(directive)) if directive == "merge" => {}
            Some(Value::String(directive)) if directive == "replace" => current = Map::new(),
            Some(Value::String(directive)) if directive == "delete" => return Ok(None),
            Some(other) => {
                return Err(StrategicError::Directive {
                    path: path.to_owned(),
                    directive: other.to_string(),
                });
            }
        }
        let retain = patch
            .remove(RETAIN_KEYS)
            .map(|keys| list(keys, path, RETAIN_KEYS))
            .transpose()?;
        let (directives, fields): (Map<_, _>, Map<_, _>) =
            patch.into_iter().partition(|(key, _)| key.starts_with('$'));
        let mut orders = HashMap::new();
        for (key, value) in directives {
            if let Some(field) = key.strip_prefix(SET_ORDER) {
                orders.insert(field.to_owned(), list(value, path, &key)?);
            } else if let Some(field) = key.strip_prefix(DELETE_FROM) {
                let gone: Vec<String> = list(value, path, &key)?.iter().map(Value::to_string).collect();
                let gone: std::collections::HashSet<String> = gone.into_iter().collect();
                if let Some(Value::Array(items)) = current.get_mut(field) {
                    items.retain(|item| !gone.contains(&item.to_string()));
                }
            } else {
                return Err(StrategicError::Directive {
                    path: path.to_owned(),
                    directive: key,
                });
            }
        }
        for (key, new) in fields {
            let path = join(path, &key);
            let old = current.remove(&key);
            if let Some(merged) = self.values(old, new, &path)? {
                current.insert(key, merged);
            }
        }
        for (field, order) in orders {
            if let Some(Value::Array(items)) = current.get_mut(&field) {
                let merge = list_merge(self.kind, &join(path, &field));
                *items = reorder(std::mem::take(items), &order, merge);
            }
        }
        if let Some(keep) = retain {
            current.retain(|key, _| keep.iter().any(|kept| kept == key.as_str()));
        }
        Ok(Some(current))
    }

    /// `None` means that the member is removed.
    fn values(&self, old: Option<Value>, new: Value, path: &str) -> Result<Option<Value>, StrategicError> {
        match (old, new) {
            (_, Value::Null) => Ok(None),
            (Some(Value::Object(old)), Value::Object(new)) => {
                Ok(self.objects(old, new, path)?.map(Value::Object))
            }
            // Even without a counterpart the patch may carry directives, which must not be stored.
            (_, Value::Object(new)) => Ok(self.objects(Map::new(), new, path)?.map(Value::Object)),
            (Some(Value::Array(old)), Value::Array(new)) => {
                self.lists(old, new, path).map(Value::Array).map(Some)
            }
            (_, Value::Array(new)) => self.lists(Vec::new(), new, path).map(Value::Array).map(Some),
            (_, new) => Ok(Some(new)),
        }
    }

    fn lists(&self, old: Vec<Value>, new: Vec<Value>, path: &str) -> Result<Vec<Value>, StrategicError> {
        match list_merge(self.kind, path) {
            ListMerge::Replace => {
                // Items still may carry directives of a client that thought otherwise.
                new.into_iter()
                    .filter_map(|item| self.values(None, item, path).transpose())
                    .collect()
            }
            ListMerge::Set => {
                let mut merged = old;
                let mut seen: std::collections::HashSet<String> =
                    merged.iter().map(Value::to_string).collect();
                merged.extend(new.into_iter().filter(|item| seen.insert(item.to_string())));
                Ok(merged)
            }
            ListMerge::ByKey(key) => self.keyed_lists(old, new, key, path),
        }
    }

    fn keyed_lists(
        &self,
        old: Vec<Value>,
        new: Vec<Value>,
        key: &'static str,
        path: &str,
    ) -> Result<Vec<Value>, StrategicError> {
        let replaces = |item: &Value| item.get(PATCH).is_some_and(|directive| directive == "replace");
        // An item that is nothing but `$patch: replace` speaks for the whole list. As in Kubernetes the list then is as it is
        // written: agents bring the addresses of both families so, whose key, their type, is one.
        let speaks_for_all = |item: &Value| replaces(item) && item.get(key).is_none();
        if new.iter().any(speaks_for_all) {
            let items = new.into_iter().filter(|item| !speaks_for_all(item));
            return items
                .filter_map(|item| self.values(None, item, path).transpose())
                .collect();
        }

        let mut merged: Vec<Option<Value>> = old.into_iter().map(Some).collect();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (place, item) in merged.iter().enumerate() {
            if let Some(value) = item.as_ref().and_then(|item| item.get(key)) {
                places.insert(value.to_string(), place);
            }
        }
        for item in new {
            let name = item.get(key).map(Value::to_string);
            let name = name.ok_or_else(|| StrategicError::MissingKey {
                path: path.to_owned(),
                key,
            })?;
            match places.get(&name).copied() {
                Some(place) => {
                    let old = merged.get_mut(place).and_then(Option::take);
                    let value = self.values(old, item, path)?;
                    if value.is_none() {
                        places.remove(&name);
                    }
                    if let Some(slot) = merged.get_mut(place) {
                        *slot = value;
                    }
                }
                None => {
                    if let Some(value) = self.values(None, item, path)? {
                        places.insert(name, merged.len());
                        merged.push(Some(value));
                    }
                }
            }
        }
        Ok(merged.into_iter().flatten().collect())
    }
}

/// Puts items into `order`. Items that the order does not name stay in front of the first named item that
/// they stood in front of.
fn reorder(items: Vec<Value>, order: &[Value], merge: ListMerge) -> Vec<Value> {
    let identity = |value: &Value| match merge {
        // The order of a keyed list names items by an object with just the key.
        ListMerge::ByKey(key) => value.get(key).map(Value::to_string).unwrap_or_default(),
        ListMerge::Set | ListMerge::Replace => value.to_string(),
    };
    let ranks: HashMap<String, usize> = order.iter().map(&identity).zip(0..).collect();
    let mut named = Vec::new();
    let mut others = Vec::new();
    for (place, item) in items.into_iter().enumerate() {
        match ranks.get(&identity(&item)) {
            Some(rank) => named.push((*rank, place, item)),
            None => others.push((place, item)),
        }
    }
    named.sort_by_key(|(rank, _, _)| *rank);
    let mut ordered = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, place, item) in named {
        while let Some((_, other)) = others.next_if(|(other_place, _)| *other_place < place) {
            ordered.push(other);
        }
        ordered.push(item);
    }
    ordered.extend(others.map(|(_, other)| other));
    ordered
}

fn list(value: Value, path: &str, directive: &str) -> Result<Vec<Value>, StrategicError> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(StrategicError::NotAList {
            path: path.to_owned(),
            directive: directive.to_owned(),
        }),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(current: Value, patch: Value) -> Result<Value, StrategicError> {
        merge("Pod", current, patch)
    }

    #[test]
    fn lists_merge_by_key() {
        let current = json!({"spec": {"containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]},
            {"name": "b", "image": "1"},
        ]}});
        let patch = json!({"spec": {"containers": [
            {"name": "b", "image": "2"},
            {"name": "c", "image": "3"},
            {"name": "a", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}]},
        ]}});
        let expected = json!({"spec": {"containers": [
            {"name": "a", "image": "1", "env": [{"name": "X", "value": "2"}, {"name": "Y", "value": "3"}]},
            {"name": "b", "image": "2"},
            {"name": "c", "image": "3"},
        ]}});
        assert_eq!(pod(current, patch), Ok(expected));
    }

    #[test]
    fn lists_without_a_key_are_replaced() {
        let current =
            json!({"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "c", "args": ["1"]}]}});
        let patch =
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "c", "args": ["2"]}]}});
        assert_eq!(pod(current, patch.clone()), Ok(patch));
    }

    #[test]
    fn deleting_and_replacing_items_and_lists() {
        let current = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "image": "1"}]}});
        let delete = json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}});
        assert_eq!(
            pod(current.clone(), delete),
            Ok(json!({"spec": {"containers": [{"name": "b", "image": "1"}]}}))
        );
        let replace_one = json!({"spec": {"containers": [{"name": "b", "$patch": "replace", "args": []}]}});
        assert_eq!(
            pod(current.clone(), replace_one),
            Ok(json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "args": []}]}}))
        );
        let replace_all = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}});
        assert_eq!(
            pod(current.clone(), replace_all),
            Ok(json!({"spec": {"containers": [{"name": "z"}]}}))
        );
        let drop_member = json!({"spec": {"$patch": "delete"}});
        assert_eq!(pod(current, drop_member), Ok(json!({})));
    }

    #[test]
    fn a_pod_that_moved_to_another_address_has_that_one_only() {
        let current = json!({"status": {"podIPs": [{"ip": "10.88.0.2"}, {"ip": "fd00::2"}]}});
        let merged = json!({"status": {"podIPs": [{"ip": "10.88.0.3"}]}});
        let three = pod(current.clone(), merged).unwrap();
        assert_eq!(three["status"]["podIPs"].as_array().map(Vec::len), Some(3));
        let replaced =
            json!({"status": {"podIPs": [{"$patch": "replace"}, {"ip": "10.88.0.3"}, {"ip": "fd00::2"}]}});
        assert_eq!(
            pod(current, replaced),
            Ok(json!({"status": {"podIPs": [{"ip": "10.88.0.3"}, {"ip": "fd00::2"}]}}))
        );
    }

    #[test]
    fn a_list_that_replaces_another_is_as_it_is_written() {
        let current = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}});
        let patch = json!({"status": {"addresses": [
            {"$patch": "replace"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "ExternalIP", "$patch": "delete"},
        ]}});
        let both = json!({"status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]}});
        assert_eq!(merge("Node", current, patch), Ok(both));
    }

    #[test]
    fn volumes_keep_only_the_new_source() {
        let current = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let patch = json!({"spec": {"volumes": [
            {"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}},
        ]}});
        assert_eq!(
            pod(current, patch),
            Ok(json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}))
        );
    }

    #[test]
    fn order_is_set_and_strangers_keep_their_place() {
        let current = json!({"spec": {"containers": [{"name": "side"}, {"name": "a"}, {"name": "b"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "new"}],
            "containers": [{"name": "new"}],
        }});
        let merged = pod(current, patch).unwrap();
        let names: Vec<_> = merged["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].clone())
            .collect();
        assert_eq!(names, ["side", "b", "a", "new"]);
    }

    #[test]
    fn sets_grow_and_shrink() {
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let add = json!({"metadata": {"finalizers": ["b", "c"]}});
        assert_eq!(
            pod(current.clone(), add),
            Ok(json!({"metadata": {"finalizers": ["a", "b", "c"]}}))
        );
        let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(
            pod(current, remove),
            Ok(json!({"metadata": {"finalizers": ["b"]}}))
        );
    }

    #[test]
    fn directives_are_never_stored_and_nonsense_is_refused() {
        let patch =
            json!({"spec": {"affinity": {"$patch": "replace", "x": [{"$patch": "delete"}, {"y": 1}]}}});
        assert_eq!(
            pod(json!({}), patch),
            Ok(json!({"spec": {"affinity": {"x": [{"y": 1}]}}}))
        );
        for bad in [
            json!({"$patch": "explode"}),
            json!({"$unknown": 1}),
            json!({"spec": {"$setElementOrder/containers": {}}}),
            json!({"spec": {"containers": [{"image": "no name"}]}}),
        ] {
            assert!(pod(json!({"spec": {}}), bad.clone()).is_err(), "{bad}");
        }
    }
}
