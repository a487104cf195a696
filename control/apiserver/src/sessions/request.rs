//! What a client asks for, from the query and the pod. Pure.

use api::session::{self, Action};
use control_admission::CONTAINER_LISTS;
use control_wire::{Status, query::Parameters};
use serde_json::Value;

use super::Shown;
use crate::{objects::metadata_text, pods::container_of};

/// A session that can be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Name of the pod's node.
    pub(super) node: String,
    pub(super) pod: PodName,
    pub(super) kind: Kind,
}

/// Which pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodName {
    namespace: String,
    name: String,
    uid: String,
}

/// What kind of session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A program: its own in a container, or another one.
    Process { action: Action, shown: Shown },
    /// Ports, named later.
    Forward,
}

impl PodName {
    /// Asks the pod's agent to do `action`.
    pub(super) fn request(&self, action: Action) -> session::Request {
        session::Request {
            namespace: self.namespace.clone(),
            pod: self.name.clone(),
            uid: self.uid.clone(),
            action,
        }
    }
}

/// Reads the query of `subresource` for `pod`.
pub(super) fn wanted(subresource: &str, parameters: &Parameters, pod: &Value) -> Result<Wanted, Status> {
    let name = metadata_text(pod, "name");
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind = match subresource {
        "exec" => exec(parameters, pod)?,
        "attach" => attach(parameters, pod)?,
        _ => Kind::Forward,
    };
    let phase = text("/status/phase");
    if matches!(phase, "Succeeded" | "Failed") {
        let what = match &kind {
            Kind::Forward => "forward to",
            Kind::Process { action, .. } => match action {
                Action::Exec { .. } => "exec into a container in",
                _ => "attach to a container in",
            },
        };
        let message = format!("cannot {what} a completed pod; current phase is {phase}");
        return Err(Status::bad_request(message));
    }
    let node = text("/spec/nodeName");
    if node.is_empty() {
        let message = format!("pod {name} does not have a host assigned");
        return Err(Status::bad_request(message));
    }
    Ok(Wanted {
        node: node.to_owned(),
        pod: PodName {
            namespace: metadata_text(pod, "namespace").to_owned(),
            name: name.to_owned(),
            uid: metadata_text(pod, "uid").to_owned(),
        },
        kind,
    })
}

fn exec(parameters: &Parameters, pod: &Value) -> Result<Kind, Status> {
    let container = container_of(pod, parameters.text("container"))?.to_owned();
    let command: Vec<String> = parameters.all("command").map(str::to_owned).collect();
    if command.first().is_none_or(String::is_empty) {
        return Err(Status::bad_request(
            "you must specify at least one command for the container",
        ));
    }
    let bytes: usize = command.iter().map(String::len).sum();
    if command.len() > session::MAX_COMMAND_WORDS || bytes > session::MAX_COMMAND_BYTES {
        return Err(Status::bad_request(format!(
            "the command is too long: at most {} words and {} bytes",
            session::MAX_COMMAND_WORDS,
            session::MAX_COMMAND_BYTES
        )));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Status::bad_request("the command contains a NUL byte"));
    }
    let tty = parameters.flag("tty");
    let shown = Shown {
        exit_code: true,
        ..shown(parameters, tty)?
    };
    let action = Action::Exec {
        container,
        command,
        stdin: shown.stdin,
        tty,
    };
    Ok(Kind::Process { action, shown })
}

fn attach(parameters: &Parameters, pod: &Value) -> Result<Kind, Status> {
    let container = container_of(pod, parameters.text("container"))?;
    let lists = CONTAINER_LISTS
        .iter()
        .filter_map(|list| pod.pointer(&format!("/spec/{list}")));
    let mut specs = lists.filter_map(Value::as_array).flatten();
    let spec = specs.find(|spec| spec["name"] == container);
    let has = |field: &str| spec.is_some_and(|spec| spec[field] == true);
    if parameters.flag("tty") && !has("tty") {
        let message =
            format!("container {container} has no terminal; its spec says whether it gets one (tty)");
        return Err(Status::bad_request(message));
    }
    let shown = shown(parameters, has("tty"))?;
    let action = Action::Attach {
        container: container.to_owned(),
        // A container without input ignores what clients send.
        stdin: shown.stdin && has("stdin"),
    };
    Ok(Kind::Process { action, shown })
}

