//! What the questions are about: clusters, assertions, cases and recorded flows.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use api::{
    flow::{EndpointRef, FlowEvent, FlowLine},
    palisade::PolicyAssertion,
};
use jiff::Timestamp;
use policies_checker::{
    Model,
    cases::{Case, CaseFile},
};
use policies_compiler::{ClusterView, Source, load_objects};
use serde_json::Value;

use crate::{
    check::record::Record, cli::Connection, cluster, flow_filter::FlowFilter, flows, lines::Lines, load,
    objects, output, standard_input,
};

/// Largest file of cases or assertions.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// Longest line of recorded flows: an event has some hundred bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The cluster of these paths, or the live one where there are none.
pub(crate) async fn view(connection: &Connection, paths: &[PathBuf]) -> Result<ClusterView> {
    match paths.is_empty() {
        true => Ok(load::live(connection).await?.view),
        false => Ok(offline(paths)?.0),
    }
}

/// What all questions are asked of; an error where no node would enforce the policies.
pub(crate) fn model(view: &ClusterView) -> Result<Model> {
    enforced(Model::new(view))
}

/// The same of two that are compared.
pub(crate) fn models(before: &ClusterView, after: &ClusterView) -> Result<[Model; 2]> {
    let [before, after] = Model::of_both(before, after);
    Ok([enforced(before)?, enforced(after)?])
}

/// The same for these assertions, which may speak of IPv6 where nothing else does.
pub(crate) fn model_for(view: &ClusterView, assertions: &[String]) -> Result<Model> {
    let ipv6 = assertions.iter().any(|text| text.contains("::"));
    enforced(Model::with_ipv6(view, ipv6))
}

fn enforced(model: Model) -> Result<Model> {
    match model.exceeded() {
        Some(exceeded) => bail!("no node would enforce these policies: a pod or host {exceeded}"),
        None => Ok(model),
    }
}

/// The same, with the assertions among the objects.
pub(crate) async fn view_and_assertions(
    connection: &Connection,
    paths: &[PathBuf],
) -> Result<(ClusterView, Vec<PolicyAssertion>)> {
    match paths.is_empty() {
        true => Ok((
            load::live(connection).await?.view,
            load::assertions(connection).await?,
        )),
        false => offline(paths),
    }
}

/// The cluster of these paths and the assertions among the objects.
pub(crate) fn offline(paths: &[PathBuf]) -> Result<(ClusterView, Vec<PolicyAssertion>)> {
    of_documents(&objects::documents(paths)?)
}

/// The same of objects that have been read.
pub(crate) fn of_documents(documents: &[(String, Value)]) -> Result<(ClusterView, Vec<PolicyAssertion>)> {
    let mut assertions = Vec::new();
    for (origin, document) in documents {
        read_assertions(origin, document, &mut assertions)?;
    }
    let others = documents.iter().filter(|(_, object)| !is_assertion(object));
    let loaded = load_objects(others.map(|(origin, object)| Source { origin, object }))?;
    for note in &loaded.notes {
        output::note(&format!("note: {note}"));
    }
    Ok((loaded.view, assertions))
}

/// The assertions of a document: itself, or those of the list that it is.
fn read_assertions(origin: &str, document: &Value, into: &mut Vec<PolicyAssertion>) -> Result<()> {
    if let Some(items) = objects::items(document) {
        for (at, item) in items.iter().enumerate() {
            read_assertions(&format!("{origin}, items[{at}]"), item, into)?;
        }
        return Ok(());
    }
    if !is_assertion(document) {
        return Ok(());
    }
    let assertion: PolicyAssertion = serde_json::from_value(document.clone())
        .with_context(|| format!("{origin} is not a valid PolicyAssertion"))?;
    if assertion.api_version != api::palisade::API_VERSION {
        bail!("{origin}: apiVersion: must be {}", api::palisade::API_VERSION);
    }
    into.push(assertion);
    Ok(())
}

/// Assertions are about policy, and no part of it.
pub(crate) fn is_assertion(object: &Value) -> bool {
    object["kind"] == "PolicyAssertion"
}

/// Assertions of files, one on each line.
pub(crate) fn assertion_lines(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut assertions = Vec::new();
    for path in paths {
        let text = read(path)?;
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        assertions.extend(lines.map(str::to_owned));
    }
    Ok(assertions)
}

/// Cases of files, of which each must have some: nothing tested is not everything passed.
pub(crate) fn cases(paths: &[PathBuf]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for path in paths {
        let file: CaseFile = serde_saphyr::from_str(&read(path)?)
            .with_context(|| format!("{} is not a valid file of cases", path.display()))?;
        if file.cases.is_empty() {
            bail!("{} has no cases: nothing would be tested", path.display());
        }
        cases.extend(file.cases);
    }
    Ok(cases)
}

/// Recorded decisions, each flow once. What the record itself says is missing is told on standard error.
pub(crate) fn flows(paths: &[PathBuf]) -> Result<Vec<FlowEvent>> {
    let mut lines = Vec::new();
    for path in paths {
        let mut told = Lines::open(path, MAX_LINE_BYTES)?;
        while let Some(line) = told.read()? {
            let flow = serde_json::from_str(line.text);
            lines.push(flow.with_context(|| format!("{} is not a flow event", line.place()))?);
        }
    }
    Ok(decisions(lines))
}

/// Recorded decisions of these files, or those of the live cluster where there are none.
pub(crate) async fn recorded(connection: &Connection, paths: &[PathBuf]) -> Result<Vec<FlowEvent>> {
    match paths.is_empty() {
        true => live_flows(connection).await,
        false => flows(paths),
    }
}

