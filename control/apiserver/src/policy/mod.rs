//! Writes that change what policy decides are judged as a whole before they are stored: assertions that are stored
//! must go on to hold, and the tables must fit into the kernel of each node.
//!
//! Whatever policy depends on is written by one at a time, from the judgement until it is stored: two writes that are
//! each harmless cannot break an assertion together. Pods take turns only while there are assertions. What is
//! judged, and what is not, says `docs/checker.md`.

mod assertions;
mod capacity;
mod cluster;
mod hosts;

use std::{sync::Arc, time::Duration};

use api::{
    annotations::{ENFORCEMENT, USER_CONTROLLERS},
    palisade::{Enforcement, PolicyAssertion},
    resources::Resource,
};
use control_store::{ListOptions, ObjectKey};
use control_wire::Status;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedSemaphorePermit, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    Capacities, Server,
    objects::{self, metadata_text},
    write::store_failure,
};
use assertions::{Broken, Judged};
use cluster::{Objects, Part, Parts};

/// Longest judgement of assertions, and longest look at whether tables fit; a write that takes longer is refused.
const JUDGE_WITHIN: Duration = Duration::from_secs(10);

/// What writes that policy depends on take turns by.
pub(crate) struct Guard {
    /// Held for writing while something that policy depends on is judged and stored, and for reading while a pod
    /// is stored that nobody judges.
    turn: RwLock<()>,
    /// One judgement at a time: one that takes too long goes on to the next assertion, and must not be joined by
    /// others.
    judge: Arc<Semaphore>,
    /// Likewise for whether tables fit, which takes longer the more nodes there are; but one that nobody waits for any
    /// more ends soon, so the next one waits for its turn.
    fit: Arc<Semaphore>,
    /// What nodes were found to need.
    needs: Arc<capacity::Known>,
    parts: Mutex<Parts>,
    patience: Duration,
    /// What the kernel's tables of a node hold.
    capacities: Capacities,
}

/// The right to store what was judged, until it is dropped.
#[derive(Default)]
pub(crate) struct Held<'a> {
    _turn: Option<Turn<'a>>,
    /// For whoever asked.
    pub(crate) warnings: Vec<String>,
}

#[expect(dead_code, reason = "held, not read")]
enum Turn<'a> {
    Shared(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>),
}

/// How a write matters to policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matter {
    /// Not at all.
    No,
    /// A pod comes, or has other labels, or a service selects others.
    Pod,
    /// What decides for pods changes.
    Policy,
    /// An assertion changes.
    Assertion,
}

/// Nobody waits for the answer any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody waits for the answer any more")]
struct GaveUp;

impl GaveUp {
    fn check(nobody_waits: &CancellationToken) -> Result<(), Self> {
        match nobody_waits.is_cancelled() {
            true => Err(Self),
            false => Ok(()),
        }
    }
}

impl Guard {
    pub(crate) fn new(capacities: Capacities) -> Self {
        Self {
            turn: RwLock::default(),
            judge: Arc::new(Semaphore::new(1)),
            fit: Arc::new(Semaphore::new(1)),
            needs: Arc::default(),
            parts: Mutex::default(),
            patience: JUDGE_WITHIN,
            capacities,
        }
    }
}

impl Server {
    /// Waits for the turn of this write of `user` and judges it: `old` is what is stored, `new` what shall be,
    /// `None` being nothing.
    pub(crate) async fn hold_policy(
        &self,
        row: &'static Resource,
        user: &str,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<Held<'_>, Status> {
        let guard = &self.policy;
        let matter = matter(row, user, old, new);
        if matter == Matter::No {
            return Ok(Held::default());
        }
        if matter == Matter::Pod {
            let shared = guard.turn.read().await;
            if self.assertions().await?.is_empty() {
                return Ok(Held {
                    _turn: Some(Turn::Shared(shared)),
                    warnings: Vec::new(),
                });
            }
        }
        let alone = guard.turn.write().await;
        let assertions = match (matter, new) {
            (Matter::Assertion, Some(new)) => vec![read_assertion(new)?],
            _ => self.assertions().await?,
        };
        let fits = matter != Matter::Policy || new.is_none() || !decides(row);
        let warnings = if assertions.is_empty() && fits {
            Vec::new()
        } else {
            let object = new.or(old).unwrap_or(&Value::Null);
            let (namespace, name) = (metadata_text(object, "namespace"), metadata_text(object, "name"));
            let write = Write {
                row,
                name,
                key: objects::key(row, namespace, name),
                new,
                is_assertion: matter == Matter::Assertion,
                fits,
                removes: only_removes(old, new),
            };
            self.judge_write(&write, assertions).await?
        };
        Ok(Held {
            _turn: Some(Turn::Alone(alone)),
            warnings,
        })
    }

