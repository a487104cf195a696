//! What `kubectl top`, `drain`, `cordon` and `taint` do, and what a node does that has too little left or goes down.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, alive, pod},
    shell::eventually,
};
use nix::sys::signal::Signal;
use serde_json::json;
use testkit::lab;

use crate::{Test, recovery};

pub(crate) const TESTS: &[Test] = &[
    ("top_shows_what_is_used", top_shows_what_is_used),
    (
        "an_agent_that_gave_memory_back_works_on",
        an_agent_that_gave_memory_back_works_on,
    ),
    ("what_others_say_of_a_node_stays", what_others_say_of_a_node_stays),
    ("drain_honours_budgets", drain_honours_budgets),
    ("taints_keep_away_and_send_away", taints_keep_away_and_send_away),
    (
        "a_node_under_pressure_lets_pods_go",
        a_node_under_pressure_lets_pods_go,
    ),
    (
        "a_node_that_shuts_down_ends_its_pods",
        a_node_that_shuts_down_ends_its_pods,
    ),
    (
        "pressure_and_shutdown_do_not_wait_for_the_api_server",
        pressure_and_shutdown_do_not_wait_for_the_api_server,
    ),
    (
        "what_ended_without_the_api_server_is_told_after_a_restart",
        what_ended_without_the_api_server_is_told_after_a_restart,
    ),
    (
        "a_node_asks_for_its_certificates",
        a_node_asks_for_its_certificates,
    ),
];

/// Two rounds of measurements and some.
const MEASURED: Duration = Duration::from_secs(60);

fn start(cluster: &Cluster, name: &str, script: &str, extra: &str) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "node/clean", "1")?;
    let label = format!("app: {name}");
    cluster
        .apply(&pod(
            "default",
            name,
            &label,
            &image,
            &["sh", "-c", script],
            extra,
        ))?
        .ok()?;
    cluster.wait_for_phase("default", name, "Running")?;
    Ok(())
}

/// After a start the agent drops the pages of its program; what it does next has to bring them back.
fn an_agent_that_gave_memory_back_works_on(cluster: &Cluster) -> Result<()> {
    let agent = cluster.daemon_pid("agent")?;
    let of_files = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{agent}/status"))?;
        let mut lines = status.lines().filter_map(|line| line.strip_prefix("RssFile:"));
        let kb = lines.next().context("no RssFile")?.trim().trim_end_matches(" kB");
        Ok(kb.parse()?)
    };
    start(cluster, "idle", "sleep 1000", "restartPolicy: Always")?;
    let working = of_files()?;
    // Pods of other tests may be started again and again meanwhile.
    eventually(Duration::from_secs(90), || {
        let quiet = of_files()?;
        ensure!(
            quiet < working / 4 * 3,
            "{working} kB of files were resident, {quiet} kB are"
        );
        Ok(())
    })?;
    ensure!(
        cluster.daemon_pid("agent")? == agent,
        "the agent was started anew"
    );
    let said = cluster.kubectl(&["exec", "idle", "--", "echo", "here"])?.ok()?;
    ensure!(said.stdout == "here\n", "{said}");
    start(cluster, "another", "sleep 1000", "restartPolicy: Always")?;
    delete(cluster, &["idle", "another"])?;
    ensure!(alive(agent), "the agent has died");
    Ok(())
}

fn delete(cluster: &Cluster, names: &[&str]) -> Result<()> {
    for name in names {
        cluster
            .kubectl(&["delete", "pod", name, "--grace-period=0", "--force"])?
            .ok()?;
    }
    Ok(())
}

