//! Every way to a verdict, case by case.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn finding(id: &str, severity: Severity, fixed: Option<&str>) -> Finding {
    Finding {
        vulnerability: id.into(),
        severity,
        package: "busybox".into(),
        installed: "1.0".into(),
        fixed: fixed.map(Into::into),
        target: "t".into(),
        title: String::new(),
        exempted: false,
    }
}

fn report(findings: Vec<Finding>) -> Report {
    let os = Os {
        family: "alpine".into(),
        release: "3.22.1".into(),
        end_of_life: false,
    };
    Report {
        os: Some(os),
        os_packages: 2,
        findings,
        ..Report::default()
    }
}

fn policy(name: &str, spec: ImagePolicySpec) -> ImagePolicy {
    ImagePolicy {
        api_version: api::palisade::API_VERSION.into(),
        kind: "ImagePolicy".into(),
        metadata: ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        spec,
    }
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn db() -> DbMetadata {
    DbMetadata {
        version: 2,
        updated_at: "2026-05-31T00:00:00Z".parse().unwrap(),
    }
}

fn judged(report: &Report, policies: &[ImagePolicy], change: impl FnOnce(&mut ScanContext<'_>)) -> Judgement {
    let (image, db) = ("127.0.0.1:5000/lab/app:1".parse().unwrap(), db());
    let mut context = ScanContext {
        now: now(),
        db: &db,
        release_in_db: true,
    };
    change(&mut context);
    judge(
        report,
        Subject {
            image: &image,
            namespace: "web",
        },
        policies,
        context,
    )
}

#[test]
fn a_clean_covered_fresh_scan_passes() {
    let judgement = judged(
        &report(vec![finding("CVE-1", Severity::Medium, None)]),
        &[],
        |_| {},
    );
    assert_eq!(judgement.verdict, ScanVerdict::Pass);
    assert!(judgement.admitted);
    assert_eq!(judgement.reasons, Vec::<String>::new());
    assert_eq!(judgement.counts[&Severity::Medium], 1);
}

#[test]
fn a_refusal_names_ids_packages_and_fixes() {
    let findings = vec![
        finding("CVE-1", Severity::Critical, Some("1.1")),
        finding("CVE-2", Severity::High, None),
    ];
    let judgement = judged(&report(findings), &[], |_| {});
    assert_eq!(judgement.verdict, ScanVerdict::Refused);
    assert_eq!(
        judgement.reasons,
        ["2 findings of severity HIGH or above (policy \"default\"): \
          CVE-1 (CRITICAL) in busybox 1.0, fixed in 1.1; CVE-2 (HIGH) in busybox 1.0, no fixed version"]
    );
}

#[test]
fn every_silent_pass_is_inconclusive_and_refused() {
    let mut unknown = report(vec![]);
    unknown.os = None;
    let mut ended = report(vec![]);
    ended.os.as_mut().unwrap().end_of_life = true;
    let empty = Report {
        os_packages: 0,
        ..report(vec![])
    };
    let suppressed = Report {
        suppressed: 1,
        ..report(vec![])
    };
    let dropped = Report {
        findings_dropped: 1,
        ..report(vec![])
    };
    for (report, word) in [
        (unknown, "no operating system"),
        (ended, "end of life"),
        (empty, "no installed packages"),
        (suppressed, "suppressed"),
        (dropped, "too many"),
    ] {
        let judgement = judged(&report, &[], |_| {});
        assert_eq!(judgement.verdict, ScanVerdict::Inconclusive, "{word}");
        assert!(!judgement.admitted, "{word}");
        assert!(judgement.reasons[0].contains(word), "{:?}", judgement.reasons);
    }
    let uncovered = judged(&report(vec![]), &[], |context| context.release_in_db = false);
    assert!(uncovered.reasons[0].contains("no advisories for alpine 3.22.1"));
    let stale = judged(&report(vec![]), &[], |context| {
        context.now = "2026-07-01T00:00:00Z".parse().unwrap();
    });
    assert!(stale.reasons[0].contains("744 hours old"), "{:?}", stale.reasons);
    let future = judged(&report(vec![]), &[], |context| {
        context.now = "2026-05-30T00:00:00Z".parse().unwrap();
    });
    assert!(future.reasons[0].contains("from the future"));
    for judgement in [uncovered, stale, future] {
        assert_eq!(
            (judgement.verdict, judgement.admitted),
            (ScanVerdict::Inconclusive, false)
        );
    }
}

#[test]
fn inconclusive_is_admitted_only_if_every_policy_says_so() {
    let admit = policy(
        "a",
        ImagePolicySpec {
            inconclusive: OnInconclusive::Admit,
            ..Default::default()
        },
    );
    let strict = policy("b", ImagePolicySpec::default());
    let unknown = Report {
        os: None,
        ..report(vec![])
    };
    assert!(judged(&unknown, std::slice::from_ref(&admit), |_| {}).admitted);
    assert!(!judged(&unknown, &[admit.clone(), strict], |_| {}).admitted);
    let bad = Report {
        os: None,
        ..report(vec![finding("CVE-1", Severity::High, None)])
    };
    assert_eq!(
        judged(&bad, &[admit], |_| {}).verdict,
        ScanVerdict::Refused,
        "findings outweigh doubts"
    );
}

#[test]
fn exemptions_are_narrow_and_expire() {
    let exemption = |package: Option<&str>, image: Option<&str>, expires: &str| Exemption {
        vulnerability: "CVE-1".into(),
        package: package.map(Into::into),
        image: image.map(Into::into),
        expires: expires.parse().unwrap(),
        reason: "test".into(),
    };
    let verdict = |exemption| {
        let spec = ImagePolicySpec {
            exemptions: vec![exemption],
            ..Default::default()
        };
        let judgement = judged(
            &report(vec![finding("CVE-1", Severity::High, None)]),
            &[policy("p", spec)],
            |_| {},
        );
        assert_eq!(judgement.findings[0].exempted, judgement.admitted);
        judgement.admitted
    };
    let later = "2026-06-02T00:00:00Z";
    assert!(verdict(exemption(None, None, later)));
    assert!(verdict(exemption(
        Some("busybox"),
        Some("127.0.0.1:5000/lab/app"),
        later
    )));
    assert!(!verdict(exemption(Some("musl"), None, later)));
    assert!(!verdict(exemption(None, Some("127.0.0.1:5000/lab/ap"), later)));
    assert!(
        !verdict(exemption(None, None, "2026-06-01T00:00:00Z")),
        "it ends at its moment of expiry"
    );
}

#[test]
fn one_policys_exemption_does_not_bind_another() {
    let exempting = ImagePolicySpec {
        exemptions: vec![Exemption {
            vulnerability: "CVE-1".into(),
            package: None,
            image: None,
            expires: "2030-01-01T00:00:00Z".parse().unwrap(),
            reason: "test".into(),
        }],
        ..Default::default()
    };
    let policies = [policy("a", exempting), policy("b", ImagePolicySpec::default())];
    let judgement = judged(
        &report(vec![finding("CVE-1", Severity::High, None)]),
        &policies,
        |_| {},
    );
    assert!(!judgement.admitted);
    assert!(!judgement.findings[0].exempted);
}

#[test]
fn registries_match_by_component_and_namespaces_select() {
    let spec = |allowed: &str, namespaces: &[&str]| ImagePolicySpec {
        allowed_registries: vec![allowed.into()],
        namespaces: namespaces.iter().map(|n| (*n).into()).collect(),
        ..Default::default()
    };
    let admitted = |spec| judged(&report(vec![]), &[policy("p", spec)], |_| {}).admitted;
    assert!(admitted(spec("127.0.0.1:5000", &[])));
    assert!(admitted(spec("127.0.0.1:5000/lab", &["web"])));
    assert!(!admitted(spec("127.0.0.1:5000/la", &[])));
    assert!(!admitted(spec("127.0.0.1", &[])));
    assert!(
        admitted(spec("elsewhere.example", &["db"])),
        "the policy of another namespace does not judge"
    );
}

#[test]
fn the_hash_follows_the_policies_that_judge() {
    let one = applicable(&[policy("a", ImagePolicySpec::default())], "web");
    let other = applicable(
        &[policy(
            "a",
            ImagePolicySpec {
                ignore_unfixed: true,
                ..Default::default()
            },
        )],
        "web",
    );
    assert_ne!(policy_hash(&one), policy_hash(&other));
    assert_eq!(policy_hash(&one), policy_hash(&one.clone()));
}