    /// Refuses a write that must not be, and says what whoever asked should know about another.
    async fn judge_write(
        &self,
        write: &Write<'_>,
        assertions: Vec<PolicyAssertion>,
    ) -> Result<Vec<String>, Status> {
        let blocking: Vec<String> = assertions
            .iter()
            .filter(|assertion| assertion.enforcement() == Enforcement::Block)
            .map(|assertion| format!("{:?}", assertion.metadata.name.as_deref().unwrap_or_default()))
            .collect();
        let judged = match assertions.is_empty() {
            true => Ok(Judged::default()),
            false => {
                let judge =
                    move |before: &Objects, after: Option<&Objects>, nobody_waits: &CancellationToken| {
                        let after = after.map(Objects::view);
                        assertions::judge(before, after.as_ref(), &assertions, nobody_waits)
                    };
                let turn = Arc::clone(&self.policy.judge).try_acquire_owned();
                let turn = turn.map_err(|_busy| "an earlier judgement still runs".to_owned());
                self.within(async { turn }, write, judge).await
            }
        };
        let judged = match judged {
            Ok(judged) => judged,
            Err(why) if blocking.is_empty() => Judged {
                notes: vec![format!(
                    "whether assertions still hold could not be judged: {why}"
                )],
                ..Judged::default()
            },
            Err(why) => {
                return Err(Status::unavailable(format!(
                    "{} {:?} is not stored, because whether PolicyAssertion {} would still hold could not be judged: \
                     {why}; try again, or annotate the assertion with {ENFORCEMENT}=warn",
                    write.row.plural,
                    write.name,
                    blocking.join(", ")
                )));
            }
        };
        let refuse = |message: String| {
            info!(target: "audit", resource = write.row.plural, name = write.name, why = message, "policy refused");
            Err(Status::forbidden(write.row, write.name, message))
        };
        let (mut broken, mut warnings) = (judged.broken, judged.notes);
        let refusing: Vec<Broken> = broken.extract_if(.., |broken| broken.blocks).collect();
        if !refusing.is_empty() {
            return refuse(assertions::refusal(&refusing, write.is_assertion));
        }
        if !write.fits {
            let (capacities, known) = (self.policy.capacities, Arc::clone(&self.policy.needs));
            let fit = move |before: &Objects, after: Option<&Objects>, nobody_waits: &CancellationToken| {
                let after = after.unwrap_or(before);
                capacity::refusal(before, after, &capacities, &known, nobody_waits)
            };
            let turn = Arc::clone(&self.policy.fit).acquire_owned();
            let turn = async { turn.await.map_err(|closed| closed.to_string()) };
            match self.within(turn, write, fit).await {
                Ok(Some(oversized)) => return refuse(oversized),
                Ok(None) => {}
                // Whoever has to make tables smaller must always be able to.
                Err(why) if write.removes => warnings.push(format!(
                    "whether it fits into the kernel's tables of each node could not be judged: {why}"
                )),
                Err(why) => {
                    return Err(Status::unavailable(format!(
                        "{} {:?} is not stored, because whether it fits into the kernel's tables of each node could not \
                         be judged: {why}; try again, which goes on from there",
                        write.row.plural, write.name
                    )));
                }
            }
        }
        warnings.extend(broken.iter().map(|broken| broken.warning(write.is_assertion)));
        Ok(warnings)
    }

