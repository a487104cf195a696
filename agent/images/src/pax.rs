//! The records of a PAX extension header, read by their lengths as POSIX has it (pax, "pax Extended Header"):
//! `LENGTH KEY=VALUE\n`, where the length counts all of the record, itself and the line feed included.
//!
//! Values are any bytes: extended attributes and names of files may hold line feeds. The `tar` crate ends records at line feeds,
//! and what it then takes for records is not what other readers see.

/// Key and value of a record.
pub(crate) type Record<'a> = (&'a [u8], &'a [u8]);

/// All records, in order; `None` if the data is anything else, in whole or in part.
pub(crate) fn records(mut data: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let digits = data.iter().position(|byte| *byte == b' ')?;
        let length: usize = number(data.get(..digits)?)?;
        let record = data.get(digits + 1..length)?.strip_suffix(b"\n")?;
        let sign = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..sign)?, record.get(sign + 1..)?);
        // A zero byte ends what readers in C see of it.
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        records.push((key, value));
        data = data.get(length..)?;
    }
    Some(records)
}

/// Decimal digits and nothing else: `parse` would take a sign, too.
fn number(digits: &[u8]) -> Option<usize> {
    let is_plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits)
        .ok()
        .filter(|_digits| is_plain)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_long_as_they_say() {
        assert_eq!(records(b""), Some(vec![]));
        let data = b"9 path=a\n15 uid=\n7 x=y\n\n12 a=b=c\n1\n\n5 k=\n";
        // The second holds what looks like a record, and the last has no value.
        let expected: Vec<Record<'_>> = vec![
            (b"path", b"a"),
            (b"uid", b"\n7 x=y\n"),
            (b"a", b"b=c\n1\n"),
            (b"k", b""),
        ];
        assert_eq!(records(data), Some(expected));
        let xattr = b"38 SCHILY.xattr.security.x=\x01\n\0\0=\n12 \n\n";
        let wanted: Vec<Record<'_>> = vec![(b"SCHILY.xattr.security.x", b"\x01\n\0\0=\n12 \n")];
        assert_eq!(records(xattr), Some(wanted));
    }

    #[test]
    fn anything_else_is_nothing() {
        for bad in [
            &b"x"[..],
            b"9 path=a",
            b"8 path=a\n",
            b"11 path=a\n",
            b"+9 path=a\n",
            b" 9 path=a\n",
            b"9 path=a\n\0\0",
            b"9 path=a\n\n9 path=b\n",
            b"2 \n",
            b"1 a=\n",
            b"0 a=\n",
            b"4 =\n",
            b"6 a\0=\n",
            b"7 path\n",
            b"99999999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert_eq!(records(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
