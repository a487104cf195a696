//! Owners and dependents.

use super::*;

/// How long nothing has to happen to what stays.
const STAYS: Duration = Duration::from_millis(500);

impl Cluster {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn map(&self, name: &str, owners: &[Value], finalizers: &[&str]) -> ConfigMap {
        let map = object(json!({
            "metadata": {"name": name, "ownerReferences": owners, "finalizers": finalizers},
        }));
        self.maps().create(&PostParams::default(), &map).await.unwrap()
    }

    async fn gone(&self, name: &str) {
        eventually(&format!("the end of {name}"), || async {
            self.maps().get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    async fn delete(&self, name: &str, parameters: DeleteParams) {
        self.maps().delete(name, &parameters).await.unwrap();
    }
}

/// A reference to a config map.
fn owner(of: &ConfigMap) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": of.name_any(), "uid": of.uid().unwrap(),
           "blockOwnerDeletion": true})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_with_their_last_owner() {
    let cluster = Cluster::start(IMPATIENT).await;
    let (m, n) = (cluster.map("m", &[], &[]).await, cluster.map("n", &[], &[]).await);
    let child = cluster.map("child", &[owner(&m)], &[]).await;
    cluster.map("grandchild", &[owner(&child)], &[]).await;
    cluster.map("shared", &[owner(&m), owner(&n)], &[]).await;
    // Of kinds that nobody here knows, and of none.
    let foreign = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "d"});
    cluster.map("foreign", &[foreign], &[]).await;
    cluster.map("unowned", &[], &[]).await;
    let pods = cluster.pods();
    let mut owned = pod("owned");
    owned.metadata.owner_references = Some(vec![serde_json::from_value(owner(&m)).unwrap()]);
    pods.create(&PostParams::default(), &owned).await.unwrap();
    // In a namespace there is nothing of another one's.
    let elsewhere: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "kube-system");
    let stray = object(json!({"metadata": {"name": "stray", "ownerReferences": [owner(&n)]}}));
    elsewhere.create(&PostParams::default(), &stray).await.unwrap();
    eventually("the end of what an owner elsewhere has", || async {
        elsewhere.get_opt("stray").await.unwrap().is_none().then_some(())
    })
    .await;

    tokio::time::sleep(STAYS).await;
    for name in ["child", "grandchild", "shared"] {
        cluster.maps().get(name).await.expect("it has its owner");
    }
    cluster.delete("m", DeleteParams::background()).await;
    cluster.gone("child").await;
    cluster.gone("grandchild").await;
    eventually("the end of the pod", || async {
        pods.get_opt("owned").await.unwrap().is_none().then_some(())
    })
    .await;
    eventually("one owner only", || async {
        let shared = cluster.maps().get("shared").await.unwrap();
        (shared.owner_references().len() == 1).then_some(())
    })
    .await;
    // Another object of the name is another owner.
    cluster.delete("n", DeleteParams::background()).await;
    cluster.map("n", &[], &[]).await;
    cluster.gone("shared").await;
    for name in ["foreign", "unowned", "n"] {
        cluster.maps().get(name).await.expect("it stays");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_goes_before_or_after_its_dependents_or_without_them() {
    let cluster = Cluster::start(IMPATIENT).await;
    let m = cluster.map("m", &[], &[]).await;
    cluster.map("held", &[owner(&m)], &["lab.test/held"]).await;
    cluster.delete("m", DeleteParams::foreground()).await;
    eventually("the deletion of the dependent", || async {
        let held = cluster.maps().get("held").await.unwrap();
        held.metadata.deletion_timestamp
    })
    .await;
    tokio::time::sleep(STAYS).await;
    let waits = cluster
        .maps()
        .get("m")
        .await
        .expect("its dependent is still there");
    assert_eq!(waits.finalizers(), ["foregroundDeletion"]);
    let release = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    let parameters = PatchParams::default();
    cluster.maps().patch("held", &parameters, &release).await.unwrap();
    cluster.gone("held").await;
    cluster.gone("m").await;

    // Two that own each other do not wait for ever.
    let a = cluster.map("a", &[], &[]).await;
    let b = cluster.map("b", &[owner(&a)], &[]).await;
    let circle = Patch::Merge(json!({"metadata": {"ownerReferences": [owner(&b)]}}));
    cluster.maps().patch("a", &parameters, &circle).await.unwrap();
    cluster.delete("a", DeleteParams::foreground()).await;
    cluster.gone("a").await;
    cluster.gone("b").await;

    let o = cluster.map("o", &[], &[]).await;
    cluster.map("orphan", &[owner(&o)], &[]).await;
    cluster.delete("o", DeleteParams::orphan()).await;
    cluster.gone("o").await;
    tokio::time::sleep(STAYS).await;
    let orphan = cluster.maps().get("orphan").await.expect("it stays");
    assert_eq!(orphan.owner_references(), []);
    // Nobody has dependents: nobody waits.
    cluster.map("alone", &[], &[]).await;
    cluster.delete("alone", DeleteParams::foreground()).await;
    cluster.gone("alone").await;
    cluster.stop().await;
}
