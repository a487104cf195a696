//! Kubernetes label selectors: the object form (`matchLabels`, `matchExpressions`) and the text form that
//! stands in URLs (`a=b,c in (d,e),!f,g>1`). Both become [`LabelSelector`].

use std::{collections::BTreeMap, str::FromStr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// All requirements must hold; without any, everything matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LabelSelector {
    /// The requirements.
    pub requirements: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// The condition.
    pub operator: Operator,
}

/// Condition on a label's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// Present with one of these values.
    In(Vec<String>),
    /// Absent, or present with none of these values.
    NotIn(Vec<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present with a larger number. In the text form only.
    GreaterThan(i64),
    /// Present with a smaller number. In the text form only.
    LessThan(i64),
}

/// Why a selector is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// An operator that Kubernetes does not have.
    #[error("operator {0:?} must be In, NotIn, Exists or DoesNotExist")]
    Operator(String),
    /// `In` and `NotIn` need values, `Exists` and `DoesNotExist` must not have any.
    #[error("operator {operator} of key {key:?} {problem}")]
    Values {
        /// The label key.
        key: String,
        /// The operator.
        operator: &'static str,
        /// What is wrong with the values.
        problem: &'static str,
    },
    /// Not a qualified label name.
    #[error("label key {0:?} must be a qualified name: [prefix/]name of at most 63 characters")]
    Key(String),
    /// Not a label value.
    #[error(
        "label value {0:?} must be at most 63 characters, alphanumeric at both ends, with '-', '_', '.' between"
    )]
    Value(String),
    /// The text form does not parse.
    #[error("selector {text:?}: {problem}")]
    Syntax {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl LabelSelector {
    /// Whether `labels` satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    /// Whether `labels` satisfy this requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            // What is no number is neither larger nor smaller than one.
            Operator::GreaterThan(bound) => number(value).is_some_and(|number| number > *bound),
            Operator::LessThan(bound) => number(value).is_some_and(|number| number < *bound),
        }
    }
}

fn number(value: Option<&String>) -> Option<i64> {
    value?.parse().ok()
}

impl TryFrom<&meta::LabelSelector> for LabelSelector {
    type Error = SelectorError;

    fn try_from(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(requirement(key, Operator::In(vec![value.clone()]))?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let (name, operator) = match expression.operator.as_str() {
                "In" => ("In", Operator::In(values.clone())),
                "NotIn" => ("NotIn", Operator::NotIn(values.clone())),
                "Exists" => ("Exists", Operator::Exists),
                "DoesNotExist" => ("DoesNotExist", Operator::DoesNotExist),
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let wants_values = matches!(operator, Operator::In(_) | Operator::NotIn(_));
            let problem = match (wants_values, values.is_empty()) {
                (true, true) => Some("needs at least one value"),
                (false, false) => Some("must not have values"),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(SelectorError::Values {
                    key: expression.key.clone(),
                    operator: name,
                    problem,
                });
            }
            requirements.push(requirement(&expression.key, operator)?);
        }
        Ok(Self { requirements })
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            let term = term.trim();
            if term.is_empty() {
                if text.trim().is_empty() {
                    break;
                }
                return Err(syntax(text, "empty term between commas"));
            }
            requirements.push(parse_term(text, term)?);
        }
        Ok(Self { requirements })
    }
}

/// Whether `key` is a qualified label name: optional DNS prefix and `/`, then at most 63 characters.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_ok = prefix.is_none_or(|p| {
        p.len() <= 253
            && p.split('.').all(|label| {
                let bytes = label.as_bytes();
                let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
                bytes.first().is_some_and(edge)
                    && bytes.last().is_some_and(edge)
                    && bytes.iter().all(|b| edge(b) || *b == b'-')
            })
    });
    prefix_ok && !name.is_empty() && is_label_value(name)
}

/// Whether `value` is a label value: empty, or at most 63 characters, alphanumeric at both ends.
pub fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn requirement(key: &str, operator: Operator) -> Result<Requirement, SelectorError> {
    if !is_label_key(key) {
        return Err(SelectorError::Key(key.to_owned()));
    }
    if let Operator::In(values) | Operator::NotIn(values) = &operator
        && let Some(bad) = values.iter().find(|v| !is_label_value(v))
    {
        return Err(SelectorError::Value(bad.clone()));
    }
    Ok(Requirement {
        key: key.to_owned(),
        operator,
    })
}

