//! How a session ended, as clients are told on the error stream.

use serde_json::{Value, json};

/// The Status object of version 4 and later for a program that ended with `code`.
pub fn exited(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The Status object for a program that could not be run to its end.
pub fn failed(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

/// What versions before 4 say instead: nothing of success, a text of failure.
pub fn as_text(status: &Value) -> Option<&str> {
    match status["status"].as_str() {
        Some("Success") => None,
        _ => status["message"].as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_where_clients_look() {
        assert_eq!(exited(0)["status"], "Success");
        assert_eq!(as_text(&exited(0)), None);
        let three = exited(3);
        assert_eq!(three["reason"], "NonZeroExitCode");
        assert_eq!(
            three["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
        assert!(
            as_text(&failed("no such program"))
                .unwrap()
                .ends_with("no such program")
        );
    }
}