fn shown(parameters: &Parameters, tty: bool) -> Result<Shown, Status> {
    let shown = Shown {
        stdin: parameters.flag("stdin"),
        stdout: parameters.flag("stdout"),
        // A terminal has one output.
        stderr: parameters.flag("stderr") && !tty,
        resize: parameters.flag("tty"),
        exit_code: false,
    };
    if shown.stdin || shown.stdout || parameters.flag("stderr") {
        Ok(shown)
    } else {
        Err(Status::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [
                {"name": "c", "stdin": true, "tty": true},
                {"name": "quiet"},
            ]},
            "status": {"phase": "Running"},
        })
    }

    fn ask(subresource: &str, query: &str, pod: &Value) -> Result<Wanted, String> {
        wanted(subresource, &Parameters::parse(query).unwrap(), pod).map_err(|status| {
            assert_eq!(status.code(), 400);
            status.message().to_owned()
        })
    }

    #[test]
    fn commands_and_streams_come_from_the_query() {
        let query =
            "command=sh&command=-c&command=a+b&container=c&stdin=true&stdout=true&stderr=true&tty=true";
        let wanted = ask("exec", query, &pod()).unwrap();
        assert_eq!(wanted.node, "n");
        let Kind::Process { action, shown } = wanted.kind else {
            panic!("{wanted:?}")
        };
        let expected = Action::Exec {
            container: "c".to_owned(),
            command: ["sh", "-c", "a b"].map(str::to_owned).to_vec(),
            stdin: true,
            tty: true,
        };
        assert_eq!(action, expected);
        assert_eq!((shown.stdout, shown.stderr, shown.resize), (true, false, true));
        assert_eq!(wanted.pod.request(expected.clone()).uid, "u");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let long = format!(
            "container=c&stdout=1&command={}",
            "x".repeat(session::MAX_COMMAND_BYTES + 1)
        );
        for (subresource, query, expected) in [
            ("exec", "container=c&stdout=1", "at least one command"),
            ("exec", "container=c&stdout=1&command=", "at least one command"),
            ("exec", "container=c&command=x", "at least 1 of stdin"),
            (
                "exec",
                "container=d&command=x&stdout=1",
                "container d is not valid for pod p",
            ),
            ("exec", "command=x&stdout=1", "choose one of: [c quiet]"),
            ("exec", "container=c&stdout=1&command=a%00b", "NUL"),
            ("exec", &long, "too long"),
            ("attach", "container=quiet&stdout=1&tty=1", "has no terminal"),
        ] {
            let message = ask(subresource, query, &pod()).unwrap_err();
            assert!(message.contains(expected), "{query}: {message}");
        }
        let mut completed = pod();
        completed["status"]["phase"] = json!("Succeeded");
        for (subresource, query) in [("exec", "container=c&command=x&stdout=1"), ("portforward", "")] {
            let message = ask(subresource, query, &completed).unwrap_err();
            assert!(
                message.contains("completed pod; current phase is Succeeded"),
                "{message}"
            );
        }
        let mut pending = pod();
        pending["spec"]["nodeName"] = json!(null);
        assert!(
            ask("portforward", "", &pending)
                .unwrap_err()
                .contains("host assigned")
        );
    }

    #[test]
    fn input_goes_only_where_there_is_some() {
        let stdin = |container: &str| {
            let query = format!("container={container}&stdin=1&stdout=1");
            match ask("attach", &query, &pod()).unwrap().kind {
                Kind::Process {
                    action: Action::Attach { stdin, .. },
                    ..
                } => stdin,
                other => panic!("{other:?}"),
            }
        };
        assert!(stdin("c") && !stdin("quiet"));
    }
}