/// Splits at commas that are not inside parentheses.
fn split_terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    text.split(move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn parse_term(text: &str, term: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = term.strip_prefix('!') {
        return requirement(key.trim(), Operator::DoesNotExist);
    }
    if let Some(rest) = term.strip_suffix(')') {
        let (head, values) = rest
            .split_once('(')
            .ok_or_else(|| syntax(text, "')' without '('"))?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => requirement(key, Operator::In(values)),
            (Some(key), Some("notin"), None) => requirement(key, Operator::NotIn(values)),
            _ => Err(syntax(text, "expected KEY in (...) or KEY notin (...)")),
        };
    }
    // Longest operator first, so that `a==b` is not read as the key `a` and the value `=b`.
    for operator in ["!=", "==", "="] {
        if let Some((key, value)) = term.split_once(operator) {
            let values = vec![value.trim().to_owned()];
            let operator = if operator == "!=" {
                Operator::NotIn(values)
            } else {
                Operator::In(values)
            };
            return requirement(key.trim(), operator);
        }
    }
    for (sign, operator) in [
        ('>', Operator::GreaterThan as fn(i64) -> Operator),
        ('<', Operator::LessThan),
    ] {
        if let Some((key, bound)) = term.split_once(sign) {
            let bound = bound.trim();
            if !is_label_value(bound) {
                return Err(SelectorError::Value(bound.to_owned()));
            }
            let bound = bound.parse().ok();
            let bound = bound.ok_or_else(|| syntax(text, "'>' and '<' compare with a whole number"))?;
            return requirement(key.trim(), operator(bound));
        }
    }
    requirement(term, Operator::Exists)
}

fn syntax(text: &str, problem: &'static str) -> SelectorError {
    SelectorError::Syntax {
        text: text.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &[(&str, &str)], expected: bool) {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let parsed: LabelSelector = selector.parse().unwrap();
        assert_eq!(parsed.matches(&labels), expected, "{selector} on {labels:?}");
    }

    #[test]
    fn text_form_matches_like_kubernetes() {
        check("", &[], true);
        check("app=web", &[("app", "web")], true);
        check("app==web,tier!=db", &[("app", "web")], true);
        check("app in (web, api)", &[("app", "api")], true);
        check("app notin (web)", &[], true);
        check("!app", &[("app", "")], false);
        check("app", &[("app", "")], true);
        check("a in (b,c),d", &[("a", "c"), ("d", "")], true);
        check("app=", &[("app", "")], true);
        check("rank>4,rank<6", &[("rank", "5")], true);
        check("rank > 5", &[("rank", "5")], false);
        check("rank<10", &[("rank", "9")], true);
        for labels in [&[][..], &[("rank", "high")], &[("rank", "")]] {
            check("rank>0", labels, false);
            check("rank<10", labels, false);
        }
    }

    #[test]
    fn text_form_refuses_nonsense() {
        for bad in [
            "a=b,,c=d",
            "a in b)",
            "a b (c)",
            "=x",
            "a=b c",
            "-a",
            "a in (b",
            ",",
            "a>b",
            "a>=1",
            "a>-1",
            "a>",
            "<1",
            "a>1<2",
            "a>9223372036854775808",
        ] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn object_form_needs_values_where_kubernetes_does() {
        let expression = |operator: &str, values: Option<Vec<String>>| meta::LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![meta::LabelSelectorRequirement {
                key: "a".to_owned(),
                operator: operator.to_owned(),
                values,
            }]),
        };
        assert!(LabelSelector::try_from(&expression("In", None)).is_err());
        assert!(LabelSelector::try_from(&expression("Exists", Some(vec!["x".to_owned()]))).is_err());
        assert!(LabelSelector::try_from(&expression("Near", None)).is_err());
        assert!(LabelSelector::try_from(&expression("DoesNotExist", None)).is_ok());
    }
}
