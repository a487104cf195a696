//! `policyctl learn`: watches a container at work, and writes the profile and the network policy that allow what it did.

mod policy;
mod profile;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::learned::{Learned, MAX_SECONDS};
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
    let seconds = args.time.as_secs();
    let mut path = format!("{pod_path}/learn?seconds={seconds}");
    if let Some(container) = &args.container {
        path.push_str(&format!("&container={}", cluster::encode(container)));
    }
    let started = Timestamp::now();
    let answer = logs::open(&client, &path).await?;
    output::note(&format!("note: watching for {seconds} s"));
    pin_mut!(answer);
    let mut text = Vec::new();
    answer
        .take(MAX_ANSWER)
        .read_to_end(&mut text)
        .await
        .context("the connection to the server broke, nothing was learned")?;
    let learned: Learned =
        serde_json::from_slice(&text).context("the node did not end its answer, nothing was learned")?;
    // Flows are written down shortly after they open.
    let flows = check::live_flows_of(connection, &args.namespace, &args.pod, started).await?;
    let view = load::live(connection).await?.view;

    let name = args.name.as_deref().unwrap_or(&args.pod);
    let first = pod["spec"]["containers"][0]["name"].as_str();
    let container = args.container.as_deref().or(first).unwrap_or_default();
    let profile = profile::profile(name, &pod, container, &learned);
    let policy = policy::policy(name, &pod, &view, &flows)?;
    for note in profile.notes.iter().chain(&policy.notes) {
        output::note(&format!("note: {note}"));
    }
    show(&[profile.object, policy.object], args.output)
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
