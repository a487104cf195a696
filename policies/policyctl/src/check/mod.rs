//! Questions about all flows at once, from files or from the live cluster. What is answered is decided in
//! `policies/checker`; here are files in and text out.

pub(crate) mod args;
mod input;
pub(crate) use input::live_flows_of;
mod proposed;
mod record;
mod text;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use policies_checker::{
    Model,
    assertion::{self, Problem, Proof},
    cases::{CaseReport, run_cases},
    connectivity::{Grouping, connectivity as all_connections},
    difference::{Change, difference},
    picture,
    recommend::{Dialect, recommend as recommended},
    replay::{Replay, replay as replayed},
    rules::{NoRule, RuleStatus, RuleUse, rule_use},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    check::args::{
        ConnectivityArgs, ConnectivityOutput, DiffArgs, ObjectsOutput, ProveArgs, RecommendArgs, ReplayArgs,
        ReportOutput, TestArgs, TestOutput, TopArgs, TopRulesArgs, TopWhat,
    },
    cli::{Connection, ObjectOutput},
    output,
};

/// Exit code of an assertion that does not hold, of sets that are not equivalent and of verdicts that change: answers,
/// not errors.
const REFUTED: u8 = 2;

/// Shows all connections.
pub(crate) async fn connectivity(connection: &Connection, args: &ConnectivityArgs) -> Result<()> {
    let model = input::model(&input::view(connection, &args.files.filename).await?)?;
    let grouping = if args.expand {
        Grouping::Expanded
    } else {
        Grouping::Equal
    };
    let all = all_connections(&model, grouping);
    match args.output {
        ConnectivityOutput::Json => json_report(&all),
        ConnectivityOutput::Dot => output::line(picture::dot(&all).trim_end()),
        ConnectivityOutput::Svg => output::line(picture::svg(&all).trim_end()),
        ConnectivityOutput::Table => {
            let header = ["FROM", "TO", "SERVICES"].map(str::to_owned).to_vec();
            let lines = all.lines().into_iter().map(Vec::from);
            output::aligned(std::iter::once(header).chain(lines).collect())
        }
    }
}

/// Shows what a change opens and closes.
pub(crate) async fn diff(connection: &Connection, args: &DiffArgs) -> Result<()> {
    let changes = changes(connection, args).await?;
    if args.output == ReportOutput::Json {
        return json_report(&changes);
    }
    if changes.is_empty() {
        return output::line("nothing opens and nothing closes");
    }
    for change in &changes {
        output::line(&text::change(change))?;
    }
    Ok(())
}

/// Says whether a change opens and closes nothing.
pub(crate) async fn equivalent(connection: &Connection, args: &DiffArgs) -> Result<ExitCode> {
    let changes = changes(connection, args).await?;
    let witness = changes.first();
    match args.output {
        ReportOutput::Json => json_report(&json!({"equivalent": changes.is_empty(), "witness": witness}))?,
        ReportOutput::Table => match witness {
            None => output::line("equivalent: they allow the same")?,
            Some(change) => {
                output::line("not equivalent:")?;
                output::line(&text::change(change))?;
            }
        },
    }
    Ok(answer(witness.is_none()))
}

