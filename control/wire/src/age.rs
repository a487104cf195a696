//! Ages as kubectl prints them: two units at most, coarser as they grow, so that a column stays narrow.

use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// From `limit` seconds on the next row counts. `fine` is printed behind `coarse` unless it is zero.
struct Band {
    limit: i64,
    coarse: (i64, char),
    fine: Option<(i64, char)>,
}

const BANDS: &[Band] = &[
    Band {
        limit: 2 * MINUTE,
        coarse: (1, 's'),
        fine: None,
    },
    Band {
        limit: 10 * MINUTE,
        coarse: (MINUTE, 'm'),
        fine: Some((1, 's')),
    },
    Band {
        limit: 3 * HOUR,
        coarse: (MINUTE, 'm'),
        fine: None,
    },
    Band {
        limit: 8 * HOUR,
        coarse: (HOUR, 'h'),
        fine: Some((MINUTE, 'm')),
    },
    Band {
        limit: 2 * DAY,
        coarse: (HOUR, 'h'),
        fine: None,
    },
    Band {
        limit: 8 * DAY,
        coarse: (DAY, 'd'),
        fine: Some((HOUR, 'h')),
    },
    Band {
        limit: 2 * YEAR,
        coarse: (DAY, 'd'),
        fine: None,
    },
    Band {
        limit: 8 * YEAR,
        coarse: (YEAR, 'y'),
        fine: Some((DAY, 'd')),
    },
    Band {
        limit: i64::MAX,
        coarse: (YEAR, 'y'),
        fine: None,
    },
];

/// Time since `then`, such as `5m30s`; `<invalid>` when `then` lies more than a second in the future.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    human_duration(now.as_second().saturating_sub(then.as_second()))
}

/// The same from a JSON timestamp; `<unknown>` when there is none, as for an object without a birth.
pub fn age_of(then: Option<&str>, now: Timestamp) -> String {
    match then.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(then) => age(then, now),
        None => "<unknown>".to_owned(),
    }
}

/// A number of seconds in that form.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let Some(band) = BANDS.iter().find(|band| seconds < band.limit) else {
        return "<invalid>".to_owned();
    };
    let (unit, letter) = band.coarse;
    let mut text = format!("{}{letter}", seconds / unit);
    if let Some((fine_unit, fine_letter)) = band.fine {
        let rest = seconds % unit / fine_unit;
        if rest > 0 {
            text.push_str(&format!("{rest}{fine_letter}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectls() {
        for (seconds, expected) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 61, "3h1m"),
            (8 * HOUR + 3599, "8h"),
            (2 * DAY - 1, "47h"),
            (2 * DAY, "2d"),
            (2 * DAY + 3 * HOUR, "2d3h"),
            (8 * DAY, "8d"),
            (2 * YEAR - 1, "729d"),
            (2 * YEAR, "2y"),
            (2 * YEAR + 5 * DAY, "2y5d"),
            (8 * YEAR + 5 * DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }
}
