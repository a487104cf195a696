//! Selectors as Calico writes them.
//!
//! An expression may have 1024 characters. What a longer one says is a conjunction, and is said by several that all have to
//! hold: an end of a rule has `selector` and `notSelector`, which is the rest turned round. A policy has `selector` alone. It
//! then selects more pods than are meant, and its rules ask for the rest at the pod's own end: of the others they say
//! nothing, and those are denied by default as it is.

//! A network set with the labels of the pods that are meant is an end as well as they are. Where a namespace has sets,
//! expressions ask for pods.

use api::selector::Labels;
use policies_ir::selector::MAX_LENGTH;
use serde_json::{Value, json};

use super::observe::PodSelector;

/// What pods have and network sets have not.
const IS_POD: &str = "projectcalico.org/orchestrator == 'k8s'";

/// A condition, and its opposite.
struct Term {
    holds: String,
    fails: String,
}

/// The other end of a rule, in a namespace that has sets with these labels.
pub(super) fn peer(selector: &PodSelector, sets: &[Labels]) -> Value {
    let [first, rest] = parts(selector, sets);
    let is_set_too = sets.iter().any(|labels| selector.finds(labels));
    match rest.is_empty() {
        true => json!({"selector": of_pods(&all(&first), is_set_too)}),
        false => far(&first, &rest, sets),
    }
}

/// A policy's selector, and the own end of its rules, if it takes one.
pub(super) fn subject(selector: &PodSelector, sets: &[Labels]) -> (String, Option<Value>) {
    let [first, second, rest] = parts(selector, sets);
    let own = match (second.is_empty(), rest.is_empty()) {
        (true, _) => None,
        (false, true) => Some(json!({"selector": of_pods(&all(&second), !sets.is_empty())})),
        (false, false) => Some(far(&second, &rest, sets)),
    };
    (all(&first), own)
}

/// An end that takes two expressions.
fn far(first: &[Term], rest: &[Term], sets: &[Labels]) -> Value {
    let of_pods = |expression: &str| of_pods(expression, !sets.is_empty());
    let excluded = match sets.is_empty() {
        true => not_all(rest),
        false => format!("({})", not_all(rest)),
    };
    json!({"selector": of_pods(&all(first)), "notSelector": of_pods(&excluded)})
}

fn of_pods(expression: &str, asks: bool) -> String {
    match asks {
        true => format!("{expression}{AND}{IS_POD}"),
        false => expression.to_owned(),
    }
}

/// Conditions in as few expressions as hold them; what is left over is in the last.
fn parts<const N: usize>(selector: &PodSelector, sets: &[Labels]) -> [Vec<Term>; N] {
    let room = match sets.is_empty() {
        true => MAX_LENGTH,
        // Also for the parentheses around what is excluded.
        false => MAX_LENGTH - AND.len() - IS_POD.len() - "()".len(),
    };
    let labels = selector.labels.iter().map(|(key, value)| Term {
        holds: format!("{key} == '{value}'"),
        fails: format!("{key} != '{value}'"),
    });
    let absent = selector.absent.iter().map(|key| Term {
        holds: format!("!has({key})"),
        fails: format!("has({key})"),
    });
    let mut parts = [const { Vec::new() }; N];
    let (mut part, mut length) = (0, 0);
    for term in labels.chain(absent) {
        let own = AND.len() + term.holds.len().max(term.fails.len());
        // The first has nothing before it.
        if length + own > AND.len() + room && part + 1 < N {
            (part, length) = (part + 1, 0);
        }
        length += own;
        if let Some(terms) = parts.get_mut(part) {
            terms.push(term);
        }
    }
    parts
}

const AND: &str = " && ";
const OR: &str = " || ";

fn all(terms: &[Term]) -> String {
    let holds: Vec<&str> = terms.iter().map(|term| term.holds.as_str()).collect();
    match holds.is_empty() {
        true => "all()".to_owned(),
        false => holds.join(AND),
    }
}

fn not_all(terms: &[Term]) -> String {
    let fails: Vec<&str> = terms.iter().map(|term| term.fails.as_str()).collect();
    fails.join(OR)
}

#[cfg(test)]
mod tests {
    use policies_ir::selector::Expression;

    use super::*;

    fn without(keys: usize) -> PodSelector {
        PodSelector {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            absent: (0..keys).map(|i| format!("role-{i:04}")).collect(),
        }
    }

    /// Every expression is one, and all there is to say is said once.
    #[test]
    fn what_is_too_long_is_said_by_several() {
        assert_eq!(
            subject(&without(1), &[]),
            ("app == 'web' && !has(role-0000)".to_owned(), None)
        );
        assert_eq!(subject(&PodSelector::default(), &[]).0, "all()");
        assert_eq!(peer(&without(0), &[]), json!({"selector": "app == 'web'"}));
        let some_set = [Labels::new()];
        let sets = [&[][..], &some_set];
        for (keys, sets) in [50, 55, 60, 100, 150]
            .into_iter()
            .flat_map(|keys| sets.map(|sets| (keys, sets)))
        {
            let selector = without(keys);
            let (first, own) = subject(&selector, sets);
            let own = own.unwrap_or_default();
            let peer = peer(&selector, sets);
            let said = |texts: &[&Value]| {
                let texts = texts.iter().filter_map(|text| text.as_str());
                let texts: Vec<&str> = texts.collect();
                assert!(
                    texts.iter().all(|text| Expression::parse(text).is_ok()),
                    "{texts:?}"
                );
                texts
                    .iter()
                    .map(|text| text.matches("has(").count())
                    .sum::<usize>()
            };
            let texts = [&json!(first), &own["selector"], &own["notSelector"]];
            assert_eq!(said(&texts), keys);
            if keys <= 100 {
                assert_eq!(said(&[&peer["selector"], &peer["notSelector"]]), keys);
            }
        }
    }

    #[test]
    fn pods_are_asked_for_where_a_set_would_be_found() {
        let labels = |app: &str| Labels::from([("app".to_owned(), app.to_owned())]);
        let peer = |sets: &[Labels]| peer(&without(0), sets);
        assert_eq!(
            peer(&[labels("db"), Labels::new()]),
            json!({"selector": "app == 'web'"})
        );
        let asks = json!({"selector": "app == 'web' && projectcalico.org/orchestrator == 'k8s'"});
        assert_eq!(peer(&[labels("db"), labels("web")]), asks);
        // What a set lacks it has not.
        let absent = PodSelector {
            labels: Labels::new(),
            absent: ["app".to_owned()].into(),
        };
        let found = super::peer(&absent, &[Labels::new()]);
        assert_eq!(
            found,
            json!({"selector": "!has(app) && projectcalico.org/orchestrator == 'k8s'"})
        );
    }
}