/// Decisions that the nodes of the live cluster have written down.
pub(crate) async fn live_flows(connection: &Connection) -> Result<Vec<FlowEvent>> {
    Ok(decisions(live_lines(connection).await?))
}

/// Those about flows that one pod has been an end of since a moment by the nodes' clocks, also if they opened before it. What
/// the other end decided is among them.
pub(crate) async fn live_flows_of(
    connection: &Connection,
    namespace: &str,
    pod: &str,
    since: Timestamp,
) -> Result<Vec<FlowEvent>> {
    let lines = live_lines(connection).await?;
    Ok(decisions_of(lines, namespace, pod, since))
}

fn decisions_of(mut lines: Vec<FlowLine>, namespace: &str, pod: &str, since: Timestamp) -> Vec<FlowEvent> {
    lines.retain(|line| line.time() >= since);
    let mut flows = decisions(lines);
    let is_pod = |end: &EndpointRef| {
        end.pod()
            .is_some_and(|end| end.namespace == namespace && end.name == pod)
    };
    flows.retain(|flow| is_pod(&flow.pod) || flow.peer.as_ref().is_some_and(is_pod));
    flows
}

/// All that the nodes of the live cluster have written down.
async fn live_lines(connection: &Connection) -> Result<Vec<FlowLine>> {
    let client = cluster::connect(connection).await?;
    let all = flows::Bounds {
        since: None,
        limit: None,
    };
    let (mut lines, mut missing) = (Vec::new(), Vec::new());
    for node in flows::nodes(&client, None).await? {
        match flows::history(&client, &node, &all, &FlowFilter::default()).await {
            Ok((told, _)) => lines.extend(told.into_iter().map(|told| told.line)),
            Err(error) => missing.push(format!("{error:#}")),
        }
    }
    // An answer about some of the record would be taken for one about all.
    if !missing.is_empty() {
        bail!(
            "not every node told its flows ({}); `policyctl flows -o json` writes those of the others, for --flows",
            missing.join("; ")
        );
    }
    Ok(lines)
}

fn decisions(lines: Vec<FlowLine>) -> Vec<FlowEvent> {
    let record = Record::of(lines);
    for note in &record.notes {
        output::note(&format!("note: {note}"));
    }
    record.flows
}

fn read(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let file: Box<dyn Read> = match standard_input::is_meant(path) {
        true => Box::new(standard_input::take()?),
        false => Box::new(std::fs::File::open(path).with_context(context)?),
    };
    let mut text = String::new();
    file.take(MAX_TEXT_BYTES + 1)
        .read_to_string(&mut text)
        .with_context(context)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        bail!("{} is larger than {} MiB", path.display(), MAX_TEXT_BYTES >> 20);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flows_of_a_pod_are_those_that_it_is_an_end_of() {
        let line = |second: u8, pod: &str, peer: Option<&str>| -> FlowLine {
            let mut line = json!({"kind": "start", "time": format!("2026-11-28T10:00:{second:02}Z"), "node": "n",
                "pod": {"namespace": "shop", "name": pod}, "direction": "egress", "verdict": "allow",
                "decidedBy": {"rule": "no-policy"}, "source": "10.0.0.1", "destination": "10.0.0.2", "protocol": 6,
                "sourcePort": second, "destinationPort": 80, "epoch": 1});
            if let Some(peer) = peer {
                line["peer"] = json!({"namespace": "shop", "name": peer});
            }
            serde_json::from_value(line).unwrap()
        };
        let lines = vec![
            line(1, "a", None),
            line(2, "a", None),
            line(3, "b", Some("a")),
            line(4, "b", Some("c")),
        ];
        let flows = decisions_of(lines, "shop", "a", "2026-11-28T10:00:02Z".parse().unwrap());
        let ports: Vec<u16> = flows.iter().map(|flow| flow.source_port).collect();
        assert_eq!(ports, [2, 3]);
    }

    #[test]
    fn a_file_without_cases_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let empty = write("empty.yaml", "cases: []\n");
        let one = write(
            "one.yaml",
            "cases: [{from: a/b, to: a/c, port: 80, expect: deny}]\n",
        );
        assert_eq!(cases(std::slice::from_ref(&one)).unwrap().len(), 1);
        for paths in [vec![empty.clone()], vec![one, empty]] {
            let error = cases(&paths).unwrap_err().to_string();
            assert!(error.contains("empty.yaml has no cases"), "{error}");
        }
    }

    #[test]
    fn assertions_are_found_alone_and_in_lists_of_any_kind() {
        let api_version = api::palisade::API_VERSION;
        let item =
            |name: &str| json!({"metadata": {"name": name}, "spec": {"assertion": "isolated ns(pci)"}});
        let whole = |name: &str| {
            let mut object = item(name);
            object["apiVersion"] = api_version.into();
            object["kind"] = "PolicyAssertion".into();
            object
        };
        let typed = json!({"apiVersion": api_version, "kind": "PolicyAssertionList",
            "metadata": {"resourceVersion": "7"}, "items": [item("typed"), whole("typed-in-full")]});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [whole("listed"), typed]});
        let documents = [whole("alone"), list].map(|object| ("a.yaml".to_owned(), object));
        let (_, assertions) = of_documents(&documents).unwrap();
        let names: Vec<_> = assertions
            .iter()
            .filter_map(|assertion| assertion.metadata.name.as_deref())
            .collect();
        assert_eq!(names, ["alone", "listed", "typed", "typed-in-full"]);

        let misspelt = json!({"apiVersion": api_version, "kind": "PolicyAssertionList",
            "items": [{"metadata": {"name": "a"}, "spec": {"asertion": "isolated ns(pci)"}}]});
        let error = of_documents(&[("a.yaml".to_owned(), misspelt)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.yaml, items[0] is not a valid PolicyAssertion"
        );
    }
}
