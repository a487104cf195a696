//! How long the policy compiler takes, and how that grows with pods and policies.

use std::{
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
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

use crate::{Line, Report, median_ms};

/// Pods on the node that compiles.
pub(crate) const LOCAL: usize = 200;
/// Namespaces, applications and teams that pods and policies are spread over.
const NAMESPACES: usize = 50;
const APPS: usize = 40;
/// Flows that are judged one by one.
const FLOWS: usize = 500_000;
/// Changes of one kind.
const CHANGES: usize = 200;
/// Pods and policies of the curves, beside [`USUAL`].
pub(crate) const SIZES: [(usize, usize); 6] = [
    (100, 1_000),
    (1_000, 1_000),
    (100_000, 1_000),
    (10_000, 10),
    (10_000, 100),
    (10_000, 10_000),
];
pub(crate) const USUAL: (usize, usize) = (10_000, 1_000);
/// Compilations of each size.
const GROWTH: u32 = 3;

pub(crate) fn measure(rounds: u32) -> Result<Report> {
    let rounds = rounds.clamp(3, 10);
    let mut lines = Vec::new();
    let view = cluster(USUAL);
    let name = "compile 1,000 policies, 10,000 pods, 200 local, cold";
    lines.push(Line::alone(name, "ms", cold(&view, rounds), Some(1000.0)));

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
        let changes = Changes::measure(&mut session, &view, local)?;
        lines.extend(changed(
            &format!("the same, labels of a pod of {of} change"),
            &changes.labels,
        ));
        lines.extend(changed(&format!("the same, a pod of {of} goes"), &changes.goes));
        lines.extend(changed(&format!("the same, a pod of {of} comes"), &changes.comes));
    }
    let name = "the same, a session begins (objects read, tables written)";
    lines.push(Line::alone(name, "ms", median_ms(vec![begun]), None));

    for (pods, policies) in SIZES {
        let view = cluster((pods, policies));
        let name = format!("growth: {policies} policies, {pods} pods, cold");
        lines.push(Line::alone(&name, "ms", cold(&view, GROWTH), None));
        let mut session = Session::new(view.clone(), NodeTables::default());
        session.settle();
        let changes = Changes::measure(&mut session, &view, true)?;
        for (what, times) in [
            ("its labels change", changes.labels),
            ("it goes", changes.goes),
            ("it comes", changes.comes),
        ] {
            let name = format!("  a pod of this node: {what}");
            lines.push(Line::alone(&name, "us", median_ms(times) * 1000.0, None));
        }
    }
    Ok(Report {
        name: "compile",
        how: format!(
            "medians: cold {rounds} times (growth {GROWTH}), changes {CHANGES} times; the rest once"
        ),
        lines,
    })
}

/// Milliseconds of a compilation that knows nothing from before.
fn cold(view: &ClusterView, rounds: u32) -> f64 {
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        black_box(compile(view));
        start.elapsed()
    });
    median_ms(times.collect())
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

/// How long a session took to follow each change.
#[derive(Default)]
struct Changes {
    labels: Vec<Duration>,
    goes: Vec<Duration>,
    comes: Vec<Duration>,
}

impl Changes {
    /// Pods of this node or of others: first their labels change, then one goes and another one comes for it.
    fn measure(session: &mut Session, view: &ClusterView, local: bool) -> Result<Self> {
        let mut changes = Self::default();
        let mut pods = pods_of(view, local);
        let count = pods.len();
        let mut follow = |pod: &PodView, now: Option<PodView>| -> Result<Duration> {
            let start = Instant::now();
            session.set_pod(&pod.namespace, &pod.name, now);
            let settled = session.settle();
            let took = start.elapsed();
            anyhow::ensure!(settled.anew.is_none(), "the change was not followed: {settled:?}");
            // As the agent does every few seconds, while nobody waits.
            session.tidy();
            Ok(took)
        };
        for round in 0..CHANGES {
            let pod = pods.get_mut(round * 37 % count).context("no pod")?;
            label(pod, round);
            changes.labels.push(follow(pod, Some(pod.clone()))?);
        }
        for round in 0..CHANGES {
            let pod = pods.get_mut(round * 37 % count).context("no pod")?;
            changes.goes.push(follow(pod, None)?);
            *pod = successor(pod, round);
            changes.comes.push(follow(pod, Some(pod.clone()))?);
        }
        Ok(changes)
    }
}

/// Median and the slowest in a hundred, both with the target.
fn changed(name: &str, times: &[Duration]) -> [Line; 2] {
    let mut times = times.to_vec();
    times.sort();
    let us = |times| median_ms(times) * 1000.0;
    let worst = times.get(times.len() * 99 / 100).copied();
    [
        Line::alone(name, "us", us(times), Some(2000.0)),
        Line::alone(
            "  of it the slowest in a hundred",
            "us",
            us(worst.into_iter().collect()),
            Some(2000.0),
        ),
    ]
}

/// Pods of this node, or of all others.
pub(crate) fn pods_of(view: &ClusterView, local: bool) -> Vec<PodView> {
    let pods = view.pods.iter().filter(|pod| pod.endpoint.is_some() == local);
    pods.cloned().collect()
}

/// Gives a pod other labels, some that others have too and some that nobody has.
pub(crate) fn label(pod: &mut PodView, round: usize) {
    pod.labels.insert("app".to_owned(), format!("app-{}", round % 7));
    pod.labels
        .insert("tier".to_owned(), format!("tier-{}", round % 5));
}

/// What comes for a pod that went, as in a rollout: the same labels, and nothing else.
pub(crate) fn successor(pod: &PodView, round: usize) -> PodView {
    let number = u32::try_from(round).unwrap_or(0);
    let (of, first) = match pod.endpoint {
        Some(_) => ("local", Ipv4Addr::new(10, 200, 0, 1)),
        None => ("remote", Ipv4Addr::new(10, 201, 0, 1)),
    };
    PodView {
        name: format!("{of}-successor-{round}"),
        addresses: [Ipv4Addr::from(u32::from(first) + number).into()].into(),
        endpoint: pod.endpoint.map(|_| EndpointId(10_000 + number)),
        ..pod.clone()
    }
}

/// A cluster as teams build them: each policy selects an application of a namespace; half are Kubernetes', half
/// Calico's.
pub(crate) fn cluster((pods, policies): (usize, usize)) -> ClusterView {
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
            addresses: [Ipv4Addr::from(0x0a00_0001 + bits).into()].into(),
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
