//! Kubernetes quantities, such as `250m`, `1.5` or `64Mi`, as whole thousandths.

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not digits with an optional fraction and suffix.
    #[error("quantity {0:?} must be a number with an optional suffix such as m, k, M, Gi")]
    Syntax(String),
    /// Larger than anything that is counted here.
    #[error("quantity {0:?} is too large")]
    TooLarge(String),
}

/// Longest text that is looked at.
const MAX_LENGTH: usize = 64;

/// Thousandths of `text`, rounded up as Kubernetes does: `250m` is 250, `1` is 1000, `1Ki` is 1024000.
/// Negative quantities are refused: nothing that is asked for here can be negative.
///
/// # Errors
///
/// [`QuantityError::TooLarge`] beyond 18 `P`, for which [`units`] has room.
pub fn thousandths(text: &str) -> Result<u64, QuantityError> {
    fits(text, exact_thousandths(text)?)
}

/// Whole units of `text`, rounded up: bytes of `64Mi`.
pub fn units(text: &str) -> Result<u64, QuantityError> {
    fits(text, exact_thousandths(text)?.div_ceil(1000))
}

fn fits(text: &str, amount: u128) -> Result<u64, QuantityError> {
    u64::try_from(amount).map_err(|_overflow| QuantityError::TooLarge(text.to_owned()))
}

/// As [`thousandths`], for amounts of any suffix.
pub fn exact_thousandths(text: &str) -> Result<u128, QuantityError> {
    let syntax = || QuantityError::Syntax(text.chars().take(MAX_LENGTH).collect());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    if text.len() > MAX_LENGTH {
        return Err(syntax());
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let digits_end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return Err(syntax());
    }
    let (factor, divisor) = scale(suffix).ok_or_else(syntax)?;
    let digits: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_digits_only| too_large())?;
    let fraction_digits = u32::try_from(fraction.len()).map_err(|_bounded_above| syntax())?;
    let decimal = 10u128
        .checked_pow(fraction_digits)
        .and_then(|d| d.checked_mul(divisor))
        .ok_or_else(too_large)?;
    let scaled = digits
        .checked_mul(factor)
        .and_then(|d| d.checked_mul(1000))
        .ok_or_else(too_large)?;
    Ok(scaled.div_ceil(decimal))
}

/// Factor and divisor of a suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const KI: u128 = 1024;
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (KI, 1),
        "Mi" => (KI.pow(2), 1),
        "Gi" => (KI.pow(3), 1),
        "Ti" => (KI.pow(4), 1),
        "Pi" => (KI.pow(5), 1),
        "Ei" => (KI.pow(6), 1),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            match digits.strip_prefix('-') {
                Some(digits) => (1, power_of_ten(digits)?),
                None => (power_of_ten(digits.strip_prefix('+').unwrap_or(digits))?, 1),
            }
        }
    })
}

fn power_of_ten(digits: &str) -> Option<u128> {
    let digits_only = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    10u128.checked_pow(digits.parse().ok().filter(|_| digits_only)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_reads() {
        for (text, expected) in [
            ("250m", 250),
            ("1", 1000),
            ("0.5", 500),
            (".5", 500),
            ("1.", 1000),
            ("1e3", 1_000_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1k", 1_000_000),
            ("100u", 1),
            ("5e-1", 500),
        ] {
            assert_eq!(thousandths(text), Ok(expected), "{text}");
        }
        assert_eq!(units("1500m"), Ok(2));
        assert_eq!(units("20Pi"), Ok(20 << 50));
        assert_eq!(exact_thousandths("1Ei"), Ok(1000 << 60));
        assert_eq!(units("20E"), Err(QuantityError::TooLarge("20E".to_owned())));
        assert_eq!(thousandths("1E"), Err(QuantityError::TooLarge("1E".to_owned())));
    }

    #[test]
    fn refuses_nonsense() {
        for bad in [
            "",
            ".",
            "-1",
            "1.2.3",
            "1 Gi",
            "1gi",
            "Mi",
            "1e",
            "1e+",
            "0x10",
            "1e99",
            &"9".repeat(60),
        ] {
            assert!(thousandths(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
