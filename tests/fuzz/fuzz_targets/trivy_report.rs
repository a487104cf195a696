//! Any bytes as a scanner report: parsing must not panic, and what it returns must be bounded and harmless
//! to a terminal. Run: `cargo +nightly fuzz run --fuzz-dir tests/fuzz trivy_report`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use scanner_report::{MAX_REPORT_FINDINGS, Report};

fuzz_target!(|data: &[u8]| {
    let Ok(report) = Report::parse(data) else { return };
    assert!(report.findings.len() <= MAX_REPORT_FINDINGS);
    for finding in &report.findings {
        for text in [&finding.vulnerability, &finding.package, &finding.installed, &finding.target, &finding.title] {
            assert!(!text.chars().any(char::is_control) && text.chars().count() <= 200);
        }
    }
});