/// Proves or refutes assertions.
pub(crate) async fn prove(connection: &Connection, args: &ProveArgs) -> Result<ExitCode> {
    let (view, objects) = input::view_and_assertions(connection, &args.files.filename).await?;
    let mut asked: Vec<(Option<String>, String)> =
        args.assertions.iter().map(|text| (None, text.clone())).collect();
    asked.extend(
        input::assertion_lines(&args.assertion_files)?
            .into_iter()
            .map(|text| (None, text)),
    );
    // Objects are asked about where nothing else is.
    if asked.is_empty() {
        asked = objects
            .into_iter()
            .map(|object| (object.metadata.name, object.spec.assertion))
            .collect();
    }
    if asked.is_empty() {
        bail!(
            "there is nothing to prove: give an assertion, --assertions FILE, or PolicyAssertion objects in the cluster or with -f"
        );
    }
    let texts: Vec<String> = asked.iter().map(|(_, text)| text.clone()).collect();
    // All are read before any is proved.
    let mut parsed = Vec::new();
    for (name, text) in asked {
        let context = || match &name {
            Some(name) => format!("PolicyAssertion {name}: the assertion cannot be read"),
            None => "the assertion cannot be read".to_owned(),
        };
        parsed.push((assertion::parse(&text).with_context(context)?, name, text));
    }
    let model = input::model_for(&view, &texts)?;
    let proofs: Vec<Proved> = parsed
        .into_iter()
        .map(|(assertion, name, text)| Proved {
            name,
            assertion: text,
            proof: assertion::prove(&model, &assertion),
        })
        .collect();
    match args.output {
        ReportOutput::Json => json_report(&proofs)?,
        ReportOutput::Table => {
            for proved in &proofs {
                show_proof(proved)?;
            }
        }
    }
    Ok(answer(proofs.iter().all(|proved| proved.proof.holds)))
}

/// Runs cases; exit code 1 when one fails.
pub(crate) async fn test(connection: &Connection, args: &TestArgs) -> Result<ExitCode> {
    let cases = input::cases(&args.cases)?;
    let model = input::model(&input::view(connection, &args.files.filename).await?)?;
    let report = run_cases(&model, &cases);
    match args.output {
        TestOutput::Json => json_report(&report)?,
        TestOutput::Junit => output::line(report.junit().trim_end())?,
        TestOutput::Table => show_cases(&report)?,
    }
    Ok(match report.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Judges recorded flows against other policies; it is an error if there are none to judge.
pub(crate) async fn replay(connection: &Connection, args: &ReplayArgs) -> Result<ExitCode> {
    let flows = input::recorded(connection, &args.flows).await?;
    let model = input::model(&proposed::after(connection, &args.with).await?)?;
    let replay = replayed(&model, &flows);
    require_judged(&replay)?;
    if args.output == ReportOutput::Json {
        json_report(&replay)?;
        return Ok(answer(replay.changes.is_empty()));
    }
    for change in &replay.changes {
        output::line(&text::flow_change(change))?;
    }
    let changed = replay.judged - replay.same;
    output::line(&format!(
        "{} flows judged, {} keep their verdict, {changed} change",
        replay.judged, replay.same
    ))?;
    for (reason, count) in &replay.same_because {
        output::note(&format!("note: {count} flows keep their verdict: {reason}"));
    }
    for (reason, count) in &replay.left_out {
        output::note(&format!("note: {count} flows were left out: {reason}"));
    }
    Ok(answer(replay.changes.is_empty()))
}

/// That no verdict changes says something only where there were any.
fn require_judged(replay: &Replay) -> Result<()> {
    if replay.judged > 0 {
        return Ok(());
    }
    if replay.left_out.is_empty() {
        bail!("no flow was judged: none is recorded");
    }
    let reasons = replay.left_out.iter();
    let reasons: Vec<String> = reasons
        .map(|(reason, count)| format!("{count} flows: {reason}"))
        .collect();
    bail!("no flow was judged; left out were {}", reasons.join("; "))
}

/// Writes policies that allow what was recorded.
pub(crate) async fn recommend(connection: &Connection, args: &RecommendArgs) -> Result<()> {
    let flows = input::recorded(connection, &args.flows).await?;
    let view = input::view(connection, &args.files.filename).await?;
    let dialect = if args.calico {
        Dialect::Calico
    } else {
        Dialect::Kubernetes
    };
    let recommendation = recommended(&view, &flows, dialect)?;
    for left_out in &recommendation.left_out {
        output::note(&format!("note: {left_out}"));
    }
    match args.output {
        ObjectsOutput::Json => json_report(&json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": recommendation.objects,
        }))?,
        ObjectsOutput::Yaml => {
            for (number, object) in recommendation.objects.iter().enumerate() {
                if number > 0 {
                    output::line("---")?;
                }
                output::object(object, ObjectOutput::Yaml)?;
            }
        }
    }
    output::note(&format!(
        "note: proved: the policies allow the {} recorded connections and nothing else",
        recommendation.connections
    ));
    Ok(())
}

