//! `policyctl learn`: watches a container at work, and writes the profile and the network policy that allow what it did.

mod policy;
mod profile;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::{
    learned::{Learned, MAX_SECONDS},
    palisade::SandboxPreset,
};
use clap::Args;
use futures::{AsyncReadExt as _, pin_mut};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    check,
    cli::{Connection, ObjectOutput},
    cluster, load, logs, output,
};

/// Longest answer of a node: its lists are bounded.
const MAX_ANSWER: u64 = 16 << 20;

/// Arguments of `learn`.
#[derive(Args)]
pub(crate) struct LearnArgs {
    /// Name of the pod
    pub(crate) pod: String,
    /// How long to watch, such as 10m or 90s
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(crate) time: Duration,
    /// Which container; not needed if the pod has one
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Name of both objects; without it, the pod's
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How to print
    #[arg(short, long, default_value = "yaml")]
    pub(crate) output: ObjectOutput,
}

/// Watches, then writes a SandboxProfile and a NetworkPolicy.
pub(crate) async fn run(connection: &Connection, args: &LearnArgs) -> Result<()> {
    let client = cluster::connect(connection).await?;
    let pod_path = format!("/api/v1/namespaces/{}/pods/{}", args.namespace, args.pod);
    let pod = cluster::get(&client, &pod_path).await?;
    let first = pod["spec"]["containers"][0]["name"].as_str();
    let container = args.container.as_deref().or(first).unwrap_or_default();
    // As it is when the watch begins: by its end somebody may have applied another one.
    let (preset, preset_note) = preset(&client, args, profile::named(&pod, container)).await;
    let learned = watch(&client, args, &pod_path).await?;

    let name = args.name.as_deref().unwrap_or(&args.pod);
    let profile = profile::profile(name, &pod, container, preset, &learned);
    let policy = network_policy(connection, args, name, &pod, learned.started).await;
    let policy_notes = policy
        .as_ref()
        .map(|policy| policy.notes.as_slice())
        .unwrap_or_default();
    for note in preset_note.iter().chain(&profile.notes).chain(policy_notes) {
        output::note(&format!("note: {note}"));
    }
    // What was watched for so long is not lost for want of the flows.
    match policy {
        Ok(policy) => show(&[profile.object, policy.object], args.output),
        Err(error) => {
            show(&[profile.object], args.output)?;
            Err(error.context("the SandboxProfile is written, and no NetworkPolicy"))
        }
    }
}

/// What the container's profile starts from; and what to know about that.
async fn preset(
    client: &kube::Client,
    args: &LearnArgs,
    named: Option<&str>,
) -> (SandboxPreset, Option<String>) {
    let Some(named) = named else {
        return (SandboxPreset::Baseline, None);
    };
    if let Some(preset) = profile::preset(named) {
        return (preset, None);
    }
    let path = format!(
        "/apis/{}/namespaces/{}/sandboxprofiles/{}",
        api::palisade::API_VERSION,
        args.namespace,
        cluster::encode(named)
    );
    let object = cluster::get(client, &path).await.map_err(anyhow::Error::from);
    profile::preset_of(named, object)
}

/// What the node has seen once the time is over.
async fn watch(client: &kube::Client, args: &LearnArgs, pod_path: &str) -> Result<Learned> {
    let seconds = args.time.as_secs();
    let mut path = format!("{pod_path}/learn?seconds={seconds}");
    if let Some(container) = &args.container {
        path.push_str(&format!("&container={}", cluster::encode(container)));
    }
    let answer = logs::open(client, &path).await?;
    output::note(&format!("note: watching for {seconds} s"));
    pin_mut!(answer);
    let mut text = Vec::new();
    answer
        .take(MAX_ANSWER)
        .read_to_end(&mut text)
        .await
        .context("the connection to the server broke, nothing was learned")?;
    serde_json::from_slice(&text).context("the node did not end its answer, nothing was learned")
}

async fn network_policy(
    connection: &Connection,
    args: &LearnArgs,
    name: &str,
    pod: &Value,
    since: Timestamp,
) -> Result<Written> {
    // Flows are written down shortly after they open.
    let flows = check::live_flows_of(connection, &args.namespace, &args.pod, since).await?;
    let view = load::live(connection).await?.view;
    policy::policy(name, pod, &view, &flows)
}

fn show(objects: &[Value], format: ObjectOutput) -> Result<()> {
    if matches!(format, ObjectOutput::Json) {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        return output::object(&list, format);
    }
    for (number, object) in objects.iter().enumerate() {
        if number > 0 {
            output::line("---")?;
        }
        output::object(object, format)?;
    }
    Ok(())
}

/// An object, and what to know about it.
struct Written {
    object: Value,
    notes: Vec<String>,
}

fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("{text:?} is no duration such as 90s, 10m or 2h"),
    };
    let number: u64 = number
        .parse()
        .with_context(|| format!("{text:?} is no duration such as 90s, 10m or 2h"))?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..=MAX_SECONDS) => Ok(Duration::from_secs(seconds)),
        _ => bail!("{text:?}: must be between 1s and 24h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("10m").unwrap(), Duration::from_secs(600));
        for bad in ["", "0s", "25h", "1d", "m", "-1s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
