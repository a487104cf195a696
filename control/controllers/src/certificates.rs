//! Approves requests for the certificates of nodes, when who asks is the node itself or may bring it in, and removes old
//! requests. It does not sign: that takes the authority's key, which another process has.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    backoff::Backoff,
    cache::Cache,
    recorder::{Recorder, Severity},
    requests::{self, Requests},
};
use api::annotations::{GROUP_BOOTSTRAPPERS, GROUP_NODES, USER_BOOTSTRAP_PREFIX, USER_NODE_PREFIX};
use control_pki::requests::{Kind, NodeRequest, own_name};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use kube::{
    Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};

const RESYNC: Duration = Duration::from_secs(60);
/// Kubernetes keeps requests that were answered for an hour, and others for a day.
const ANSWERED_STAY: SignedDuration = SignedDuration::from_hours(1);
const OTHERS_STAY: SignedDuration = SignedDuration::from_hours(24);
/// Of one requester, or of all together, there are many; the API server takes twice as many and no more.
const MANY_OF_ONE: usize = 10;
const MANY_OF_ALL: usize = 250;
/// How long requests stay where there are many: until who asked has had the answer, or until people could give one. An
/// agent asks anew every 15 minutes, which is less than leave here in that time.
const ANSWERED_STAY_AMONG_MANY: SignedDuration = SignedDuration::from_mins(2);
const OTHERS_STAY_AMONG_MANY: SignedDuration = SignedDuration::from_hours(1);

/// What the loop looks at.
pub(crate) struct Caches {
    pub(crate) requests: Cache<CertificateSigningRequest>,
    pub(crate) nodes: Cache<Node>,
}

/// Runs for ever.
/// `taken` are the addresses by which clients know the API server.
pub(crate) async fn run(client: Client, recorder: Recorder, mut caches: Caches, taken: BTreeSet<IpAddr>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(requests), Some(nodes)) = (caches.requests.objects(), caches.nodes.objects()) {
            let mut settled = true;
            let now = Timestamp::now();
            let too_many = too_many(&requests, now);
            for request in requests {
                let goes = is_old(&request, now) || too_many.contains(&request.name_any());
                let why = approval(&request, &nodes, &taken).filter(|_why| !goes);
                settled &= act(&client, &recorder, &request, goes, why).await;
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = caches.requests.changed() => {}
            // A node that has just said its addresses may have asked for them before.
            () = caches.nodes.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// False when it has to be tried again.
async fn act(
    client: &Client,
    recorder: &Recorder,
    request: &CertificateSigningRequest,
    goes: bool,
    why: Option<&str>,
) -> bool {
    let api = Requests::all(client.clone());
    let name = request.name_any();
    let done = if goes {
        api.delete(&name, &DeleteParams::default()).await.map(drop)
    } else if let Some(why) = why {
        let approved = approve(&api, request, why).await;
        if approved.is_ok() {
            recorder.record(request, Severity::Normal, "Approved", why).await;
        }
        approved
    } else {
        return true;
    };
    requests::is_settled(&name, &done)
}

async fn approve(api: &Requests, request: &CertificateSigningRequest, why: &str) -> Result<(), kube::Error> {
    let status = requests::with_condition(request, "Approved", "AutoApproved", why);
    api.patch_subresource(
        "approval",
        &request.name_any(),
        &PatchParams::default(),
        &Patch::Merge(requests::patch(request, &status)),
    )
    .await
    .map(drop)
}

fn has_stayed(request: &CertificateSigningRequest, stays: SignedDuration, now: Timestamp) -> bool {
    let made = request.creation_timestamp();
    made.is_some_and(|made| now.duration_since(made.0) > stays)
}

fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let stays = if requests::is_answered(request) {
        ANSWERED_STAY
    } else {
        OTHERS_STAY
    };
    has_stayed(request, stays, now)
}

/// Those that go sooner because there are many: the oldest first.
fn too_many(requests: &[Arc<CertificateSigningRequest>], now: Timestamp) -> BTreeSet<String> {
    let requester = |request: &CertificateSigningRequest| request.spec.username.clone().unwrap_or_default();
    let mut of_all = requests.len();
    let mut of_one: HashMap<String, usize> = HashMap::new();
    for request in requests {
        *of_one.entry(requester(request)).or_default() += 1;
    }
    let mut oldest_first: Vec<_> = requests.iter().collect();
    oldest_first.sort_by_key(|request| (request.creation_timestamp(), request.name_any()));
    let mut go = BTreeSet::new();
    for request in oldest_first {
        let own = of_one.entry(requester(request)).or_default();
        let stays = match requests::is_answered(request) {
            true => ANSWERED_STAY_AMONG_MANY,
            false => OTHERS_STAY_AMONG_MANY,
        };
        if (*own > MANY_OF_ONE || of_all > MANY_OF_ALL) && has_stayed(request, stays, now) {
            *own -= 1;
            of_all -= 1;
            go.insert(request.name_any());
        }
    }
    go
}

/// Why the request is approved; nothing leaves it to people.
///
/// A client's certificate goes to the node itself as long as its object is there, or to who may bring in the node of that
/// very name. A server's goes to the node itself, for the names that its object says it has and nobody else.
fn approval(
    request: &CertificateSigningRequest,
    nodes: &[Arc<Node>],
    taken: &BTreeSet<IpAddr>,
) -> Option<&'static str> {
    if requests::is_answered(request) || requests::has(request, "Approved") {
        return None;
    }
    let spec = &request.spec;
    let kind = Kind::of_signer(&spec.signer_name)?;
    let pem = std::str::from_utf8(&spec.request.0).ok()?;
    let asked = NodeRequest::parse(kind, pem, spec.usages.as_deref().unwrap_or_default()).ok()?;
    let user = spec.username.as_deref().unwrap_or_default();
    let is = |prefix: &str, group: &str| {
        let in_group = spec.groups.iter().flatten().any(|own| own == group);
        in_group && user.strip_prefix(prefix) == Some(asked.node.as_str())
    };
    let itself = is(USER_NODE_PREFIX, GROUP_NODES);
    let is_there = || nodes.iter().any(|node| node.name_any() == asked.node);
    match kind {
        Kind::Client if itself && is_there() => {
            Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
        }
        Kind::Client if is(USER_BOOTSTRAP_PREFIX, GROUP_BOOTSTRAPPERS) => {
            Some("Auto approving kubelet client certificate of the node that this identity may bring in.")
        }
        Kind::Serving if itself && asked.names.is_subset(&names_of(&asked.node, nodes, taken)) => {
            Some("Auto approving kubelet serving certificate for names of the node.")
        }
        _ => None,
    }
}

