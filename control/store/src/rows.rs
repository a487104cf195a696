//! Keys in the file: `resource NUL namespace NUL name`. They sort as [`ObjectKey`] does.

use crate::{KeyPrefix, ObjectKey, StoreError};

/// Row of an object.
pub(crate) fn row_key(key: &ObjectKey) -> Vec<u8> {
    [
        key.resource.as_bytes(),
        key.namespace.as_bytes(),
        key.name.as_bytes(),
    ]
    .join(&0)
}

/// Rows under `prefix`: from the first on, up to but without the second. NUL is the smallest byte, so 1 in
/// place of the last NUL ends the range.
pub(crate) fn row_range(prefix: &KeyPrefix) -> (Vec<u8>, Vec<u8>) {
    let mut stem = prefix.resource.clone().into_bytes();
    if let Some(namespace) = &prefix.namespace {
        stem.push(0);
        stem.extend_from_slice(namespace.as_bytes());
    }
    ([stem.as_slice(), &[0]].concat(), [stem.as_slice(), &[1]].concat())
}

/// The object of a row; an error where the file was damaged.
pub(crate) fn object_key(row: &[u8]) -> Result<ObjectKey, StoreError> {
    let damaged = || StoreError::Key {
        part: "row",
        value: String::from_utf8_lossy(row).chars().take(64).collect(),
    };
    let text = std::str::from_utf8(row).map_err(|_e| damaged())?;
    let mut parts = text.split('\0');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(resource), Some(namespace), Some(name), None) => Ok(ObjectKey::new(resource, namespace, name)),
        _ => Err(damaged()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sort_like_keys() {
        let keys = [
            ("a", "", "z"),
            ("a", "n", "1"),
            ("a", "n-1", "0"),
            ("ab", "", "0"),
        ]
        .map(|(r, ns, n)| ObjectKey::new(r, ns, n));
        assert!(keys.is_sorted());
        assert!(keys.iter().map(row_key).is_sorted());
        for key in &keys {
            assert_eq!(object_key(&row_key(key)).unwrap(), *key);
        }
    }
}
