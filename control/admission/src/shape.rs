//! Which parts of a JSON value are honoured. Everything that a [`Shape`] does not name is refused, so that a
//! field which nobody thought of cannot be dropped on the way to the node.

use control_wire::Cause;
use serde_json::Value;

use crate::Problems;

/// What of a value is honoured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// All of it.
    Any,
    /// An object with these members; others are refused.
    Members(&'static [(&'static str, Shape)]),
    /// What the first honours, which is an object, and these members.
    Both(&'static Shape, &'static [(&'static str, Shape)]),
    /// A list of such values.
    List(&'static Shape),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// Nothing of it, for this reason.
    Refused(&'static str),
}

impl Shape {
    /// The shape of a member of an object.
    fn member(&self, name: &str) -> Option<Self> {
        let find = |members: &'static [(&'static str, Self)]| {
            let found = members.iter().find(|(known, _)| *known == name);
            found.map(|(_, shape)| *shape)
        };
        match self {
            Self::Members(members) => find(members),
            Self::Both(first, members) => find(members).or_else(|| first.member(name)),
            Self::Any | Self::List(_) | Self::OneOf(_) | Self::Refused(_) => None,
        }
    }
}

/// Notes everything in `value` that is not honoured. A value that says nothing (null, false, 0, empty) is
/// the same as an absent one.
pub(crate) fn check(value: &Value, shape: &Shape, path: &str, problems: &mut Problems) {
    if says_nothing(value) {
        return;
    }
    match shape {
        Shape::Any => {}
        Shape::Refused(why) => problems.push(unsupported(path, why)),
        Shape::OneOf(texts) => {
            if !value.as_str().is_some_and(|text| texts.contains(&text)) {
                problems.push(Cause::not_supported(
                    path,
                    value.as_str().unwrap_or_default(),
                    texts,
                ));
            }
        }
        Shape::List(of) => match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    check(item, of, &format!("{path}[{index}]"), problems);
                }
            }
            _ => problems.push(unsupported(path, "must be a list")),
        },
        Shape::Members(_) | Shape::Both(..) => match value {
            Value::Object(map) => {
                for (key, member) in map {
                    let shape = shape.member(key).unwrap_or(Shape::Refused(""));
                    check(member, &shape, &format!("{path}.{key}"), problems);
                }
            }
            _ => problems.push(unsupported(path, "must be an object")),
        },
    }
}

/// The refusal of a field.
pub(crate) fn unsupported(path: &str, why: &str) -> Cause {
    let colon = if why.is_empty() { "" } else { ": " };
    Cause::forbidden(path, format!("not supported by this version{colon}{why}"))
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_named_is_refused_and_what_says_nothing_is_not() {
        const SHAPE: Shape = Shape::Members(&[
            ("a", Shape::Any),
            ("l", Shape::List(&Shape::Members(&[("x", Shape::OneOf(&["1"]))]))),
            ("r", Shape::Refused("because")),
        ]);
        let mut problems = Problems::default();
        let value = json!({
            "a": {"free": 1}, "l": [{"x": "1"}, {"x": "2", "y": false}, {"z": 1}], "r": true,
            "off": false, "zero": 0, "none": null, "empty": {}, "list": [], "text": "", "new": "field",
        });
        check(&value, &SHAPE, "s", &mut problems);
        let mut found: Vec<String> = problems.causes.iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "s.l[1].x: Unsupported value: \"2\": supported values: \"1\"",
                "s.l[2].z: Forbidden: not supported by this version",
                "s.new: Forbidden: not supported by this version",
                "s.r: Forbidden: not supported by this version: because",
            ]
        );
    }
}
