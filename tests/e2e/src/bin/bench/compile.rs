//! How long the policy compiler takes, and how that grows with pods and policies.

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicySpec},
    apimachinery::pkg::apis::meta::v1 as meta,
};
use policies_checker::{
    Model,
    assertion::{parse, prove},
};
use policies_compiler::{
    Book, CalicoObject, ClusterView, FlowEnd, Judge, PodView, Question, Session, compile,
};
use policies_ir::{
    policy::NamedPort,
    tables::{EndpointId, NodeTables},
};

use crate::{Line, median_ms};

/// Pods on the node that compiles.
pub(crate) const LOCAL: usize = 200;
/// Namespaces, applications and teams that pods and policies are spread over.
const NAMESPACES: usize = 50;
const APPS: usize = 40;
/// Flows that are judged one by one.
const FLOWS: usize = 500_000;

pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let view = cluster(10_000, 1_000);
    let cold = (0..rounds.clamp(3, 10)).map(|_| {
        let start = Instant::now();
        black_box(compile(&view));
        start.elapsed()
    });
    let name = "compile 1,000 policies, 10,000 pods, 200 local, cold";
    lines.push(Line::alone(name, "ms", median_ms(cold.collect()), Some(1000.0)));

    // What a write of a policy waits for, where an assertion is stored.
    let start = Instant::now();
    let model = Model::new(&view);
    let proof = prove(&model, &parse("no pod in ns(ns-1) reaches ns(ns-2)")?);
    let name = "an assertion judged, 1,000 policies, 10,000 pods";
    lines.push(Line::alone(name, "ms", median_ms(vec![start.elapsed()]), None));
    anyhow::ensure!(proof.vacuous.is_none(), "the assertion says nothing: {proof:?}");

    lines.push(decisions(&view)?);

    let start = Instant::now();
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    let begun = start.elapsed();
    for (local, of) in [(false, "another node"), (true, "this node")] {
        let name = format!("the same, labels of a pod of {of} change");
        lines.extend(label_changes(&mut session, &view, local, rounds, &name)?);
    }
    let name = "the same, a session begins (objects read, tables written)";
    lines.push(Line::alone(name, "ms", median_ms(vec![begun]), None));

    for (pods, policies) in [
        (100, 1_000),
        (1_000, 1_000),
        (100_000, 1_000),
        (10_000, 10),
        (10_000, 100),
        (10_000, 10_000),
    ] {
        let view = cluster(pods, policies);
        let start = Instant::now();
        black_box(compile(&view));
        let name = format!("growth: {policies} policies, {pods} pods, cold");
        lines.push(Line::alone(&name, "ms", median_ms(vec![start.elapsed()]), None));
    }
    Ok(lines)
}

