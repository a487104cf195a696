//! A stable, seeded run of what the fuzz target `trivy_report` checks: the corpus, and mutations of it.

use std::{fs, path::Path};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use scanner_report::{MAX_REPORT_FINDINGS, Report};

const CASES: u32 = 4000;

fn harmless(bytes: &[u8]) -> bool {
    let Ok(report) = Report::parse(bytes) else {
        return true;
    };
    let texts_are_plain = report.findings.iter().all(|finding| {
        [
            &finding.vulnerability,
            &finding.package,
            &finding.installed,
            &finding.target,
            &finding.title,
        ]
        .iter()
        .all(|text| !text.chars().any(char::is_control) && text.chars().count() <= 200)
    });
    texts_are_plain && report.findings.len() <= MAX_REPORT_FINDINGS
}

#[test]
fn corpus_and_mutations_are_harmless() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/trivy_report");
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&dir).expect("the corpus is committed") {
        let seed = fs::read(entry.expect("the corpus is readable").path()).expect("the corpus is readable");
        assert!(Report::parse(&seed).is_ok(), "every seed is a valid report");
        seeds.push(seed);
    }
    assert!(!seeds.is_empty());
    let tokens = prop::sample::select(vec![
        "null",
        "[]",
        "{}",
        "\"\\u0000\\u001b\"",
        "-1",
        "1e999",
        "\"",
        "\\ud800",
        "[[[[",
    ]);
    let edit = (
        any::<prop::sample::Index>(),
        0usize..8,
        tokens,
        any::<bool>(),
        any::<u8>(),
    );
    let edits = prop::collection::vec(edit, 1..10);
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(any::<prop::sample::Index>(), edits), |(seed, edits)| {
            let mut bytes = seed.get(&seeds).clone();
            for (at, removed, token, as_byte, byte) in edits {
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                let end = (at + removed).min(bytes.len());
                let replacement = if as_byte {
                    vec![byte]
                } else {
                    token.as_bytes().to_vec()
                };
                bytes.splice(at..end, replacement);
            }
            prop_assert!(harmless(&bytes));
            Ok(())
        })
        .expect("no mutation does harm");
}
