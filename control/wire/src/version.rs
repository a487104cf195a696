//! The `/version` document. Clients compare `major` and `minor` with their own, so these name the Kubernetes
//! release whose API is served; `gitVersion` says whose server it is.

use serde_json::{Value, json};

/// Kubernetes release whose API is served.
pub const KUBERNETES: (&str, &str) = ("1", "33");

/// `gitVersion`: the Kubernetes release, with ours as build metadata.
pub fn git_version() -> String {
    let (major, minor) = KUBERNETES;
    format!("v{major}.{minor}.0-palisade.{}", env!("CARGO_PKG_VERSION"))
}

/// The document.
pub fn info() -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH)),
    })
}

/// Go's name for an architecture, which is what clients and image indexes use.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_and_minor_are_plain_numbers() {
        let info = info();
        assert!(info["major"].as_str().unwrap().parse::<u32>().is_ok());
        assert!(info["minor"].as_str().unwrap().parse::<u32>().is_ok());
        assert!(info["gitVersion"].as_str().unwrap().starts_with("v1.33."));
    }
}