/// Counts.
pub(crate) async fn top(connection: &Connection, args: &TopArgs) -> Result<()> {
    match &args.what {
        TopWhat::Rules(args) => top_rules(connection, args).await,
    }
}

async fn top_rules(connection: &Connection, args: &TopRulesArgs) -> Result<()> {
    let live = args.flows.is_empty() && args.files.filename.is_empty();
    let flows = match live {
        true => input::live_flows(connection).await?,
        false => input::flows(&args.flows)?,
    };
    let model = input::model(&input::view(connection, &args.files.filename).await?)?;
    let (mut rules, others) = rule_use(&model, &flows);
    // Among equals the order in which they are asked says most.
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.hits));
    if args.output == ReportOutput::Json {
        return json_report(&json!({"rules": rules, "others": others}));
    }
    let header = ["HITS", "DIRECTION", "ACTION", "RULE", "STATUS"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(rules.iter().map(|rule| {
        vec![
            rule.hits.to_string(),
            rule.key.direction.word().to_owned(),
            rule.action.to_owned(),
            rule.key.rule.clone(),
            status(rule, live || !flows.is_empty()),
        ]
    }));
    rows.extend(others.iter().map(|other| {
        vec![
            other.hits.to_string(),
            other.key.direction.word().to_owned(),
            String::new(),
            other.key.rule.clone(),
            no_rule(other.why).to_owned(),
        ]
    }));
    output::aligned(rows)
}

fn no_rule(why: NoRule) -> &'static str {
    match why {
        NoRule::BuiltIn => "no rule",
        NoRule::PolicyGone => "policy is gone",
        NoRule::RuleGone => "rule is gone",
    }
}

fn status(rule: &RuleUse, recorded: bool) -> String {
    match &rule.status {
        // A rule that passes on decides no flow, so no event names it.
        RuleStatus::Live if rule.action == "pass" => "live, passes on".to_owned(),
        RuleStatus::Live if recorded && rule.hits == 0 => "live, never hit".to_owned(),
        RuleStatus::Live => "live".to_owned(),
        RuleStatus::Untracked => "live, before tracking: what it allows is not recorded".to_owned(),
        RuleStatus::Shadowed { by } => {
            let by: Vec<&str> = by.iter().map(String::as_str).collect();
            format!("shadowed by {}", by.join(", "))
        }
        RuleStatus::MatchesNothing => "matches nothing".to_owned(),
        RuleStatus::AppliesToNothing => "applies to nothing".to_owned(),
        RuleStatus::Logs if recorded && rule.hits == 0 => "only logs, never hit".to_owned(),
        RuleStatus::Logs => "only logs".to_owned(),
        RuleStatus::LogsDenied => "only logs, before tracking: only what is denied is recorded".to_owned(),
    }
}

async fn changes(connection: &Connection, args: &DiffArgs) -> Result<Vec<Change>> {
    let (before, after) = match args.paths.as_slice() {
        [before, after] => (
            input::offline(std::slice::from_ref(before))?.0,
            input::offline(std::slice::from_ref(after))?.0,
        ),
        after => proposed::before_and_after(connection, after).await?,
    };
    let [before, after] = input::models(&before, &after)?;
    require_workloads(&before, &after)?;
    Ok(difference(&before, &after))
}

