//! The syntaxes of the names of objects, as Kubernetes has them.

/// Explains [`is_subdomain`].
pub const SUBDOMAIN: &str = "must be a lowercase RFC 1123 subdomain: at most 253 lower case letters, digits, '-' and '.', \
     with a letter or digit at both ends of each part";
/// Explains [`is_label`].
pub const LABEL: &str = "must be a lowercase RFC 1123 label: at most 63 lower case letters, digits and '-', with a letter or \
     digit at both ends";
/// Explains [`is_service_name`].
pub const SERVICE_NAME: &str = "must be an RFC 1035 label: at most 63 lower case letters, digits and '-', with a letter at the beginning and a \
     letter or digit at the end";

/// A DNS label, such as a container name.
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

/// A label that begins with a letter.
pub fn is_service_name(text: &str) -> bool {
    is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// DNS labels joined by dots: most object names.
pub fn is_subdomain(text: &str) -> bool {
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
        assert!(is_service_name("a1") && !is_service_name("1a"));
    }
}
