//! JSON text to values, with the paths of duplicate keys: the last one wins as in Kubernetes, but strict
//! validation must be able to refuse it. Depth is bounded by `serde_json` (128), size by the body limit.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Paths that are listed in one answer at most; a hostile body must not blow it up.
const MAX_REPORTED: usize = 64;

/// Place inside a document, as a list that lives on the stack of the walk.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    /// The document itself.
    Root,
    /// Member of an object.
    Field(&'a Path<'a>, &'a str),
    /// Element of an array.
    Index(&'a Path<'a>, usize),
}

/// Paths collected during a walk, bounded.
#[derive(Default)]
pub(crate) struct Paths(RefCell<Vec<String>>);

/// Parses one document. Returns it with the paths of keys that occur twice in an object.
pub(crate) fn parse(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let duplicates = Paths::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Seed {
        path: Path::Root,
        duplicates: &duplicates,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates.into_inner()))
}

impl Paths {
    pub(crate) fn push(&self, path: Path<'_>) {
        let mut paths = self.0.borrow_mut();
        if paths.len() < MAX_REPORTED {
            paths.push(path.to_string());
        }
    }

    pub(crate) fn into_inner(self) -> Vec<String> {
        self.0.into_inner()
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, key) => f.write_str(key),
            Self::Field(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Seed<'a> {
    path: Path<'a>,
    duplicates: &'a Paths,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let seed = Seed {
                path: Path::Index(&self.path, list.len()),
                duplicates: self.duplicates,
            };
            match items.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = Path::Field(&self.path, &key);
            let value = entries.next_value_seed(Seed {
                path,
                duplicates: self.duplicates,
            })?;
            if map.contains_key(&key) {
                self.duplicates.push(path);
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_found_at_any_depth() {
        let text = br#"{"a":1,"b":{"c":1,"c":2},"l":[{"x":1},{"y":1,"y":2}],"a":3}"#;
        let (value, duplicates) = parse(text).unwrap();
        assert_eq!(value, json!({"a": 3, "b": {"c": 2}, "l": [{"x": 1}, {"y": 2}]}));
        assert_eq!(duplicates, ["b.c", "l[1].y", "a"]);
    }

    #[test]
    fn depth_size_of_report_and_trailing_text_are_bounded() {
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(10_000));
        assert_eq!(parse(many.as_bytes()).unwrap().1.len(), MAX_REPORTED);
        assert!(parse(b"{} {}").is_err());
    }
}
