//! Services: what stands behind them, policies that name them, and an assertion that holds the policy in place.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, pod},
    shell::eventually,
};
use serde_json::Value;
use testkit::lab;

use crate::{Test, network::fetch};

pub(crate) const TESTS: &[Test] = &[(
    "policy_by_service_follows_its_pods_and_an_assertion_keeps_it",
    policy_by_service_follows_its_pods,
)];

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: mart}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"#;

const BY_SERVICE: &str = r#"
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: clients, namespace: mart}
spec:
  selector: app == 'client'
  types: [Egress]
  egress:
  - {action: Allow, destination: {services: {name: web, namespace: mart}}}
"#;

const ASSERTION: &str = r#"
apiVersion: palisade.dev/v1alpha1
kind: PolicyAssertion
metadata: {name: clients-stay-away}
spec: {assertion: no ns(mart)/labels(app=client) reaches ns(mart)/labels(app=other)}
"#;

fn policy_by_service_follows_its_pods(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "mart/clean", "1")?;
    cluster.kubectl(&["create", "namespace", "mart"])?.ok()?;
    let made = cluster.apply(SERVICE)?.ok()?;
    ensure!(
        made.stderr
            .contains("Warning: traffic to the cluster address 10.96."),
        "nobody was told that the address answers nothing: {made}"
    );
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    let serve = |name: &str, app: &str| {
        let command = ["sh", "-c", server];
        let mut yaml = pod(
            "mart",
            name,
            &format!("app: {app}"),
            &image,
            &command,
            "restartPolicy: Always",
        );
        yaml.push_str("    ports: [{name: http, containerPort: 8080}]\n");
        cluster.apply(&yaml)?.ok()?;
        let object = cluster.wait_for_phase("mart", name, "Running")?;
        Ok::<_, anyhow::Error>(object["status"]["podIP"].as_str().unwrap_or_default().to_owned())
    };
    let (first, second, other) = (
        serve("web-1", "web")?,
        serve("web-2", "web")?,
        serve("other", "other")?,
    );
    let broken = pod(
        "mart",
        "web-3",
        "app: web",
        &image,
        &["sh", "-c", "exit 1"],
        "restartPolicy: Always",
    );
    cluster.apply(&broken)?.ok()?;
    // Pods by name, with whether they are ready.
    let stands_behind = |expected: &[(&str, bool)]| {
        eventually(Duration::from_secs(30), || {
            let found = endpoints(cluster)?;
            let wanted: Vec<(String, bool)> = expected
                .iter()
                .map(|(name, ready)| ((*name).to_owned(), *ready))
                .collect();
            ensure!(
                found == wanted,
                "{found:?} stand behind the service, not {wanted:?}"
            );
            Ok(())
        })
        .with_context(|| cluster.daemon_logs())
    };
    stands_behind(&[("web-1", true), ("web-2", true), ("web-3", false)])?;

    cluster.apply(BY_SERVICE)?.ok()?;
    let until = |address: &str, expected: &str| {
        eventually(Duration::from_secs(20), || {
            match fetch(cluster, "mart", &image, "client", address, 8080)? {
                answer if answer == expected => Ok(()),
                answer => bail!("the client gets {answer:?} from {address}, not {expected:?}"),
            }
        })
    };
    until(&other, "blocked\n")?;
    until(&first, "welcome\n")?;
    until(&second, "welcome\n")?;

    // What no longer has the labels no longer stands behind the service, and the policy knows.
    cluster
        .kubectl(&[
            "label",
            "pod",
            "web-2",
            "-n",
            "mart",
            "app=retired",
            "--overwrite",
        ])?
        .ok()?;
    stands_behind(&[("web-1", true), ("web-3", false)])?;
    until(&second, "blocked\n")?;
    cluster
        .kubectl(&["label", "pod", "web-2", "-n", "mart", "app=web", "--overwrite"])?
        .ok()?;
    until(&second, "welcome\n")?;
    until(&first, "welcome\n")?;

    // The clients that asked have ended and are gone from policy; one that stays is needed to speak about.
    let idle = ["sh", "-c", "while true; do sleep 1; done"];
    cluster
        .apply(&pod(
            "mart",
            "client",
            "app: client",
            &image,
            &idle,
            "restartPolicy: Always",
        ))?
        .ok()?;
    cluster.wait_for_phase("mart", "client", "Running")?;
    cluster.apply(ASSERTION)?.ok()?;
    let refused = cluster.kubectl(&["delete", "-n", "mart", "caliconetworkpolicy", "clients"])?;
    ensure!(
        refused.code != 0
            && refused
                .stderr
                .contains("it would break PolicyAssertion \"clients-stay-away\"")
            && refused.stderr.contains(&format!("mart/other ({other})")),
        "{refused}"
    );
    until(&other, "blocked\n")?;
    cluster
        .kubectl(&["delete", "assertion", "clients-stay-away"])?
        .ok()?;
    cluster.kubectl(&["delete", "namespace", "mart"])?.ok()?;
    ensure!(endpoints(cluster)?.is_empty(), "slices outlive their namespace");
    Ok(())
}

fn endpoints(cluster: &Cluster) -> Result<Vec<(String, bool)>> {
    let listed = cluster
        .kubectl(&[
            "get",
            "endpointslices",
            "-n",
            "mart",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "json",
        ])?
        .ok()?;
    let listed: Value = serde_json::from_str(&listed.stdout)?;
    let slices = listed["items"].as_array().into_iter().flatten();
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let mut found: Vec<(String, bool)> = endpoints
        .map(|endpoint| {
            let name = endpoint["targetRef"]["name"].as_str().unwrap_or_default();
            (name.to_owned(), endpoint["conditions"]["ready"] == true)
        })
        .collect();
    found.sort();
    Ok(found)
}