/// The names of a node: a node writes its addresses itself, so that those by which clients may know somebody else are not its own.
fn names_of(name: &str, nodes: &[Arc<Node>], taken: &BTreeSet<IpAddr>) -> BTreeSet<String> {
    let (own, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.name_any() == name);
    let others: BTreeSet<IpAddr> = others.into_iter().flat_map(|node| addresses(node)).collect();
    let taken: BTreeSet<IpAddr> = taken.iter().map(IpAddr::to_canonical).collect();
    let is_its = |address: &IpAddr| {
        let everybodys = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        !everybodys && !taken.contains(address) && !others.contains(address)
    };
    let addresses = own.into_iter().flat_map(|node| addresses(node)).filter(is_its);
    addresses
        .map(|address| address.to_string())
        .chain([own_name(name)])
        .collect()
}

/// The addresses that a node says it has.
fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let all = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    all.filter_map(|address| address.address.parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use control_pki::requests::make;
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};
    use serde_json::json;

    use super::*;

    fn request(
        node: &str,
        kind: Kind,
        names: &[String],
        user: &str,
        group: &str,
    ) -> CertificateSigningRequest {
        let (_key, pem) = make(node, kind, names).unwrap();
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.signer_name = kind.signer().to_owned();
        request.spec.usages = Some(kind.usages().map(str::to_owned).to_vec());
        request.spec.username = Some(user.to_owned());
        request.spec.groups = Some(vec![group.to_owned()]);
        request
    }

    #[test]
    fn only_who_is_bound_to_the_name_gets_it() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        let nodes = [Arc::new(node)];
        let client = |user: &str, group: &str| {
            let request = request("n1", Kind::Client, &[], user, group);
            approval(&request, &nodes, &BTreeSet::new()).is_some()
        };
        assert!(client("system:bootstrap:n1", "system:bootstrappers"));
        assert!(client("system:node:n1", "system:nodes"));
        for (user, group) in [
            ("system:bootstrap:n2", "system:bootstrappers"),
            ("system:bootstrap:n1", "developers"),
            ("system:node:n2", "system:nodes"),
            ("system:node:n1", "developers"),
            ("joe", "system:bootstrappers"),
        ] {
            assert!(!client(user, group), "{user} {group}");
        }
        let renewal = request("n1", Kind::Client, &[], "system:node:n1", "system:nodes");
        let approved = approval(&renewal, &[], &BTreeSet::new());
        assert_eq!(approved, None, "there is no such node");
    }

    #[test]
    fn servers_get_the_names_that_their_node_has() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]},
        }))
        .unwrap();
        let nodes = [Arc::new(node)];
        let serving = |names: &[&str], user: &str, group: &str| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let request = request("n1", Kind::Serving, &names, user, group);
            approval(&request, &nodes, &BTreeSet::new()).is_some()
        };
        let own = own_name("n1");
        assert!(serving(&[&own, "10.0.0.7"], "system:node:n1", "system:nodes"));
        assert!(
            !serving(&[&own, "10.0.0.8"], "system:node:n1", "system:nodes"),
            "another address"
        );
        assert!(
            !serving(&[&own_name("n2")], "system:node:n1", "system:nodes"),
            "another node"
        );
        assert!(
            !serving(&[&own], "system:bootstrap:n1", "system:bootstrappers"),
            "not yet a node"
        );
        let mut denied = request("n1", Kind::Client, &[], "system:node:n1", "system:nodes");
        denied.status =
            serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]})).ok();
        assert_eq!(approval(&denied, &nodes, &BTreeSet::new()), None);
    }

    #[test]
    fn no_node_gets_an_address_by_which_clients_know_another() {
        let node = |name: &str, addresses: &[&str]| -> Arc<Node> {
            let address = |address: &&str| json!({"type": "InternalIP", "address": address});
            let addresses: Vec<_> = addresses.iter().map(address).collect();
            let node = json!({"metadata": {"name": name}, "status": {"addresses": addresses}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let claims = [
            "10.0.0.1",
            "10.0.0.7",
            "10.0.0.8",
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "fd00::1",
            "::ffff:10.0.0.8",
        ];
        let nodes = [node("n1", &claims), node("n2", &["10.0.0.8", "fd00::8"])];
        // The API server's.
        let taken = ["10.0.0.1", "fd00::1"]
            .map(|address| address.parse().unwrap())
            .into();
        let gets = |address: &str| {
            let names = [own_name("n1"), address.to_owned()];
            let request = request("n1", Kind::Serving, &names, "system:node:n1", "system:nodes");
            approval(&request, &nodes, &taken).is_some()
        };
        let got: Vec<_> = claims.into_iter().filter(|address| gets(address)).collect();
        assert_eq!(got, ["10.0.0.7"]);
    }

    #[test]
    fn requests_do_not_pile_up() {
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut old = request("n1", Kind::Client, &[], "x", "y");
        old.metadata.creation_timestamp = Some(Time(made));
        let later = |hours: i64| made + SignedDuration::from_hours(hours);
        assert!(!is_old(&old, later(24)) && is_old(&old, later(25)));
        for answer in [
            json!({"certificate": "eA=="}),
            json!({"conditions": [{"type": "Denied", "status": "True"}]}),
            json!({"conditions": [{"type": "Failed", "status": "True"}]}),
        ] {
            old.status = serde_json::from_value(answer).ok();
            assert!(!is_old(&old, later(1)) && is_old(&old, later(2)));
        }
        old.status =
            serde_json::from_value(json!({"conditions": [{"type": "Approved", "status": "True"}]})).ok();
        assert!(!is_old(&old, later(24)), "the signer may be away");
    }

    #[test]
    fn where_there_are_many_the_oldest_go_sooner() {
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (_key, pem) = make("n", Kind::Client, &[]).unwrap();
        let many = |user: &str, count: usize, answered: bool| -> Vec<_> {
            let one = |number: usize| {
                let status = answered.then(|| json!({"certificate": "eA=="}));
                let created = made + SignedDuration::from_secs(i64::try_from(number).unwrap());
                let request: CertificateSigningRequest = serde_json::from_value(json!({
                    "metadata": {"name": format!("{user}-{number:03}"), "creationTimestamp": created},
                    "spec": {"request": ByteString(pem.clone().into_bytes()), "signerName": "x/y", "username": user},
                    "status": status,
                }))
                .unwrap();
                Arc::new(request)
            };
            (0..count).map(one).collect()
        };
        let later = |minutes: i64| made + SignedDuration::from_mins(minutes);
        let go = |requests: &[Arc<CertificateSigningRequest>], minutes: i64| -> Vec<String> {
            too_many(requests, later(minutes)).into_iter().collect()
        };
        assert_eq!(
            go(&many("a", MANY_OF_ONE, true), 59),
            [] as [&str; 0],
            "these are few"
        );
        assert_eq!(go(&many("a", MANY_OF_ONE + 2, true), 3), ["a-000", "a-001"]);
        assert_eq!(
            go(&many("a", MANY_OF_ONE + 2, true), 1),
            [] as [&str; 0],
            "not seen yet"
        );
        let undecided = many("a", MANY_OF_ONE + 2, false);
        assert_eq!(go(&undecided, 59), [] as [&str; 0], "people may still decide");
        assert_eq!(go(&undecided, 62), ["a-000", "a-001"]);
        // One's crowd is not the other's.
        let both = [many("a", MANY_OF_ONE + 1, true), many("b", 2, true)].concat();
        assert_eq!(go(&both, 10), ["a-000"]);
        let all: Vec<_> = (0..=MANY_OF_ALL)
            .flat_map(|user| many(&user.to_string(), 1, true))
            .collect();
        assert_eq!(go(&all, 10).len(), 1);
    }
}
