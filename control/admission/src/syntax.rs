//! The syntaxes of names and keys.

/// Explains [`is_subdomain`].
pub(crate) const SUBDOMAIN: &str = "must be a lowercase RFC 1123 subdomain: at most 253 lower case letters, digits, '-' and '.', \
     with a letter or digit at both ends of each part";
/// Explains [`is_label`].
pub(crate) const LABEL: &str = "must be a lowercase RFC 1123 label: at most 63 lower case letters, digits and '-', with a letter or \
     digit at both ends";
/// Explains [`is_service_name`].
pub(crate) const SERVICE_NAME: &str = "must be an RFC 1035 label: at most 63 lower case letters, digits and '-', with a letter at the beginning and a \
     letter or digit at the end";
/// Explains [`is_data_key`].
pub(crate) const DATA_KEY: &str =
    "must be 1 to 253 letters, digits, '-', '_' and '.', and neither \".\" nor start with \"..\"";
/// Explains [`is_port_name`].
pub(crate) const PORT_NAME: &str =
    "must be 1 to 15 lower case letters, digits and single '-', with a letter among them";

/// A DNS label, such as a container name.
pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

/// A label that begins with a letter.
pub(crate) fn is_service_name(text: &str) -> bool {
    is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// DNS labels joined by dots: most object names.
pub(crate) fn is_subdomain(text: &str) -> bool {
    // Kubernetes does not limit the parts to 63 characters.
    let part = |part: &str| {
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|b| edge(b) || *b == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

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
    fn names() {
        assert!(is_label("a") && is_label("a-1") && is_label(&"a".repeat(63)));
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
        assert!(is_subdomain("a.b-c.d1") && is_subdomain(&"a".repeat(200)));
        for bad in ["", ".", "a..b", "a.", "a.-b", "Ä", &"a".repeat(254)] {
            assert!(!is_subdomain(bad), "{bad}");
        }
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