/// That nothing opens and nothing closes says something only where somebody could be reached.
fn require_workloads(before: &Model, after: &Model) -> Result<()> {
    let nobody = |model: &Model| model.cluster().members.is_empty();
    if nobody(before) && nobody(after) {
        bail!(
            "nothing was compared: neither side has a pod or a host endpoint, so there is no flow to judge; add the \
             pods to both, or give only what is new and run against the live cluster"
        );
    }
    Ok(())
}

/// An assertion and what came of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Proved {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    assertion: String,
    #[serde(flatten)]
    proof: Proof,
}

fn show_proof(proved: &Proved) -> Result<()> {
    let word = match proved.proof.holds {
        true => output::coloured("holds ", output::Colour::Good),
        false => output::coloured("broken", output::Colour::Bad),
    };
    let name = proved
        .name
        .as_ref()
        .map(|name| format!("{name}: "))
        .unwrap_or_default();
    output::line(&format!("{word}  {name}{}", proved.assertion))?;
    if let Some(vacuous) = &proved.proof.vacuous {
        output::line(&format!("        but says nothing: {vacuous}"))?;
    }
    if let Some(left_out) = &proved.proof.left_out {
        output::line(&format!(
            "        but for what nodes send to their own pods, which always passes: {left_out}"
        ))?;
    }
    match &proved.proof.problem {
        None => {}
        Some(Problem::Counterexample(packet)) => {
            let verdict = if packet.allowed { "passes" } else { "does not pass" };
            output::line(&format!("        {packet} {verdict}"))?;
            output::line(&format!("        {}", packet.rulings()))?;
        }
        Some(other) => output::line(&format!("        {}", other.text().unwrap_or_default()))?,
    }
    if proved.proof.more > 0 {
        output::line(&format!("        and {} more pairs of ends", proved.proof.more))?;
    }
    Ok(())
}

fn show_cases(report: &CaseReport) -> Result<()> {
    for case in &report.cases {
        let word = match case.failure {
            None => output::coloured("pass", output::Colour::Good),
            Some(_) => output::coloured("FAIL", output::Colour::Bad),
        };
        output::line(&format!("{word}  {}", case.name))?;
        if let Some(failure) = &case.failure {
            output::line(&format!("      {failure}"))?;
        }
    }
    let (total, covered) = (report.cases.len(), report.covered.len());
    output::line(&format!("{} of {total} cases pass", total - report.failed))?;
    output::line(&format!(
        "{covered} of {} rules decided a case",
        covered + report.uncovered.len()
    ))?;
    for rule in &report.uncovered {
        output::line(&format!("  never: {} ({})", rule.rule, rule.direction.word()))?;
    }
    Ok(())
}

fn json_report(report: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(report).context("cannot write the answer")?;
    output::object(&value, ObjectOutput::Json)
}

