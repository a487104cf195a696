//! The committed example, answer by answer: `docs/examples/shop`. `UPDATE_GOLDEN=1` writes the expected answers anew.

use std::{fs, path::PathBuf};

use api::flow::FlowEvent;
use policies_checker::{
    Model,
    assertion::{self, broken_assertions},
    cases::{CaseFile, run_cases},
    connectivity::{Grouping, connectivity},
    difference::difference,
    picture,
    recommend::{Dialect, recommend},
    replay::replay,
    rules::{NoRule, OtherUse, rule_use},
};
use policies_compiler::{ClusterView, Source, load_objects};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/shop")
}

fn objects(name: &str) -> Vec<Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder().join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    texts
        .flat_map(|text| serde_saphyr::from_multiple::<Value>(&text).unwrap())
        .collect()
}

fn view(name: &str) -> ClusterView {
    let objects = objects(name);
    let others = objects
        .iter()
        .filter(|object| object["kind"] != "PolicyAssertion");
    load_objects(others.map(|object| Source { origin: name, object }))
        .unwrap()
        .view
}

fn flows() -> Vec<FlowEvent> {
    let text = fs::read_to_string(folder().join("flows.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn check(name: &str, answer: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, answer).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(answer, expected, "{name}: UPDATE_GOLDEN=1 writes it anew");
}

fn check_json(name: &str, answer: &impl serde::Serialize) {
    check(
        name,
        &format!(
            "{}\n",
            serde_json::to_string_pretty(&serde_json::to_value(answer).unwrap()).unwrap()
        ),
    );
}

#[test]
fn connectivity_is_as_committed() {
    let model = Model::new(&view("manifests"));
    let all = connectivity(&model, Grouping::Equal);
    check_json("connectivity.json", &all);
    check("connectivity.dot", &picture::dot(&all));
    check("connectivity.svg", &picture::svg(&all));
    let lines: Vec<String> = all.lines().iter().map(|line| line.join(" | ")).collect();
    check("connectivity.txt", &format!("{}\n", lines.join("\n")));
}

#[test]
fn differences_are_as_committed() {
    let (old, new) = (Model::new(&view("manifests")), Model::new(&view("changed")));
    check_json("diff.json", &difference(&old, &new));
}

#[test]
fn assertions_are_as_committed() {
    let assertions: Vec<_> = objects("manifests")
        .into_iter()
        .filter(|object| object["kind"] == "PolicyAssertion")
        .map(|object| serde_json::from_value(object).unwrap())
        .collect();
    assert_eq!(assertions.len(), 3);
    let (before, after) = (view("manifests"), view("changed"));
    assert_eq!(broken_assertions(None, &before, &assertions), vec![]);
    let broken = broken_assertions(Some(&before), &after, &assertions);
    assert!(broken.iter().all(|assertion| !assertion.before));
    check_json("broken.json", &broken);
}

#[test]
fn an_assertion_that_cannot_be_read_is_broken() {
    let object = serde_json::from_value(
        json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "PolicyAssertion",
        "metadata": {"name": "a"}, "spec": {"assertion": "no pods reaches the moon"}}),
    );
    let broken = broken_assertions(None, &view("manifests"), &[object.unwrap()]);
    assert_eq!(broken.len(), 1);
    assert!(
        matches!(broken[0].problem, assertion::Problem::Syntax { column: 21, .. }),
        "{broken:?}"
    );
}

#[test]
fn an_assertion_about_nobody_says_so() {
    let model = Model::new(&view("manifests"));
    let proof = |text| assertion::prove(&model, &assertion::parse(text).unwrap());
    let about_nobody = proof("no ns(elsewhere) reaches internet");
    assert!(about_nobody.holds && about_nobody.vacuous.is_some());
    assert_eq!(proof("no ns(pci) reaches internet").vacuous, None);
}

#[test]
fn cases_are_as_committed() {
    let text = fs::read_to_string(folder().join("cases.yaml")).unwrap();
    let file: CaseFile = serde_saphyr::from_str(&text).unwrap();
    let report = run_cases(&Model::new(&view("manifests")), &file.cases);
    assert_eq!(report.failed, 0, "{report:?}");
    check_json("cases.json", &report);
    let changed = run_cases(&Model::new(&view("changed")), &file.cases);
    assert_eq!(changed.failed, 2);
    check("cases.junit.xml", &changed.junit());
}

#[test]
fn replay_is_as_committed() {
    let same = replay(&Model::new(&view("manifests")), &flows());
    assert_eq!((same.judged, same.same), (16, 16), "{same:?}");
    check_json("replay.json", &replay(&Model::new(&view("changed")), &flows()));
}

#[test]
fn recommendations_are_as_committed() {
    for (name, dialect) in [
        ("recommend.yaml", Dialect::Kubernetes),
        ("recommend-calico.yaml", Dialect::Calico),
    ] {
        let recommendation = recommend(&view("manifests"), &flows(), dialect).unwrap();
        let documents: Vec<String> = recommendation
            .objects
            .iter()
            .map(|o| serde_saphyr::to_string(o).unwrap())
            .collect();
        check(name, &documents.join("---\n"));
        // What is recommended denies nothing of what was allowed, and allows nothing of what was denied.
        let sources = recommendation
            .objects
            .iter()
            .map(|object| Source { origin: name, object });
        let loaded = load_objects(sources).unwrap().view;
        let mut after = view("manifests");
        (after.policies, after.calico) = (loaded.policies, loaded.calico);
        let changes = replay(&Model::new(&after), &flows()).changes;
        assert!(changes.iter().all(|change| change.was_allowed), "{changes:?}");
    }
}

#[test]
fn rules_are_as_committed() {
    let (uses, others) = rule_use(&Model::new(&view("manifests")), &flows());
    check_json("rules.json", &json!({"rules": uses, "others": others}));
}

#[test]
fn what_decided_and_is_gone_is_told_from_what_is_built_in() {
    let mut after = view("manifests");
    let (all, _) = rule_use(&Model::new(&after), &flows());
    let hit = all
        .iter()
        .find(|rule| rule.hits > 0)
        .expect("the record has hits");
    let decided = flows().into_iter().map(|flow| flow.decided_by);
    let decided = decided.into_iter().find(|by| by.rule == hit.key.rule);
    let policy = decided.and_then(|by| by.policy).expect("a policy decided");
    after.policies.clear();
    after.calico.clear();
    let (_, others) = rule_use(&Model::new(&after), &flows());
    let why = |rule: &str| {
        others
            .iter()
            .find(|other| other.key.rule == rule)
            .map(|other| other.why)
    };
    assert_eq!(
        why(&hit.key.rule),
        Some(NoRule::PolicyGone),
        "{policy}: {others:?}"
    );
    let mut cut = flows();
    for flow in &mut cut {
        flow.decided_by.rule.push_str(" of old");
    }
    let (_, others) = rule_use(&Model::new(&view("manifests")), &cut);
    let gone = |other: &&OtherUse| other.why == NoRule::RuleGone && other.key.rule.starts_with(&hit.key.rule);
    assert!(others.iter().any(|other| gone(&other)), "{others:?}");
}
