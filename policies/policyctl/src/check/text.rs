//! Answers in lines for people.

use policies_checker::{
    Packet,
    difference::{Change, Effect},
    replay::FlowChange,
};

use crate::output::{Colour, coloured};

/// Flows that a change opens or closes, with an example.
pub(crate) fn change(change: &Change) -> String {
    let word = match change.effect {
        Effect::Opens => coloured("opens ", Colour::Good),
        Effect::Closes => coloured("closes", Colour::Bad),
    };
    let family = change
        .family
        .map(|family| format!(" ({family})"))
        .unwrap_or_default();
    let mut lines = vec![format!(
        "{word}  {} -> {}: {}{family}",
        change.from, change.to, change.text
    )];
    let shown = change.after.as_ref().or(change.before.as_ref());
    lines.extend(shown.map(|packet| format!("        such as {packet}")));
    for (when, packet) in [("before", &change.before), ("after", &change.after)] {
        let became = packet
            .as_ref()
            .map_or_else(|| "an end does not exist".to_owned(), Packet::rulings);
        lines.push(format!("        {when}: {became}"));
    }
    lines.join("\n")
}

/// Recorded flows whose verdict changes.
pub(crate) fn flow_change(change: &FlowChange) -> String {
    let verdict = |allowed: bool| match allowed {
        true => coloured("allow", Colour::Good),
        false => coloured("deny", Colour::Bad),
    };
    let (from, to, opposite) = match change.direction.word() {
        "egress" => (&change.pod, &change.peer, "ingress"),
        _ => (&change.peer, &change.pod, "egress"),
    };
    let own = format!("{} of {}", change.direction.word(), change.pod);
    // What is known of before is what the end that judged said.
    let (place, was_at) = match change.by_other_end {
        true => (format!("{opposite} of {}", change.peer), format!(" at {own}")),
        false => (own, String::new()),
    };
    format!(
        "{} x {from} -> {to}, {}: {} at {place}\n  was: {} by {}{was_at}\n  is:  {} by {}",
        change.count,
        change.service,
        match change.allowed {
            true => "opens",
            false => "closes",
        },
        verdict(change.was_allowed),
        change.was_by,
        verdict(change.allowed),
        change.by,
    )
}