fn answer(holds: bool) -> ExitCode {
    match holds {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(REFUTED),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use policies_checker::rules::{RuleDirection, RuleKey};

    use super::*;

    const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/shop");

    #[test]
    fn never_hit_is_said_only_where_a_hit_would_be_told() {
        let of = |status: RuleStatus, action: &'static str| {
            let key = RuleKey {
                direction: RuleDirection::Ingress,
                rule: "GlobalNetworkPolicy edge rule 0".to_owned(),
            };
            let rule = RuleUse {
                key,
                action,
                hits: 0,
                status,
            };
            super::status(&rule, true)
        };
        assert!(of(RuleStatus::Live, "allow").contains("never hit"));
        assert!(of(RuleStatus::Logs, "log").contains("never hit"));
        for (status, action) in [
            (RuleStatus::Live, "pass"),
            (RuleStatus::Untracked, "allow"),
            (RuleStatus::LogsDenied, "log"),
        ] {
            let said = of(status, action);
            assert!(!said.contains("never hit"), "{said}");
        }
        let said = of(RuleStatus::Untracked, "allow");
        assert!(said.contains("not recorded"), "{said}");
    }

    fn replay_of(flows: &Path, with: &Path) -> Result<ExitCode> {
        let args = ReplayArgs {
            flows: vec![flows.to_owned()],
            with: vec![with.to_owned()],
            output: ReportOutput::Table,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(replay(&no_cluster(), &args))
    }

    fn no_cluster() -> Connection {
        Connection {
            kubeconfig: Some(PathBuf::from("/nonexistent/kubeconfig")),
        }
    }

    #[test]
    fn folders_without_workloads_are_not_equivalent_but_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let policy = |name: &str, spec: &str| {
            let path = folder.path().join(name);
            let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
            std::fs::write(&path, format!("{head}spec: {spec}\n")).unwrap();
            path
        };
        let closed = policy("closed.yaml", "{podSelector: {}}");
        let open = policy("open.yaml", "{podSelector: {}, ingress: [{}]}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let manifests = Path::new(SHOP).join("manifests");
        let of = |old: &Path, new: &Path| {
            let args = DiffArgs {
                paths: vec![old.to_owned(), new.to_owned()],
                output: ReportOutput::Json,
            };
            let connection = no_cluster();
            let diff = runtime.block_on(diff(&connection, &args));
            (diff, runtime.block_on(equivalent(&connection, &args)))
        };
        let (diff, equivalent) = of(&closed, &open);
        for said in [diff.unwrap_err(), equivalent.unwrap_err()].map(|error| error.to_string()) {
            assert!(
                said.contains("neither side has a pod") && said.contains("live cluster"),
                "{said}"
            );
        }
        // One side with workloads is an answer: all that they may exchange is new.
        let (diff, equivalent) = of(&closed, &manifests);
        assert!(diff.is_ok());
        assert_eq!(equivalent.unwrap(), ExitCode::from(REFUTED));
    }

    #[test]
    fn a_connection_that_is_older_than_the_record_is_judged() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {containers: []}\n";
        let objects = format!(
            "{pod}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: [{{port: 443}}]}}]}}\n"
        );
        let objects = write("objects.yaml", &objects);
        let event = |kind: &str, port: u16| {
            json!({"kind": kind, "time": "2026-11-28T10:00:00Z", "opened": "2026-11-01T00:00:00Z", "node": "n",
                "pod": {"namespace": "shop", "name": "a"}, "direction": "egress", "verdict": "allow",
                "decidedBy": {"rule": "no-policy"}, "source": "10.0.0.1", "destination": "192.0.2.7", "protocol": 6,
                "sourcePort": 50000, "destinationPort": port, "epoch": 1})
            .to_string()
        };
        for (kind, port, answer) in [
            ("update", 80, ExitCode::from(REFUTED)),
            ("end", 80, ExitCode::from(REFUTED)),
            ("update", 443, ExitCode::SUCCESS),
        ] {
            let flows = write("flows.jsonl", &event(kind, port));
            assert_eq!(replay_of(&flows, &objects).unwrap(), answer, "{kind} {port}");
        }
    }

    #[test]
    fn replay_that_judges_nothing_is_an_error() {
        let error = |flows: &Path, with: &Path| format!("{:#}", replay_of(flows, with).unwrap_err());
        let flows = Path::new(SHOP).join("flows.jsonl");
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let stranger = write(
            "stranger.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: stranger}\nspec: {containers: []}\n",
        );
        let said = error(&flows, &stranger);
        assert!(said.contains("no flow was judged"), "{said}");
        assert!(
            said.contains("the end that judged is not among the objects"),
            "{said}"
        );

        let policies = write(
            "policy.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\nspec: {podSelector: {}}\n",
        );
        let said = error(&flows, &policies);
        assert!(said.contains("those of the live cluster are needed"), "{said}");

        let said = error(&write("empty.jsonl", ""), &Path::new(SHOP).join("manifests"));
        assert_eq!(said, "no flow was judged: none is recorded");
        assert_eq!(
            replay_of(&flows, &Path::new(SHOP).join("manifests")).unwrap(),
            ExitCode::SUCCESS
        );
    }
}
