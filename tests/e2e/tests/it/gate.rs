//! What the image gate admits, refuses and records.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, pod};
use scanner_labdb::{CRITICAL_ID, FIXED_VERSION, VULNERABLE_PACKAGE};
use testkit::lab::{self, LabOs};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "gate_refuses_a_vulnerable_image_and_says_why",
        refuses_a_vulnerable_image,
    ),
    ("gate_pins_a_clean_image_and_records_the_scan", pins_a_clean_image),
    (
        "gate_refuses_what_it_could_not_check",
        refuses_what_it_could_not_check,
    ),
    ("gate_follows_image_policies", follows_image_policies),
];

fn refuses_a_vulnerable_image(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::vulnerable()?, "gate/vulnerable", "1")?;
    let yaml = pod(
        "default",
        "vulnerable",
        "app: x",
        &image,
        &["true"],
        "restartPolicy: Never",
    );
    let refused = cluster.apply(&yaml)?.refused()?;
    let refused = refused
        .says("Forbidden")?
        .says(CRITICAL_ID)?
        .says(VULNERABLE_PACKAGE)?
        .says(FIXED_VERSION)?;
    ensure!(
        refused.code == 1,
        "kubectl reports a refusal with exit code 1: {refused}"
    );
    cluster
        .policyctl(&["get", "pod", "vulnerable"])?
        .refused()?
        .says("not found")?;
    Ok(())
}

fn pins_a_clean_image(cluster: &Cluster) -> Result<()> {
    let image = lab::clean()?;
    let digest = image.digest().to_string();
    let reference = cluster.push(&image, "gate/clean", "1")?;
    let yaml = pod(
        "default",
        "clean",
        "app: x",
        &reference,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    cluster.apply(&yaml)?.ok()?;
    let stored = cluster.wait_for_phase("default", "clean", "Running")?;
    let pinned = stored["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default();
    ensure!(pinned.ends_with(&digest), "{pinned} is not pinned to {digest}");
    let scan = cluster.object("", "imagescans", &digest.replace(':', "-"))?;
    ensure!(scan["status"]["verdict"] == "Pass", "{scan}");
    // Applying the same tag again is no change, although the pod now holds the digest.
    cluster.apply(&yaml)?.ok()?;
    cluster.kubectl(&["delete", "pod", "clean"])?.ok()?;
    Ok(())
}

fn refuses_what_it_could_not_check(cluster: &Cluster) -> Result<()> {
    for (os, name) in [
        (LabOs::Unknown, "unknown"),
        (LabOs::None, "none"),
        (LabOs::Uncovered, "uncovered"),
    ] {
        let image = cluster.push(
            &lab::busybox(os, FIXED_VERSION)?.build(),
            &format!("gate/{name}"),
            "1",
        )?;
        let yaml = pod(
            "default",
            name,
            "app: x",
            &image,
            &["true"],
            "restartPolicy: Never",
        );
        cluster.apply(&yaml)?.refused()?.says("inconclusive")?;
    }
    Ok(())
}

fn follows_image_policies(cluster: &Cluster) -> Result<()> {
    let policy = |spec: &str| {
        format!(
            "apiVersion: palisade.dev/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: lab}}\nspec: {spec}\n"
        )
    };
    let image = cluster.push(&lab::vulnerable()?, "gate/exempted", "1")?;
    let yaml = pod(
        "default",
        "exempted",
        "app: x",
        &image,
        &["true"],
        "restartPolicy: Never",
    );
    let exemption = |expires: &str| {
        format!("{{exemptions: [{{vulnerability: {CRITICAL_ID}, expires: \"{expires}\", reason: test}}]}}")
    };
    let next_month = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(30 * 24);
    cluster
        .apply(&policy(&exemption(&next_month.to_string())))?
        .ok()?;
    let admitted = cluster.apply(&yaml);
    cluster.kubectl(&["delete", "imagepolicy", "lab"])?.ok()?;
    admitted?.ok()?;
    cluster.kubectl(&["delete", "pod", "exempted", "--now"])?.ok()?;

    cluster
        .apply(&policy("{allowedRegistries: [registry.example]}"))?
        .ok()?;
    let refused = cluster.apply(&yaml);
    cluster.kubectl(&["delete", "imagepolicy", "lab"])?.ok()?;
    refused?.refused()?.says("registry.example")?;
    Ok(())
}