    /// What `judge` finds within the time that it has. An error says why nobody knows.
    async fn within<T: Send + 'static>(
        &self,
        turn: impl Future<Output = Result<OwnedSemaphorePermit, String>>,
        write: &Write<'_>,
        judge: impl FnOnce(&Objects, Option<&Objects>, &CancellationToken) -> Result<T, GaveUp> + Send + 'static,
    ) -> Result<T, String> {
        let patience = self.policy.patience;
        match tokio::time::timeout(patience, self.judgement(turn, write, judge)).await {
            Ok(judged) => judged,
            Err(_elapsed) => Err(format!("not within {patience:?}")),
        }
    }

    /// What `judge` finds, which is told when nobody waits for it any more.
    async fn judgement<T: Send + 'static>(
        &self,
        turn: impl Future<Output = Result<OwnedSemaphorePermit, String>>,
        write: &Write<'_>,
        judge: impl FnOnce(&Objects, Option<&Objects>, &CancellationToken) -> Result<T, GaveUp> + Send + 'static,
    ) -> Result<T, String> {
        let cannot = |what: &str, failure: &(dyn std::error::Error + 'static)| {
            error!(error = failure, "judgement of a policy: {what}");
            format!("{what}; the server's log says why")
        };
        let permit = turn.await?;
        let before: Objects = self
            .policy
            .parts
            .lock()
            .await
            .read(&*self.store)
            .await
            .map_err(|failure| cannot("the stored objects cannot be read", &failure))?;
        let part = match write.new {
            Some(new) => Part::read(write.row, new.to_string().as_bytes())
                .map_err(|failure| cannot("the object cannot be read", &failure))?,
            None => None,
        };
        let after = (!write.is_assertion).then(|| before.clone().with(write.key.clone(), part));
        let nobody_waits = CancellationToken::new();
        // Also when whoever asked hangs up.
        let _waiting = nobody_waits.clone().drop_guard();
        let judgement = tokio::task::spawn_blocking(move || {
            let judged = judge(&before, after.as_ref(), &nobody_waits);
            drop(permit);
            judged
        });
        judgement
            .await
            .map_err(|failure| cannot("the judgement failed", &failure))?
            .map_err(|gave_up| gave_up.to_string())
    }

    /// The assertions that are stored.
    async fn assertions(&self) -> Result<Vec<PolicyAssertion>, Status> {
        let prefix = objects::prefix(crate::row("palisade.dev", "policyassertions"), None);
        let page = self.store.list(&prefix, &ListOptions::default()).await;
        let page = page.map_err(|error| store_failure(&error))?;
        let read = |stored: &control_store::Stored| {
            serde_json::from_slice(&stored.value).map_err(|problem| {
                error!(assertion = stored.key.name, error = %problem, "assertion");
                Status::internal(format!("policy assertion {:?} is not readable", stored.key.name))
            })
        };
        page.items.iter().map(read).collect()
    }
}

/// A write that is judged.
struct Write<'a> {
    row: &'static Resource,
    name: &'a str,
    key: ObjectKey,
    new: Option<&'a Value>,
    is_assertion: bool,
    /// Whether what it makes of tables is not looked at.
    fits: bool,
    /// Whether it only takes something away.
    removes: bool,
}

fn read_assertion(object: &Value) -> Result<PolicyAssertion, Status> {
    serde_json::from_value(object.clone()).map_err(Status::internal)
}

/// Whether objects of the kind make up the tables. What else policy depends on comes and goes with the pods, of which
/// nobody knows how many there will be.
fn decides(row: &Resource) -> bool {
    matches!(
        row.group,
        "networking.k8s.io" | "policy.networking.k8s.io" | "projectcalico.org"
    )
}

/// Whether `new` is `old` without some of its rules, or of a set's networks. Some have to be left: none of them means
/// another thing than fewer.
fn only_removes(old: Option<&Value>, new: Option<&Value>) -> bool {
    const LISTS: [&str; 3] = ["ingress", "egress", "nets"];
    let labels =
        |object: Option<&Value>| object.and_then(|object| object.pointer("/metadata/labels").cloned());
    if labels(old) != labels(new) {
        return false;
    }
    let spec = |object: Option<&Value>| object.and_then(|object| object.get("spec")?.as_object().cloned());
    let (Some(mut old), Some(mut new)) = (spec(old), spec(new)) else {
        return false;
    };
    let fewer = |(old, new): (Option<Value>, Option<Value>)| match (old, new) {
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            let mut old_items = old.iter();
            new == old || !new.is_empty() && new.iter().all(|item| old_items.any(|other| other == item))
        }
        (old, new) => old == new,
    };
    let lists_fit = LISTS
        .into_iter()
        .all(|list| fewer((old.remove(list), new.remove(list))));
    lists_fit && old == new
}

