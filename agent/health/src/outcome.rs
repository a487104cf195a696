//! What became of one try.

/// How much of an answer is kept.
pub const MAX_OUTPUT_BYTES: usize = 10 * 1024;

/// The result of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Success,
    /// Counts as success, but somebody should know.
    Warning(String),
    /// Not well, and why, in the words that Kubernetes' events have.
    Failure(String),
    /// It could not be asked at all, which counts as nothing: Kubernetes' rule.
    Error(String),
}

impl Outcome {
    /// What it counts as.
    pub fn counts_as(&self) -> Option<bool> {
        match self {
            Self::Success | Self::Warning(_) => Some(true),
            Self::Failure(_) => Some(false),
            Self::Error(_) => None,
        }
    }
}

/// The result of a program that ended with `code`, or did not end in time.
pub fn of_program(code: i32, output: &[u8], timed_out: Option<&str>) -> Outcome {
    if let Some(timeout) = timed_out {
        return Outcome::Failure(format!("command timed out: {timeout}"));
    }
    match code {
        0 => Outcome::Success,
        _ => Outcome::Failure(shortened(output)),
    }
}

/// The beginning of an output as text.
pub(crate) fn shortened(output: &[u8]) -> String {
    let kept = output.get(..MAX_OUTPUT_BYTES).unwrap_or(output);
    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_it_by_its_code() {
        assert_eq!(of_program(0, b"x", None), Outcome::Success);
        assert_eq!(
            of_program(1, b"broken", None),
            Outcome::Failure("broken".to_owned())
        );
        let late = of_program(137, b"", Some("\"sleep 9\" timed out after 1s"));
        let expected = "command timed out: \"sleep 9\" timed out after 1s";
        assert_eq!(late, Outcome::Failure(expected.to_owned()));
        let Outcome::Failure(long) = of_program(1, &vec![b'x'; 1 << 20], None) else {
            panic!("failed")
        };
        assert_eq!(long.len(), MAX_OUTPUT_BYTES);
    }
}
