//! Calico's selector grammar as a table: what is an expression, what it selects, and how it is written.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use policies_ir::{
    policy::{ServiceAccount, Workload, WorkloadKind},
    selector::{Expression, ExpressionError, MAX_LABEL_LENGTH, MAX_LENGTH},
};

/// Labels as `key=value key=value`; `-` is none.
fn matches(expression: &Expression, labels: &str) -> bool {
    let pairs = labels.split_whitespace().filter(|pair| *pair != "-");
    let labels: BTreeMap<&str, &str> = pairs.filter_map(|pair| pair.split_once('=')).collect();
    expression.matches(&|key| labels.get(key).copied())
}

fn parse(text: &str) -> Expression {
    Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Text, canonical form, labels that match, labels that do not.
type Row = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const ROWS: &[Row] = &[
    ("", "all()", &["-", "a=b"], &[]),
    (" \t ", "all()", &["-"], &[]),
    ("all()", "all()", &["-", "a=b"], &[]),
    ("all( )", "all()", &["-"], &[]),
    ("!all()", "!all()", &[], &["-", "a=b"]),
    ("has(a)", "has(a)", &["a=", "a=b"], &["-", "b=a"]),
    ("has( a )", "has(a)", &["a=b"], &["-"]),
    ("!has(a)", "!has(a)", &["-", "b=a"], &["a=", "a=b"]),
    ("!!has(a)", "has(a)", &["a="], &["-"]),
    ("!!!has(a)", "!has(a)", &["-"], &["a="]),
    ("! ! has(a)", "has(a)", &["a="], &["-"]),
    ("a == 'b'", "a == \"b\"", &["a=b"], &["-", "a=", "a=B", "a=bb"]),
    ("a==\"b\"", "a == \"b\"", &["a=b"], &["-"]),
    ("a == ''", "a == \"\"", &["a="], &["-", "a=b"]),
    // A missing label is different from every value.
    ("a != 'b'", "!a == \"b\"", &["-", "a=", "a=c"], &["a=b"]),
    ("!a == 'b'", "!a == \"b\"", &["-", "a=c"], &["a=b"]),
    ("!a != 'b'", "a == \"b\"", &["a=b"], &["-", "a=c"]),
    (
        "a in {'b', \"c\"}",
        "a in {\"b\", \"c\"}",
        &["a=b", "a=c"],
        &["-", "a=", "a=d"],
    ),
    ("a in{'c','b','b'}", "a in {\"b\", \"c\"}", &["a=b"], &["-"]),
    ("a in {'b',}", "a in {\"b\"}", &["a=b"], &["-"]),
    ("a in {}", "a in {}", &[], &["-", "a=", "a=b"]),
    ("a not in {'b'}", "!a in {\"b\"}", &["-", "a=c"], &["a=b"]),
    ("a notin {'b'}", "!a in {\"b\"}", &["-", "a=c"], &["a=b"]),
    ("a not in {}", "!a in {}", &["-", "a="], &[]),
    ("!a in {'b'}", "!a in {\"b\"}", &["-", "a=c"], &["a=b"]),
    (
        "a contains 'b'",
        "a contains \"b\"",
        &["a=abc", "a=b"],
        &["-", "a=", "a=ac"],
    ),
    ("a contains ''", "a contains \"\"", &["a=", "a=b"], &["-"]),
    (
        "a starts with 'b'",
        "a starts with \"b\"",
        &["a=bc"],
        &["-", "a=cb"],
    ),
    ("a startswith 'b'", "a starts with \"b\"", &["a=bc"], &["-"]),
    ("a starts \t with\"b\"", "a starts with \"b\"", &["a=bc"], &["-"]),
    ("a ends with 'b'", "a ends with \"b\"", &["a=cb"], &["-", "a=bc"]),
    ("a endswith 'b'", "a ends with \"b\"", &["a=cb"], &["-"]),
    ("!a contains 'b'", "!a contains \"b\"", &["-", "a=c"], &["a=b"]),
    // && binds tighter than ||.
    (
        "has(a) || has(b) && has(c)",
        "(has(a) || (has(b) && has(c)))",
        &["a=", "b= c="],
        &["-", "b=", "c="],
    ),
    (
        "(has(a) || has(b)) && has(c)",
        "((has(a) || has(b)) && has(c))",
        &["a= c="],
        &["a=", "c="],
    ),
    (
        "!(has(a) && has(b))",
        "!(has(a) && has(b))",
        &["-", "a="],
        &["a= b="],
    ),
    (
        "!has(a) && has(b)",
        "(!has(a) && has(b))",
        &["b="],
        &["-", "a= b="],
    ),
    ("((has(a)))", "has(a)", &["a="], &["-"]),
    ("!(!has(a))", "has(a)", &["a="], &["-"]),
    // Words of the grammar are labels where a label stands.
    ("in == 'in'", "in == \"in\"", &["in=in"], &["-"]),
    ("in in {'in'}", "in in {\"in\"}", &["in=in"], &["-"]),
    ("not not in {'a'}", "!not in {\"a\"}", &["-"], &["not=a"]),
    ("has == 'a'", "has == \"a\"", &["has=a"], &["-"]),
    ("has(has)", "has(has)", &["has="], &["-"]),
    ("all == 'all()'", "all == \"all()\"", &["all=all()"], &["-"]),
    (
        "global contains 'a'",
        "global contains \"a\"",
        &["global=a"],
        &["-"],
    ),
    (
        "contains contains 'a'",
        "contains contains \"a\"",
        &["contains=a"],
        &["-"],
    ),
    (
        "starts starts with 'a'",
        "starts starts with \"a\"",
        &["starts=a"],
        &["-"],
    ),
    ("hash == 'a'", "hash == \"a\"", &["hash=a"], &["-"]),
    ("0 == '0'", "0 == \"0\"", &["0=0"], &["-"]),
    ("-./_ == 'a'", "-./_ == \"a\"", &["-./_=a"], &["-"]),
    ("a.b/C-d_0 == 'x'", "a.b/C-d_0 == \"x\"", &["a.b/C-d_0=x"], &["-"]),
    // No escapes: the other quote, braces and operators are what they are.
    ("a == '\"'", "a == '\"'", &["a=\""], &["a='"]),
    ("a == \"it's\"", "a == \"it's\"", &["a=it's"], &["-"]),
    ("a == '\\'", "a == \"\\\"", &["a=\\"], &["-"]),
    ("a == '}||{'", "a == \"}||{\"", &["a=}||{"], &["-"]),
    ("a == 'é'", "a == \"é\"", &["a=é"], &["a=e"]),
];

#[test]
fn every_row_of_the_grammar_selects_what_it_says() {
    for (text, canonical, matching, others) in ROWS {
        let expression = parse(text);
        assert_eq!(expression.to_string(), *canonical, "{text}");
        for labels in *matching {
            assert!(matches(&expression, labels), "{text} matches {labels}");
        }
        for labels in *others {
            assert!(!matches(&expression, labels), "{text} does not match {labels}");
        }
    }
}

#[test]
fn the_canonical_form_is_the_same_selector() {
    let samples = ROWS
        .iter()
        .flat_map(|(_, _, matching, others)| matching.iter().chain(*others));
    let samples: Vec<&&str> = samples.collect();
    for (text, ..) in ROWS {
        let first = parse(text);
        let again = parse(&first.to_string());
        for labels in &samples {
            assert_eq!(
                matches(&first, labels),
                matches(&again, labels),
                "{text} and {again} differ for {labels}"
            );
        }
        assert_eq!(again, first, "{text}");
    }
}

#[test]
fn what_is_no_selector_says_where() {
    for (text, at) in [
        ("a", 2),
        ("has", 4),
        ("has(", 5),
        ("has()", 5),
        ("has(a", 6),
        ("has(a b)", 7),
        ("has (a)", 5),
        ("all", 4),
        ("all(", 5),
        ("all(a)", 5),
        ("global(", 8),
        ("a =", 3),
        ("a = 'b'", 3),
        ("a === 'b'", 5),
        ("a == b", 6),
        ("a == {'b'}", 6),
        ("== 'b'", 1),
        ("'a' == 'b'", 1),
        ("a == 'b' 'c'", 10),
        ("a == 'b' c == 'd'", 10),
        ("a in 'b'", 6),
        ("a in {b}", 7),
        ("a in {'b' 'c'}", 11),
        ("a in {,}", 7),
        ("a in {'b',,}", 11),
        ("a in {'b'", 10),
        ("a not {'b'}", 7),
        ("a not == 'b'", 7),
        ("a starts 'b'", 10),
        ("a ends", 7),
        ("a contains", 11),
        ("a is 'b'", 3),
        ("a > 'b'", 3),
        ("&& has(a)", 1),
        ("has(a) &&", 10),
        ("has(a) & has(b)", 8),
        ("has(a) | has(b)", 8),
        ("has(a) || || has(b)", 11),
        ("has(a) has(b)", 8),
        ("(has(a)", 8),
        ("has(a))", 7),
        ("()", 2),
        ("!", 2),
        ("has(a)\n&& has(b)", 7),
        ("é == 'a'", 1),
        ("has(é)", 5),
        ("a == 'é' x", 10),
    ] {
        match Expression::parse(text) {
            Err(ExpressionError::Unexpected { at: found, .. }) => assert_eq!(found, at, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert_eq!(
        Expression::parse("a == 'b"),
        Err(ExpressionError::Unterminated(6))
    );
    assert_eq!(
        Expression::parse("a in {\"b}"),
        Err(ExpressionError::Unterminated(7))
    );
}

#[test]
fn sizes_are_bounded() {
    let value = "x".repeat(MAX_LENGTH - "a == ''".len());
    assert!(Expression::parse(&format!("a == '{value}'")).is_ok());
    let error = Expression::parse(&format!("a == '{value}x'"));
    assert_eq!(error, Err(ExpressionError::TooLong(MAX_LENGTH + 1)));
    // Characters are counted, not bytes.
    let value = "é".repeat(MAX_LENGTH - "a == ''".len());
    assert!(Expression::parse(&format!("a == '{value}'")).is_ok());
    let label = "a".repeat(MAX_LABEL_LENGTH);
    assert!(Expression::parse(&format!("has({label})")).is_ok());
    let error = Expression::parse(&format!("has({label}a)"));
    assert_eq!(error, Err(ExpressionError::LabelTooLong(5)));
    let nested = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Expression::parse(&nested(64)).is_ok());
    assert_eq!(Expression::parse(&nested(65)), Err(ExpressionError::TooDeep));
    assert_eq!(parse(&format!("{}has(a)", "!".repeat(1000))), parse("has(a)"));
}

#[test]
fn global_is_what_has_no_namespace() {
    assert!(
        matches(&parse("global()"), "-") && !matches(&parse("global()"), "projectcalico.org/namespace=a")
    );
    assert!(parse("!(has(a) && global())").mentions_global() && !parse("has(global)").mentions_global());
}

/// What Calico calls the labels of a workload: where they come from, and which of them nobody can set.
#[test]
fn labels_of_workloads_come_from_where_they_are_set() {
    let labels = |pairs: &[(&str, &str)]| {
        let owned = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        owned.collect()
    };
    let forged = [
        ("app", "web"),
        ("projectcalico.org/namespace", "forged"),
        ("projectcalico.org/orchestrator", "forged"),
        ("projectcalico.org/serviceaccount", "forged"),
        ("pcns.team", "forged"),
        ("pcns.other", "forged"),
        ("pcns.projectcalico.org/name", "forged"),
        ("pcsa.role", "forged"),
    ];
    let pod = Workload {
        namespace: "shop".to_owned(),
        labels: labels(&forged),
        namespace_labels: Some(labels(&[("team", "a")])),
        service_account: Some(ServiceAccount {
            name: "cart".to_owned(),
            labels: labels(&[("role", "db")]),
        }),
        ..Workload::default()
    };
    let bare = Workload {
        namespace_labels: None,
        service_account: None,
        ..pod.clone()
    };
    let host = Workload {
        kind: WorkloadKind::HostEndpoint,
        namespace: String::new(),
        ..bare.clone()
    };
    for (key, of_pod, of_bare, of_host) in [
        ("app", Some("web"), Some("web"), Some("web")),
        ("absent", None, None, None),
        ("projectcalico.org/namespace", Some("shop"), Some("shop"), None),
        (
            "projectcalico.org/orchestrator",
            Some("k8s"),
            Some("k8s"),
            Some("forged"),
        ),
        (
            "projectcalico.org/serviceaccount",
            Some("cart"),
            None,
            Some("forged"),
        ),
        ("pcns.team", Some("a"), None, None),
        ("pcns.other", None, None, None),
        ("pcns.projectcalico.org/name", Some("shop"), None, None),
        ("pcsa.role", Some("db"), None, None),
        ("pcsa.projectcalico.org/name", Some("cart"), None, None),
    ] {
        assert_eq!(pod.label(key), of_pod, "{key} of a pod");
        assert_eq!(
            bare.label(key),
            of_bare,
            "{key} of a pod of which nothing is known"
        );
        assert_eq!(host.label(key), of_host, "{key} of a host endpoint");
    }
}

#[test]
fn a_prefix_moves_an_expression_to_other_labels() {
    let all = Expression::Has("here".to_owned());
    for (text, prefixed) in [
        ("a == 'b' && !has(c)", "(p.a == \"b\" && !has(p.c))"),
        ("all() || d in {'e'}", "(has(here) || p.d in {\"e\"})"),
        ("global()", "!has(here)"),
    ] {
        let moved = parse(text).prefixed("p.", &all);
        assert_eq!(moved.to_string(), prefixed, "{text}");
        assert!(moved.asks_for("p.") || text == "global()", "{text}");
    }
}

#[test]
fn an_error_reads_well() {
    let error = Expression::parse("app = 'web'").expect_err("no selector");
    assert_eq!(
        error.to_string(),
        "expected an operator (==, !=, in, not in, contains, starts with, ends with) at character 5, found \"= 'web'\""
    );
}