/// How a write matters.
fn matter(row: &Resource, user: &str, old: Option<&Value>, new: Option<&Value>) -> Matter {
    let changes = |pointer: &str| {
        let at = |object: Option<&Value>| {
            let found = object.and_then(|object| object.pointer(pointer)).cloned();
            found.filter(|found| found.as_object().is_none_or(|map| !map.is_empty()))
        };
        at(old) != at(new)
    };
    let comes_or_goes = old.is_some() != new.is_some();
    let (labels, spec) = (changes("/metadata/labels"), changes("/spec"));
    let matters = |matters: bool, matter| if matters { matter } else { Matter::No };
    match (row.group, row.kind) {
        // An assertion that goes breaks nothing.
        ("palisade.dev", "PolicyAssertion") => matters(
            new.is_some() && (spec || changes("/metadata/annotations")),
            Matter::Assertion,
        ),
        // Neither does a pod that goes. What it is called and how it is made does not change.
        ("", "Pod") => matters(new.is_some() && (comes_or_goes || labels), Matter::Pod),
        // Who writes a service says what is behind it.
        ("", "Service") => matters(comes_or_goes || spec, Matter::Pod),
        ("", "Namespace" | "ServiceAccount") => matters(labels, Matter::Policy),
        // The control plane's own slices follow from services and pods, and were judged with those.
        ("discovery.k8s.io", "EndpointSlice") => matters(
            user != USER_CONTROLLERS
                && (comes_or_goes || labels || changes("/endpoints") || changes("/ports")),
            Matter::Policy,
        ),
        (
            "projectcalico.org",
            "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" | "StagedKubernetesNetworkPolicy",
        ) => Matter::No,
        ("networking.k8s.io" | "policy.networking.k8s.io" | "projectcalico.org", _) => {
            matters(comes_or_goes || labels || spec, Matter::Policy)
        }
        _ => Matter::No,
    }
}

#[cfg(test)]
mod tests {
    use api::{ImageRef, palisade::ImagePolicy, resources::by_any_name};
    use async_trait::async_trait;
    use control_store::{Change, Embedded, Expected, Keyring, Store as _};
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    use super::*;
    use crate::{ImageGate, Judgement, Refusal};

    struct NoGate;

    #[async_trait]
    impl ImageGate for NoGate {
        async fn judge(
            &self,
            _: &str,
            _: &ImageRef,
            _: &[ImagePolicy],
            _: &[Secret],
        ) -> Result<Judgement, Refusal> {
            unreachable!("no pod is admitted here")
        }
    }

