//! JSON values to Rust types, with the paths of members that the type does not have.
//!
//! Unlike plain `serde_json::from_value` this follows Go's habits where Kubernetes clients rely on them:
//! `null` means absent, a quantity may be a number, and members that a type does not know are left out and
//! reported instead of lost or refused. It works because derived and generated types announce their members
//! to `deserialize_struct`.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{StrDeserializer, StringDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::Value;

use crate::json::{Path, Paths};

/// What does not fit the type, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeError {
    /// Path of the member; empty for the document.
    path: Option<String>,
    problem: String,
}

/// Reads `value` as a `T`. Returns it with the paths of members that `T` does not have.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<String>), TypeError> {
    let unknown = Paths::default();
    let typed = T::deserialize(Reader {
        value,
        path: Path::Root,
        unknown: &unknown,
    })?;
    Ok((typed, unknown.into_inner()))
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_deref() {
            None | Some("") => f.write_str(&self.problem),
            Some(path) => write!(f, "{path}: {}", self.problem),
        }
    }
}

impl std::error::Error for TypeError {}

impl serde::de::Error for TypeError {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self {
            path: None,
            problem: problem.to_string(),
        }
    }
}

impl TypeError {
    /// Keeps the innermost path: the outer ones see the error later.
    fn at(mut self, path: Path<'_>) -> Self {
        self.path.get_or_insert_with(|| path.to_string());
        self
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    value: &'a Value,
    path: Path<'a>,
    unknown: &'a Paths,
}

impl<'a> Reader<'a> {
    fn visit<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        known: Option<&'static [&'static str]>,
    ) -> Result<V::Value, TypeError> {
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (_, Some(value), _) => visitor.visit_i64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                (None, None, None) => Err(serde::de::Error::custom("number out of range")),
            },
            Value::String(value) => visitor.visit_str(value),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                parent: self,
            }),
            Value::Object(map) => visitor.visit_map(Members {
                members: map.iter(),
                known,
                value: None,
                parent: self,
            }),
        };
        result.map_err(|error| error.at(self.path))
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        self.visit(visitor, None)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Number(number) if name == "Quantity" => {
                let text: StringDeserializer<TypeError> = number.to_string().into_deserializer();
                visitor.visit_newtype_struct(text)
            }
            _ => visitor.visit_newtype_struct(self),
        }
        .map_err(|error| error.at(self.path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Object(_) => self.visit(visitor, Some(fields)),
            Value::Null => Reader {
                value: &Value::Object(serde_json::Map::new()),
                ..self
            }
            .visit(visitor, None),
            _ => self.visit(visitor, None),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        let result = match self.value {
            Value::String(text) => {
                let variant: StrDeserializer<'_, TypeError> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            _ => Err(serde::de::Error::custom("expected one of a fixed set of strings")),
        };
        result.map_err(|error| error.at(self.path))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    parent: Reader<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TypeError> {
        let Some((index, value)) = self.items.next() else {
            return Ok(None);
        };
        let path = Path::Index(&self.parent.path, index);
        seed.deserialize(Reader {
            value,
            path,
            unknown: self.parent.unknown,
        })
        .map(Some)
    }
}

struct Members<'a> {
    members: serde_json::map::Iter<'a>,
    /// Members of the type that is read; absent for a map with free keys.
    known: Option<&'static [&'static str]>,
    value: Option<(&'a str, &'a Value)>,
    parent: Reader<'a>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        for (key, value) in self.members.by_ref() {
            if let Some(known) = self.known {
                if !known.contains(&key.as_str()) {
                    self.parent.unknown.push(Path::Field(&self.parent.path, key));
                    continue;
                }
                if value.is_null() {
                    continue;
                }
            }
            self.value = Some((key, value));
            let key: StrDeserializer<'_, TypeError> = key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, TypeError> {
        let (key, value) = self
            .value
            .take()
            .ok_or_else(|| serde::de::Error::custom("value asked for before its key"))?;
        let path = Path::Field(&self.parent.path, key);
        // A member of a map may be null where Go has the empty string.
        let value = if value.is_null() {
            &Value::String(String::new())
        } else {
            value
        };
        seed.deserialize(Reader {
            value,
            path,
            unknown: self.parent.unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use api::palisade::ImagePolicy;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_members_are_left_out_and_reported() {
        let (pod, unknown) = read::<Pod>(&json!({
            "metadata": {"name": "x", "colour": 1, "labels": {"free": "key"}, "creationTimestamp": null},
            "spec": {"containers": [{"name": "c"}, {"name": "d", "imag": "x"}], "nodeNam": {}},
        }))
        .unwrap();
        assert_eq!(
            unknown,
            ["metadata.colour", "spec.containers[1].imag", "spec.nodeNam"]
        );
        assert_eq!(pod.spec.unwrap().containers.len(), 2);
        let (_, unknown) = read::<ImagePolicy>(&json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ImagePolicy", "metadata": {"name": "x"},
            "spec": {"severityThreshold": "LOW", "exemption": []},
        }))
        .unwrap();
        assert_eq!(unknown, ["spec.exemption"]);
    }

    #[test]
    fn quantities_may_be_numbers_and_null_means_absent() {
        let (pod, _) = read::<Pod>(&json!({
            "metadata": {"annotations": {"a": null}},
            "spec": {"containers": [{"name": "c", "args": null, "resources": {"limits": {"cpu": 2, "memory": 0.5}}}]},
        }))
        .unwrap();
        assert_eq!(pod.metadata.annotations.unwrap()["a"], "");
        let limits = pod
            .spec
            .unwrap()
            .containers
            .remove(0)
            .resources
            .unwrap()
            .limits
            .unwrap();
        assert_eq!(
            (limits["cpu"].0.as_str(), limits["memory"].0.as_str()),
            ("2", "0.5")
        );
    }

    #[test]
    fn wrong_types_name_their_place() {
        let error = read::<Pod>(&json!({
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": "http"}]}]},
        }))
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("spec.containers[0].ports[0].containerPort: invalid type: string"),
            "{text}"
        );
        let error = read::<ImagePolicy>(&json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ImagePolicy", "metadata": {"name": "x"},
            "spec": {"severityThreshold": "SEVERE"},
        }))
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("spec.severityThreshold: unknown variant"),
            "{error}"
        );
    }
}