/// Flows between pods all over the cluster, as `policyctl decide` judges them, from the first on; reading them is not
/// counted.
fn decisions(view: &ClusterView) -> Result<Line> {
    let pod = |number: usize| {
        let pod = view.pods.get(number % view.pods.len());
        pod.map(|pod| FlowEnd::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        })
    };
    let question = |number: usize| {
        Some(Question {
            source: pod(number * 7919)?,
            destination: pod(number * 104_729 + 1)?,
            protocol: 6,
            source_port: 49_152,
            port: [80, 443, 5432, 8080][number % 4],
        })
    };
    let questions: Vec<Question> = (0..FLOWS).filter_map(question).collect();
    let start = Instant::now();
    let book = Book::new(view);
    let mut judge = Judge::new(&book);
    for question in &questions {
        black_box(judge.judge(question)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let name = "decide, flows per second, 1,000 policies, 10,000 pods";
    let rate = f64::from(u32::try_from(questions.len())?) / seconds;
    Ok(Line::alone_at_least(name, "flows/s", rate, 50_000.0))
}

fn label_changes(
    session: &mut Session,
    view: &ClusterView,
    local: bool,
    rounds: u32,
    name: &str,
) -> Result<Vec<Line>> {
    let pods = view.pods.iter().filter(|pod| pod.endpoint.is_some() == local);
    let mut pods: Vec<PodView> = pods.cloned().collect();
    let count = pods.len();
    let mut changes = Vec::new();
    for round in 0..rounds.max(200) {
        let turn = usize::try_from(round).unwrap_or(0) * 37 % count;
        let Some(pod) = pods.get_mut(turn) else { continue };
        pod.labels.insert("app".to_owned(), format!("app-{}", round % 7));
        pod.labels
            .insert("tier".to_owned(), format!("tier-{}", round % 5));
        let start = Instant::now();
        session.set_pod(&pod.namespace, &pod.name, Some(pod.clone()));
        let settled = session.settle();
        changes.push(start.elapsed());
        anyhow::ensure!(settled.anew.is_none(), "the change was not followed");
    }
    changes.sort();
    let worst = changes.get(changes.len() * 99 / 100).copied();
    let us = |times| median_ms(times) * 1000.0;
    let worst = us(worst.into_iter().collect());
    Ok(vec![
        Line::alone(name, "us", us(changes), Some(2000.0)),
        Line::alone("  of it the slowest in a hundred", "us", worst, Some(2000.0)),
    ])
}

/// A cluster as teams build them: each policy selects an application of a namespace; half are Kubernetes', half
/// Calico's.
pub(crate) fn cluster(pods: usize, policies: usize) -> ClusterView {
    let mut view = ClusterView::default();
    for number in 0..NAMESPACES {
        let name = format!("ns-{number}");
        let labels = [
            ("kubernetes.io/metadata.name".to_owned(), name.clone()),
            ("team".to_owned(), format!("team-{}", number % 10)),
        ];
        view.namespaces.insert(name, labels.into());
    }
    for number in 0..pods {
        let bits = u32::try_from(number).unwrap_or(0);
        let labels = [
            ("app".to_owned(), format!("app-{}", number / NAMESPACES % APPS)),
            (
                "tier".to_owned(),
                ["front", "back", "data"][number % 3].to_owned(),
            ),
        ];
        view.pods.push(PodView {
            namespace: format!("ns-{}", number % NAMESPACES),
            name: format!("pod-{number}"),
            labels: labels.into(),
            addresses: [std::net::Ipv4Addr::from(0x0a00_0001 + bits).into()].into(),
            named_ports: vec![NamedPort {
                name: "web".to_owned(),
                protocol: 6,
                port: 8080,
            }],
            endpoint: (number < LOCAL).then(|| EndpointId(bits + 1)),
            ..PodView::default()
        });
    }
    for number in 0..policies {
        let namespace = format!("ns-{}", number % NAMESPACES);
        let app = format!("app-{}", number / NAMESPACES % APPS);
        if number % 2 == 0 {
            view.policies.push(kubernetes(number, namespace, &app));
        } else {
            view.calico.push(calico(number, &namespace, &app));
        }
    }
    view
}

fn kubernetes(number: usize, namespace: String, app: &str) -> NetworkPolicy {
    let spec = serde_json::json!({
        "podSelector": {"matchLabels": {"app": app}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "front"}}},
            {"namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % 10)}}}],
            "ports": [{"port": "web"}, {"port": 9000 + number % 50, "endPort": 9100}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": format!("172.{}.0.0/16", number % 200)}}]},
            {"ports": [{"protocol": "UDP", "port": 53}]}],
    });
    NetworkPolicy {
        metadata: meta::ObjectMeta {
            name: Some(format!("policy-{number}")),
            namespace: Some(namespace),
            ..meta::ObjectMeta::default()
        },
        spec: serde_json::from_value::<NetworkPolicySpec>(spec).ok(),
    }
}

fn calico(number: usize, namespace: &str, app: &str) -> CalicoObject {
    let object = serde_json::json!({
        "metadata": {"name": format!("policy-{number}"), "namespace": namespace},
        "spec": {"order": number % 100, "selector": format!("app == '{app}'"), "types": ["Ingress", "Egress"],
            "ingress": [
                {"action": "Deny", "source": {"nets": [format!("192.168.{}.0/24", number % 250)]}},
                {"action": "Allow", "protocol": "TCP", "source": {"selector": "tier == 'front'",
                    "namespaceSelector": format!("team == 'team-{}'", number % 10)},
                    "destination": {"ports": [443, "8000:8100"]}},
                {"action": "Pass"}],
            "egress": [{"action": "Allow", "destination": {"selector": "tier in {'data', 'back'}"}}, {"action": "Pass"}]},
    });
    CalicoObject::NetworkPolicy(serde_json::from_value(object).unwrap_or_default())
}