    fn quiet(enforcement: &str) -> Value {
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "PolicyAssertion",
            "metadata": {"name": "quiet", "annotations": {ENFORCEMENT: enforcement}},
            "spec": {"assertion": "no pod reaches internet"},
        })
    }

    /// A server that nobody reaches, with this assertion.
    async fn server(directory: &std::path::Path, assertion: Option<Value>) -> Server {
        let keyring = Keyring::load_or_create(&directory.join("kek")).unwrap();
        let store = Embedded::open(&directory.join("store.redb"), keyring).unwrap();
        if let Some(assertion) = assertion {
            let key = objects::key(by_any_name("assertion").unwrap(), "", "quiet");
            let change = Change::Put {
                uid: "u".to_owned(),
                value: assertion.to_string().into_bytes(),
            };
            store.write(&key, Expected::Absent, change).await.unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let node_tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Server {
            address: String::new(),
            store: Arc::new(store),
            gate: Arc::new(NoGate),
            node_tls: Arc::new(node_tls),
            token_keys: Arc::new(control_pki::token_key::load_or_create(directory, "token.key").unwrap()),
            requests: Arc::new(Semaphore::new(1)),
            streams: Arc::new(Semaphore::new(1)),
            service_range: Default::default(),
            services: Mutex::default(),
            certificate_requests: Mutex::default(),
            revocations: RwLock::default(),
            revoked: tokio::sync::watch::Sender::default(),
            tiers: RwLock::default(),
            policy: Guard::new(Capacities::KERNEL),
            shutdown: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_judged_is_refused_unless_it_only_warns() {
        let directory = tempfile::tempdir().unwrap();
        let policies = by_any_name("netpol").unwrap();
        let policy = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}}});
        for (enforcement, stored) in [("block", false), ("warn", true)] {
            let place = directory.path().join(enforcement);
            std::fs::create_dir(&place).unwrap();
            let server = server(&place, Some(quiet(enforcement))).await;
            assert!(
                server
                    .hold_policy(policies, "jane", None, Some(&policy))
                    .await
                    .is_ok()
            );
            // As while a judgement runs that nobody waits for any more.
            let running = Arc::clone(&server.policy.judge).try_acquire_owned().unwrap();
            match server.hold_policy(policies, "jane", None, Some(&policy)).await {
                Ok(held) => {
                    assert!(
                        stored && held.warnings[0].contains("could not be judged"),
                        "{:?}",
                        held.warnings
                    );
                }
                Err(status) => {
                    assert!(!stored && status.code() == 503, "{status}");
                    for part in ["\"quiet\"", "an earlier judgement still runs", ENFORCEMENT] {
                        assert!(status.message().contains(part), "{status}");
                    }
                }
            }
            drop(running);
            assert!(
                server
                    .hold_policy(policies, "jane", None, Some(&policy))
                    .await
                    .is_ok()
            );
            // Neither is a write judged as if an object that cannot be read were not there.
            let key = objects::key(policies, "a", "broken");
            let change = Change::Put {
                uid: "u".to_owned(),
                value: b"{".to_vec(),
            };
            server.store.write(&key, Expected::Absent, change).await.unwrap();
            let held = server.hold_policy(policies, "jane", None, Some(&policy)).await;
            assert!(held.is_err_and(|refused| refused.code() == 503));
            // Nobody is kept from taking away.
            let gone = server.hold_policy(policies, "jane", Some(&policy), None).await;
            assert_eq!(gone.is_ok(), stored);
        }
    }

    #[tokio::test]
    async fn a_slow_look_at_the_tables_refuses_and_one_that_nobody_awaits_ends() {
        let directory = tempfile::tempdir().unwrap();
        let policies = by_any_name("netpol").unwrap();
        let policy = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}}});
        // An assertion would be judged first, within the same time.
        let mut server = server(directory.path(), None).await;
        // As while the tables of an earlier write are still put together.
        server.policy.patience = Duration::from_millis(50);
        let running = Arc::clone(&server.policy.fit).try_acquire_owned().unwrap();
        let held = server.hold_policy(policies, "jane", None, Some(&policy)).await;
        let refused = held.err().unwrap();
        assert_eq!(refused.code(), 503);
        for part in ["fits into the kernel's tables", "not within 50ms", "try again"] {
            assert!(refused.message().contains(part), "{refused}");
        }
        // Who only takes something away is not kept out.
        let rules = |ports: &[u16]| {
            let rules: Vec<Value> = ports
                .iter()
                .map(|port| json!({"ports": [{"port": port}]}))
                .collect();
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}, "ingress": rules}})
        };
        let fewer = server
            .hold_policy(policies, "jane", Some(&rules(&[1, 2, 3])), Some(&rules(&[1, 3])))
            .await;
        let warnings = fewer.unwrap().warnings;
        assert!(warnings[0].contains("could not be judged"), "{warnings:?}");
        let gone = server.hold_policy(policies, "jane", Some(&policy), None).await;
        assert!(gone.is_ok());
        drop(gone);
        drop(running);
        server.policy.patience = JUDGE_WITHIN;
        let held = server.hold_policy(policies, "jane", None, Some(&policy)).await;
        assert!(held.unwrap().warnings.is_empty());

        let write = Write {
            row: policies,
            name: "p",
            key: objects::key(policies, "a", "p"),
            new: Some(&policy),
            is_assertion: false,
            fits: true,
            removes: false,
        };
        let (started, starts) = tokio::sync::oneshot::channel();
        // As long as the assertions that are left: for ever, unless it is told.
        let endless =
            move |_: &Objects, _: Option<&Objects>, nobody_waits: &CancellationToken| -> Result<(), GaveUp> {
                started.send(()).unwrap();
                loop {
                    GaveUp::check(nobody_waits)?;
                    std::thread::yield_now();
                }
            };
        let turn = Arc::clone(&server.policy.judge).try_acquire_owned().unwrap();
        let judgement = server.within::<()>(async { Ok(turn) }, &write, endless);
        tokio::select! {
            judged = judgement => panic!("{judged:?}"),
            started = starts => started.unwrap(),
        }
        let again = server.policy.judge.acquire();
        drop(tokio::time::timeout(JUDGE_WITHIN, again).await.unwrap().unwrap());
        let assertions = [read_assertion(&quiet("block")).unwrap()];
        let gone = CancellationToken::new();
        gone.cancel();
        let judged = assertions::judge(&Objects::default(), None, &assertions, &gone);
        assert!(judged.is_err());
    }

    #[test]
    fn only_what_takes_rules_away_is_taken_to() {
        let removes =
            |old: Value, new: Value| only_removes(Some(&json!({"spec": old})), Some(&json!({"spec": new})));
        let spec = |rules: &[u16]| json!({"selector": "a", "ingress": rules});
        assert!(removes(spec(&[1, 2, 3]), spec(&[1, 3])));
        assert!(removes(spec(&[1, 2]), spec(&[1, 2])));
        assert!(removes(json!({"nets": ["a", "b"]}), json!({"nets": ["b"]})));
        assert!(!removes(spec(&[1, 2]), spec(&[2, 1])), "another order");
        assert!(!removes(spec(&[1, 2]), spec(&[1, 2, 3])));
        assert!(!removes(spec(&[1, 2]), spec(&[])), "none may be all");
        assert!(!removes(spec(&[1, 2]), json!({"selector": "a"})));
        assert!(!removes(
            spec(&[1, 2]),
            json!({"selector": "all()", "ingress": [1]})
        ));
        assert!(!removes(json!({"ingress": "x"}), json!({"ingress": "y"})));
        assert!(!only_removes(None, Some(&json!({"spec": {}}))));
        let labelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec(&[1])});
        assert!(!only_removes(
            Some(&json!({"spec": spec(&[1, 2])})),
            Some(&labelled)
        ));
    }

    #[test]
    fn writes_matter_as_far_as_policy_depends_on_them() {
        let matter = |resource: &str, old: Value, new: Value| {
            let present = |value: &Value| !value.is_null();
            let (old, new) = (
                Some(&old).filter(|v| present(v)),
                Some(&new).filter(|v| present(v)),
            );
            matter(by_any_name(resource).unwrap(), "jane", old, new)
        };
        let none = || Value::Null;
        let bare = || json!({"metadata": {"name": "x"}});
        let labelled = || json!({"metadata": {"name": "x", "labels": {"a": "b"}}});
        let annotated = || json!({"metadata": {"name": "x", "annotations": {"a": "b"}}});
        let specified = || json!({"metadata": {"name": "x"}, "spec": {"a": 1}});
        for policy in [
            "netpol",
            "gnp",
            "clusternetworkpolicies",
            "tiers",
            "hep",
            "netsets",
            "felixconfig",
        ] {
            assert_eq!(matter(policy, none(), bare()), Matter::Policy, "{policy}");
            assert_eq!(matter(policy, bare(), none()), Matter::Policy, "{policy}");
            assert_eq!(matter(policy, bare(), specified()), Matter::Policy, "{policy}");
            assert_eq!(matter(policy, bare(), annotated()), Matter::No, "{policy}");
        }
        for labels in ["ns", "sa"] {
            assert_eq!(matter(labels, none(), bare()), Matter::No);
            assert_eq!(matter(labels, bare(), labelled()), Matter::Policy);
            assert_eq!(matter(labels, labelled(), none()), Matter::Policy);
        }
        assert_eq!(matter("pods", none(), bare()), Matter::Pod);
        assert_eq!(matter("pods", labelled(), bare()), Matter::Pod);
        assert_eq!(matter("pods", bare(), annotated()), Matter::No);
        assert_eq!(matter("pods", labelled(), none()), Matter::No);
        assert_eq!(matter("services", none(), specified()), Matter::Pod);
        assert_eq!(matter("services", bare(), specified()), Matter::Pod);
        assert_eq!(matter("services", specified(), none()), Matter::Pod);
        assert_eq!(matter("services", bare(), labelled()), Matter::No);
        assert_eq!(matter("snp", none(), bare()), Matter::No);
        assert_eq!(matter("secrets", none(), bare()), Matter::No);
        assert_eq!(matter("assertion", none(), specified()), Matter::Assertion);
        assert_eq!(matter("assertion", bare(), annotated()), Matter::Assertion);
        assert_eq!(matter("assertion", bare(), labelled()), Matter::No);
        assert_eq!(matter("assertion", specified(), none()), Matter::No);
        assert_eq!(matter("endpointslices", none(), bare()), Matter::Policy);
        let slices = by_any_name("endpointslices").unwrap();
        assert_eq!(
            super::matter(slices, USER_CONTROLLERS, None, Some(&bare())),
            Matter::No
        );
    }
}