/// A problem detector's condition, beside one of the agent's that somebody has written over and the agent contradicts.
fn what_others_say_of_a_node_stays(cluster: &Cluster) -> Result<()> {
    let others = json!({"status": {
        "conditions": [
            {"type": "KernelDeadlock", "status": "False", "reason": "KernelHasNoDeadlock", "message": "none"},
            {"type": "PolicyEnforced", "status": "Unknown", "reason": "Lab", "message": "somebody else's word"},
        ],
        "capacity": {"lab.example/dongle": "2"},
    }});
    let arguments = [
        "patch",
        "node",
        "lab",
        "--subresource=status",
        "--type=strategic",
        "-p",
    ];
    cluster
        .kubectl(&[arguments.as_slice(), &[&others.to_string()]].concat())?
        .ok()?;
    let node = eventually(MEASURED, || {
        let node = cluster.object("", "nodes", "lab")?;
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let enforced = conditions.clone().find(|c| c["type"] == "PolicyEnforced");
        match enforced.is_some_and(|c| c["status"] == "True") {
            true => Ok(node.clone()),
            false => bail!("{}", node["status"]["conditions"]),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    let status = &node["status"];
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let theirs = conditions.find(|c| c["type"] == "KernelDeadlock");
    ensure!(theirs.is_some_and(|c| c["status"] == "False"), "{status}");
    ensure!(status["capacity"]["lab.example/dongle"] == "2", "{status}");
    let mut kinds: Vec<&str> = status["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address["type"].as_str())
        .collect();
    kinds.dedup();
    ensure!(kinds == ["InternalIP", "Hostname"], "{status}");
    Ok(())
}

fn top_shows_what_is_used(cluster: &Cluster) -> Result<()> {
    // Half a core, more or less, and 24 MiB that cannot be taken back.
    let script = "x=$(head -c 25165824 /dev/zero | tr '\\0' x); while :; do :; done";
    start(cluster, "busy", script, "restartPolicy: Always")?;
    start(cluster, "idle", "sleep 1000", "restartPolicy: Always")?;
    let pods = eventually(MEASURED, || {
        let top = cluster
            .kubectl(&["top", "pods", "--containers", "--no-headers"])?
            .ok()?
            .stdout;
        match ["busy", "idle"].iter().all(|name| top.contains(name)) {
            true => Ok(top),
            false => bail!("not all are measured:\n{top}"),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    let row = |name: &str| -> Result<(u64, u64)> {
        let line = pods
            .lines()
            .find(|line| line.starts_with(name))
            .context("no row")?;
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [_, "main", cpu, memory] = cells.as_slice() else {
            bail!("{line}")
        };
        let cpu = cpu.strip_suffix('m').context("cpu in thousandths")?.parse()?;
        Ok((cpu, memory.strip_suffix("Mi").context("memory in MiB")?.parse()?))
    };
    let (busy, idle) = (row("busy")?, row("idle")?);
    ensure!(busy.0 > 50 && busy.1 >= 24, "{pods}");
    ensure!(idle.0 < 20 && idle.1 < 10, "{pods}");
    let nodes = cluster.kubectl(&["top", "nodes", "--no-headers"])?.ok()?.stdout;
    let cells: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(cells.first() == Some(&"lab") && cells.len() == 5, "{nodes}");
    ensure!(
        cells[1].ends_with('m') && cells[2].ends_with('%') && cells[4].ends_with('%'),
        "{nodes}"
    );
    let selected = cluster
        .kubectl(&["top", "pods", "-l", "app=idle", "--no-headers"])?
        .ok()?
        .stdout;
    ensure!(selected.lines().count() == 1, "{selected}");

    let raw = |path: &str| -> Result<String> { Ok(cluster.kubectl(&["get", "--raw", path])?.ok()?.stdout) };
    // Disks are looked at beside the rest.
    eventually(MEASURED, || {
        let summary: serde_json::Value =
            serde_json::from_str(&raw("/api/v1/nodes/lab/proxy/stats/summary")?)?;
        let of_pod = summary["pods"].as_array().context("pods")?;
        let busy = of_pod
            .iter()
            .find(|pod| pod["podRef"]["name"] == "busy")
            .context("busy")?;
        ensure!(
            busy["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(24 << 20)
                && busy["containers"][0]["rootfs"]["capacityBytes"].as_u64() > Some(0)
                && summary["node"]["memory"]["availableBytes"].as_u64() > Some(0),
            "{summary}"
        );
        Ok(())
    })?;
    let metrics = raw("/api/v1/nodes/lab/proxy/metrics/resource")?;
    let line = "container_cpu_usage_seconds_total{container=\"main\",namespace=\"default\",pod=\"busy\"}";
    ensure!(metrics.contains(line), "{metrics}");
    // What dashboards ask for names the image.
    let metrics = raw("/api/v1/nodes/lab/proxy/metrics/cadvisor")?;
    let found = metrics.lines().any(|line| {
        line.starts_with("container_memory_working_set_bytes{container=\"main\",image=\"")
            && line.contains("node/clean")
            && line.contains("namespace=\"default\",pod=\"busy\"}")
    });
    ensure!(found && metrics.contains("machine_cpu_cores "), "{metrics}");
    let metrics = raw("/api/v1/nodes/lab/proxy/metrics")?;
    ensure!(metrics.contains("kubelet_node_name{node=\"lab\"} 1"), "{metrics}");
    delete(cluster, &["busy", "idle"])
}

fn drain_honours_budgets(cluster: &Cluster) -> Result<()> {
    start(cluster, "guarded", "sleep 1000", "restartPolicy: Always")?;
    start(cluster, "free", "sleep 1000", "restartPolicy: Always")?;
    cluster
        .kubectl(&[
            "create",
            "poddisruptionbudget",
            "guard",
            "--selector=app=guarded",
            "--min-available=1",
        ])?
        .ok()?;
    eventually(Duration::from_secs(20), || {
        let budget = cluster.object("default", "poddisruptionbudgets", "guard")?;
        match budget["status"]["currentHealthy"] == 1 {
            true => Ok(()),
            false => bail!("{budget}"),
        }
    })?;
    let drain = ["drain", "lab", "--force", "--timeout=8s"];
    let refused = cluster.kubectl(&drain)?;
    ensure!(refused.code != 0, "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(
        said.contains("would violate the pod's disruption budget"),
        "{said}"
    );
    let guarded = cluster.object("default", "pods", "guarded")?;
    ensure!(
        guarded["status"]["phase"] == "Running" && guarded["metadata"]["deletionTimestamp"].is_null(),
        "{guarded}"
    );
    eventually(Duration::from_secs(20), || {
        let names = cluster.kubectl(&["get", "pods", "-o", "name"])?.ok()?.stdout;
        match names.contains("free") {
            true => bail!("{names}"),
            false => Ok(()),
        }
    })?;
    // Cordoned: nothing is placed here, and that is said.
    let nodes = cluster.kubectl(&["get", "nodes"])?.ok()?.stdout;
    ensure!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    let image = cluster.push(&lab::clean()?, "node/clean", "1")?;
    let waiting = pod(
        "default",
        "waiting",
        "app: w",
        &image,
        &["sleep", "1000"],
        "restartPolicy: Always",
    );
    cluster.apply(&waiting)?.ok()?;
    eventually(Duration::from_secs(20), || {
        let object = cluster.object("default", "pods", "waiting")?;
        let said = object["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        match said.contains("unschedulable") {
            true => Ok(()),
            false => bail!("{}", object["status"]),
        }
    })?;
    cluster
        .kubectl(&["delete", "poddisruptionbudget", "guard"])?
        .ok()?;
    let drained = cluster
        .kubectl(&["drain", "lab", "--force", "--timeout=60s"])?
        .ok()?;
    ensure!(drained.stdout.contains("node/lab drained"), "{drained}");
    cluster.kubectl(&["uncordon", "lab"])?.ok()?;
    cluster.wait_for_phase("default", "waiting", "Running")?;
    delete(cluster, &["waiting"])
}

fn taints_keep_away_and_send_away(cluster: &Cluster) -> Result<()> {
    start(cluster, "plain", "sleep 1000", "restartPolicy: Always")?;
    let tolerant = "tolerations: [{key: lab/own, operator: Exists}]";
    start(cluster, "tolerant", "sleep 1000", tolerant)?;
    let patient = "tolerations: [{key: lab/own, operator: Exists, effect: NoExecute, tolerationSeconds: 12}]";
    start(cluster, "patient", "sleep 1000", patient)?;
    cluster
        .kubectl(&["taint", "nodes", "lab", "lab/own=x:NoExecute"])?
        .ok()?;
    let present = |name: &str| -> Result<bool> {
        let ran = cluster
            .kubectl(&["get", "pod", name, "--ignore-not-found", "-o", "name"])?
            .ok()?;
        Ok(!ran.stdout.is_empty())
    };
    let goes = |name: &str| {
        eventually(Duration::from_secs(40), || match present(name)? {
            true => bail!("{name} stays"),
            false => Ok(()),
        })
    };
    goes("plain")?;
    ensure!(present("patient")?, "it tolerates for a while");
    goes("patient")?;
    ensure!(present("tolerant")?, "it tolerates for ever");
    cluster.kubectl(&["taint", "nodes", "lab", "lab/own-"])?.ok()?;
    delete(cluster, &["tolerant"])
}

fn a_node_under_pressure_lets_pods_go(cluster: &Cluster) -> Result<()> {
    start(cluster, "modest", "sleep 1000", "restartPolicy: Always")?;
    let greedy = "x=$(head -c 41943040 /dev/zero | tr '\\0' x); sleep 1000";
    start(cluster, "greedy", greedy, "restartPolicy: Always")?;
    // More memory than the machine has must be available: it never is, and the tests need not use it up.
    let all = u64::MAX / 4;
    cluster.restart_agent(&format!(
        "memory_available_bytes = {all}\ntransition_seconds = 5\n"
    ))?;
    let failed = cluster.wait_for_phase("default", "greedy", "Failed")?;
    let status = &failed["status"];
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(status["reason"] == "Evicted", "{status}");
    ensure!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: ")
            && message.contains("Container main was using ")
            && message.contains("has larger consumption of memory."),
        "{message}"
    );
    eventually(Duration::from_secs(30), || {
        let node = cluster.object("default", "nodes", "lab")?;
        let text = node.to_string();
        match text.contains("KubeletHasInsufficientMemory")
            && text.contains("node.kubernetes.io/memory-pressure")
        {
            true => Ok(()),
            false => bail!("{node}"),
        }
    })?;
    cluster.restart_agent("")?;
    eventually(Duration::from_secs(60), || {
        let node = cluster.object("default", "nodes", "lab")?;
        match node["spec"]["taints"].as_array().is_none_or(Vec::is_empty) {
            true => Ok(()),
            false => bail!("{}", node["spec"]),
        }
    })?;
    delete(cluster, &["modest", "greedy"])
}

fn a_node_that_shuts_down_ends_its_pods(cluster: &Cluster) -> Result<()> {
    let polite = "trap 'echo goodbye; exit 0' TERM; while :; do sleep 0.1; done";
    start(cluster, "polite", polite, "restartPolicy: Always")?;
    let agent = cluster.daemon_pid("agent")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), Signal::SIGPWR)?;
    eventually(Duration::from_secs(40), || match alive(agent) {
        true => bail!("the agent does not end"),
        false => Ok(()),
    })
    .with_context(|| cluster.daemon_logs())?;
    let pod = cluster.object("default", "pods", "polite")?;
    let status = &pod["status"];
    ensure!(
        status["phase"] == "Failed"
            && status["reason"] == "Terminated"
            && status["message"] == "Pod was terminated in response to imminent node shutdown.",
        "{status}"
    );
    ensure!(
        status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0,
        "it had the time to end by itself: {status}"
    );
    let node = cluster.object("default", "nodes", "lab")?;
    ensure!(node.to_string().contains("node is shutting down"), "{node}");
    cluster.start_agent("")?;
    eventually(Duration::from_secs(30), || {
        let node = cluster.object("default", "nodes", "lab")?;
        match node.to_string().contains("\"reason\":\"KubeletReady\"") {
            true => Ok(()),
            false => bail!("{}", node["status"]["conditions"]),
        }
    })?;
    delete(cluster, &["polite"])
}

fn pressure_and_shutdown_do_not_wait_for_the_api_server(cluster: &Cluster) -> Result<()> {
    let polite = "trap 'echo goodbye; exit 0' TERM; while :; do sleep 0.1; done";
    start(cluster, "squeezed", polite, "restartPolicy: Always")?;
    let squeezed = pod_directories(cluster, "squeezed")?;
    recovery::kill(cluster.daemon_pid("control")?)?;
    cluster.end_agent()?;
    let all = u64::MAX / 4;
    cluster.start_agent(&format!(
        "memory_available_bytes = {all}\ntransition_seconds = 5\n"
    ))?;
    eventually(MEASURED, || match squeezed.run.exists() {
        true => bail!("it still has a sandbox"),
        false => Ok(()),
    })
    .with_context(|| cluster.daemon_logs())?;
    // This also starts the agent again, which does not let it run once more.
    cluster.up_again()?;
    let ended = cluster.wait_for_phase("default", "squeezed", "Failed")?;
    ensure!(ended["status"]["reason"] == "Evicted", "{}", ended["status"]);
    delete(cluster, &["squeezed"])?;

    start(cluster, "polite", polite, "restartPolicy: Never")?;
    let polite = pod_directories(cluster, "polite")?;
    recovery::kill(cluster.daemon_pid("control")?)?;
    cluster.end_agent()?;
    cluster.start_agent("")?;
    let agent = cluster.daemon_pid("agent")?;
    eventually(Duration::from_secs(10), || {
        match catches(agent, Signal::SIGPWR)? {
            true => Ok(()),
            false => bail!("it does not listen yet"),
        }
    })?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), Signal::SIGPWR)?;
    eventually(Duration::from_secs(40), || match alive(agent) {
        true => bail!("the agent does not end"),
        false => Ok(()),
    })
    .with_context(|| cluster.daemon_logs())?;
    let log = std::fs::read_to_string(polite.logs.join("main/0.log"))?;
    ensure!(
        log.contains("goodbye"),
        "it did not have the time to end by itself: {log}"
    );
    ensure!(!polite.run.exists(), "it still has a sandbox");
    cluster.up_again()?;
    cluster.wait_for_phase("default", "polite", "Failed")?;
    delete(cluster, &["polite"])
}

fn what_ended_without_the_api_server_is_told_after_a_restart(cluster: &Cluster) -> Result<()> {
    start(
        cluster,
        "finished",
        "sleep 15; echo done",
        "restartPolicy: OnFailure",
    )?;
    let finished = pod_directories(cluster, "finished")?;
    recovery::kill(cluster.daemon_pid("control")?)?;
    ensure!(finished.run.exists(), "it has ended before the API server has");
    eventually(MEASURED, || match finished.run.exists() {
        true => bail!("it still has a sandbox"),
        false => Ok(()),
    })
    .with_context(|| cluster.daemon_logs())?;
    cluster.end_agent()?;
    ensure!(finished.kept.exists(), "it is not kept how it ended");
    cluster.start_agent("")?;
    // Once more, after a start in which nobody could be told.
    cluster.up_again()?;
    let object = cluster.wait_for_phase("default", "finished", "Succeeded")?;
    let status = &object["status"]["containerStatuses"][0];
    ensure!(
        status["restartCount"] == 0 && status["state"]["terminated"]["reason"] == "Completed",
        "{}",
        object["status"]
    );
    let log = std::fs::read_to_string(finished.logs.join("main/0.log"))?;
    ensure!(log.contains("done"), "{log}");
    eventually(MEASURED, || match finished.kept.exists() {
        true => bail!("it is still kept how it ended"),
        false => Ok(()),
    })?;
    delete(cluster, &["finished"])
}

/// What a node keeps of a pod.
struct PodDirectories {
    run: PathBuf,
    logs: PathBuf,
    /// How it ended.
    kept: PathBuf,
}

fn pod_directories(cluster: &Cluster, name: &str) -> Result<PodDirectories> {
    let pod = cluster.object("default", "pods", name)?;
    let uid = pod["metadata"]["uid"].as_str().context("a UID")?;
    let logs = cluster.state_dir.join("agent/logs");
    Ok(PodDirectories {
        run: cluster.run_dir.join("pods").join(uid),
        logs: logs.join(format!("default_{name}_{uid}")),
        kept: cluster.state_dir.join("agent/pods").join(uid).join("ended.json"),
    })
}

/// Whether the process has a handler for the signal.
fn catches(pid: i32, signal: Signal) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines();
    let caught = lines.find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.context("no mask")?.trim(), 16)?;
    Ok(caught & (1 << (signal as i32 - 1)) != 0)
}

fn a_node_asks_for_its_certificates(cluster: &Cluster) -> Result<()> {
    let tls = cluster.state_dir.join("agent/tls");
    let control = cluster.state_dir.join("tools/palisade-control");
    let state = cluster.state_dir.to_string_lossy().into_owned();
    let out = tls.to_string_lossy().into_owned();
    let invite = |name: &str| -> Result<()> {
        let arguments = [
            "bootstrap",
            "--state-dir",
            &state,
            "--node-name",
            name,
            "--out",
            &out,
        ];
        e2e::shell::run(&control, &arguments)?.ok()?;
        Ok(())
    };
    let forget = || -> Result<()> {
        for file in ["client.crt", "client.key", "server.crt", "server.key"] {
            std::fs::remove_file(tls.join(file)).with_context(|| file.to_owned())?;
        }
        Ok(())
    };
    // Who was invited under another name gets nothing without a person.
    invite("other")?;
    cluster.end_agent()?;
    forget()?;
    cluster.start_agent("")?;
    let pending = eventually(Duration::from_secs(30), || {
        let list = cluster.kubectl(&["get", "csr", "--no-headers"])?.ok()?.stdout;
        let line = list.lines().find(|line| line.contains("system:bootstrap:other"));
        let line = line.with_context(|| list.clone())?;
        match line.trim_end().ends_with("Pending")
            && line.contains("kubernetes.io/kube-apiserver-client-kubelet")
        {
            true => Ok(line.split(' ').next().unwrap_or_default().to_owned()),
            false => bail!("{line}"),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    ensure!(!tls.join("client.crt").exists(), "it was given a certificate");
    // A person may give it all the same.
    cluster.kubectl(&["certificate", "approve", &pending])?.ok()?;
    eventually(Duration::from_secs(30), || {
        match tls.join("server.crt").exists() {
            true => Ok(()),
            false => bail!("no certificates yet"),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    let list = cluster.kubectl(&["get", "csr", "--no-headers"])?.ok()?.stdout;
    ensure!(
        list.lines()
            .all(|line| line.trim_end().ends_with("Approved,Issued"))
            && list.contains("kubernetes.io/kubelet-serving"),
        "{list}"
    );

    // The right invitation needs nobody. Short-lived certificates are renewed while pods run.
    invite("lab")?;
    cluster.end_agent()?;
    forget()?;
    // 300 of their 900 seconds lie in the past from the beginning, since clocks differ.
    cluster.start_agent("[certificates]\nlifetime_seconds = 600\nrenew_at_percent = 36\n")?;
    start(cluster, "steady", "sleep 1000", "restartPolicy: Always")?;
    let before = cluster.object("default", "pods", "steady")?;
    let first = std::fs::read(tls.join("client.crt"))?;
    eventually(Duration::from_secs(150), || {
        match std::fs::read(tls.join("client.crt"))? == first {
            true => bail!("not renewed"),
            false => Ok(()),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    eventually(Duration::from_secs(40), || {
        let said = cluster
            .kubectl(&["exec", "steady", "--", "echo", "steady"])?
            .ok()?;
        ensure!(said.stdout == "steady\n", "{said}");
        Ok(())
    })?;
    let after = cluster.object("default", "pods", "steady")?;
    let id = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(id(&before) == id(&after), "the pod was started anew");
    delete(cluster, &["steady"])?;

    // A node that was deleted is out, and its invitation was used. It comes back by a new one.
    cluster.kubectl(&["delete", "node", "lab"])?.ok()?;
    let log = || std::fs::read_to_string(cluster.state_dir.join("logs/agent.log"));
    let told = |why: &str| -> Result<()> {
        let before = log()?.matches(why).count();
        eventually(Duration::from_secs(60), || {
            match log()?.matches(why).count() > before {
                true => Ok(()),
                false => bail!("the agent was not told {why:?}"),
            }
        })
        .with_context(|| cluster.daemon_logs())
    };
    told("was deleted since")?;
    cluster.restart_agent("")?;
    told("was deleted since")?;
    let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"])?.ok()?.stdout;
    ensure!(nodes.is_empty(), "it came back with its old certificate: {nodes}");
    invite("lab")?;
    cluster.end_agent()?;
    forget()?;
    cluster.start_agent("")?;
    eventually(Duration::from_secs(60), || {
        let node = cluster.object("default", "nodes", "lab")?;
        match node.to_string().contains("\"reason\":\"KubeletReady\"") {
            true => Ok(()),
            false => bail!("{}", node["status"]["conditions"]),
        }
    })
    .with_context(|| cluster.daemon_logs())?;
    // The same invitation once more gets nothing.
    cluster.end_agent()?;
    forget()?;
    cluster.start_agent("")?;
    told("works once")?;
    ensure!(!tls.join("client.crt").exists(), "it was given a certificate");
    invite("lab")?;
    cluster.restart_agent("")?;
    start(cluster, "back", "sleep 1000", "restartPolicy: Always")?;
    for file in ["bootstrap.crt", "bootstrap.key"] {
        std::fs::remove_file(tls.join(file))?;
    }
    delete(cluster, &["back"])
}
