//! The signal by which an image asks to be stopped. Pure.

use nix::sys::signal::Signal;

/// The first and the last realtime signal that a program may use: glibc and musl keep those from 32 on for themselves.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Number of an image's stop signal: a number, or a name with or without `SIG`, such as `QUIT` and `RTMIN+3`. What is none
/// of them means `SIGTERM`, as no signal does.
pub(super) fn stop_signal(text: Option<&str>) -> i32 {
    text.and_then(parse).unwrap_or(Signal::SIGTERM as i32)
}

fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(|number| (1..=RTMAX).contains(number));
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let realtime = |base: i32, sign: i32, rest: &str| {
        let number = match rest.split_at_checked(1) {
            None => base,
            Some((operator, offset)) if operator == (if sign > 0 { "+" } else { "-" }) => {
                base.checked_add(sign * i32::from(offset.parse::<u8>().ok()?))?
            }
            Some(_) => return None,
        };
        Some(number).filter(|number| (RTMIN..=RTMAX).contains(number))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(RTMIN, 1, rest);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(RTMAX, -1, rest);
    }
    format!("SIG{name}")
        .parse::<Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_names_or_numbers() {
        for (text, number) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("3", 3),
            ("37", 37),
            ("SIGRTMIN+3", 37),
            ("rtmin", 34),
            ("RTMIN+30", 64),
            ("SIGRTMAX-14", 50),
            ("RTMAX", 64),
        ] {
            assert_eq!(stop_signal(Some(text)), number, "{text}");
        }
        for odd in [
            "nonsense", "99", "0", "-3", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMAX-31", "RTMIN3", "RTMIN+", "",
        ] {
            assert_eq!(stop_signal(Some(odd)), 15, "{odd}");
        }
        assert_eq!(stop_signal(None), 15);
    }
}
