//! The syntaxes of keys, ports and paths; those of names are the API's.

pub(crate) use api::names::{LABEL, SERVICE_NAME, SUBDOMAIN, is_label, is_service_name, is_subdomain};

/// Explains [`is_data_key`].
pub(crate) const DATA_KEY: &str =
    "must be 1 to 253 letters, digits, '-', '_' and '.', and neither \".\" nor start with \"..\"";
/// Explains [`is_port_name`].
pub(crate) const PORT_NAME: &str =
    "must be 1 to 15 lower case letters, digits and single '-', with a letter among them";

/// A key of a config map or secret: also the name of a file, so it must not lead out of a directory.
pub(crate) fn is_data_key(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text != "."
        && !text.starts_with("..")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A port name.
pub(crate) fn is_port_name(text: &str) -> bool {
    is_label(text) && text.len() <= 15 && !text.contains("--") && text.bytes().any(|b| b.is_ascii_lowercase())
}

/// An absolute path without `..`.
pub(crate) fn is_absolute_path(text: &str) -> bool {
    text.starts_with('/') && !text.split('/').any(|part| part == "..") && !text.contains('\0')
}

/// A relative path without `..` and empty parts: where a volume puts a key.
pub(crate) fn is_relative_path(text: &str) -> bool {
    !text.is_empty()
        && !text.contains('\0')
        && text
            .split('/')
            .all(|part| !part.is_empty() && part != "." && !part.starts_with(".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_ports() {
        assert!(is_data_key("tls.crt") && is_data_key(".dockerconfigjson") && is_data_key("A_b-c"));
        for bad in ["", ".", "..", "..a", "a/b", "a b"] {
            assert!(!is_data_key(bad), "{bad}");
        }
        assert!(is_port_name("http") && is_port_name("8080-tcp"));
        for bad in ["", "8080", "a--b", "-a", "sixteen-letters-x"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert!(is_absolute_path("/") && is_absolute_path("/a/b/") && is_absolute_path("/a..b"));
        assert!(!is_absolute_path("a") && !is_absolute_path("/a/../b") && !is_absolute_path("/.."));
        assert!(is_relative_path("a/b.c") && is_relative_path(".hidden"));
        for bad in ["", "/a", "a//b", "a/../b", "..", "./a", "a/"] {
            assert!(!is_relative_path(bad), "{bad}");
        }
    }
}
