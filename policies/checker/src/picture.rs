//! Pictures of connectivity: Graphviz's language, and SVG that is laid out here and needs nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::connectivity::{Connection, Connectivity, OWN_NODE};

/// The graph for Graphviz: namespaces are boxes, edges carry what may pass.
pub fn dot(connectivity: &Connectivity) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out =
        String::from("digraph connectivity {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    let mut namespaces: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for group in &connectivity.workloads {
        let namespace = group.namespace.as_deref().unwrap_or_default();
        namespaces.entry(namespace).or_default().push(&group.name);
    }
    // Writing to a string does not fail.
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    for (number, (namespace, names)) in namespaces.into_iter().enumerate() {
        line(format!("  subgraph cluster_{number} {{"));
        line(format!("    label={};", quoted(namespace)));
        for name in names {
            line(format!("    {};", quoted(name)));
        }
        line("  }".to_owned());
    }
    let used = ends_in_use(connectivity);
    for group in connectivity
        .outside
        .iter()
        .filter(|group| used.contains(group.name.as_str()))
    {
        line(format!("  {} [style=dashed];", quoted(&group.name)));
    }
    if used.contains(OWN_NODE) {
        line(format!("  {} [style=dashed];", quoted(OWN_NODE)));
    }
    for connection in &connectivity.connections {
        line(format!(
            "  {} -> {} [label={}];",
            quoted(&connection.from),
            quoted(&connection.to),
            quoted(&label(connection))
        ));
    }
    line("}".to_owned());
    out
}

/// Height of a line of text, in pixels.
const LINE: usize = 18;
/// Space between boxes, and between text and the edge of its box.
const GAP: usize = 10;
/// Width of a character of the font at its size, about.
const CHARACTER_TENTHS: usize = 74;
/// Longest text before it is cut.
const MAX_TEXT: usize = 60;
/// Room for the curves between two columns.
const CURVES: usize = 170;

/// Colours that can be told apart, also in print; a source's lines all have one.
const COLOURS: [&str; 8] = [
    "#1b6ca8", "#b5532a", "#2f7d4f", "#7b4bb3", "#a1761b", "#1f8a8a", "#b0366f", "#5a5f66",
];

/// A picture that reads from left to right: who may reach what on which service. Sources stand left, destinations
/// right, and beside each destination the services on which it may be reached.
pub fn svg(connectivity: &Connectivity) -> String {
    let layout = Layout::new(connectivity);
    layout.draw()
}

/// A service of a destination and those who may use it.
struct Pill<'a> {
    text: String,
    sources: BTreeSet<&'a str>,
    middle: usize,
}

/// A destination and its services.
struct Target<'a> {
    name: &'a str,
    top: usize,
    height: usize,
    pills: Vec<Pill<'a>>,
}

/// A source.
struct Origin<'a> {
    name: &'a str,
    middle: usize,
}

struct Layout<'a> {
    origins: Vec<Origin<'a>>,
    targets: Vec<Target<'a>>,
    outside: BTreeSet<&'a str>,
    origin_width: usize,
    pill_width: usize,
    target_width: usize,
    height: usize,
}

impl<'a> Layout<'a> {
    fn new(connectivity: &'a Connectivity) -> Self {
        let mut services: BTreeMap<&str, BTreeMap<String, BTreeSet<&str>>> = BTreeMap::new();
        for connection in &connectivity.connections {
            let of_target = services.entry(&connection.to).or_default();
            let sources = of_target.entry(label(connection)).or_default();
            sources.insert(connection.from.as_str());
        }
        let order = || {
            let workloads = connectivity.workloads.iter().map(|group| group.name.as_str());
            let outside = connectivity.outside.iter().map(|group| group.name.as_str());
            workloads.chain(outside).chain([OWN_NODE])
        };
        let header = 3 * LINE;
        let mut top = header;
        let mut targets = Vec::new();
        for name in order() {
            let Some(services) = services.remove(name) else {
                continue;
            };
            let height = services.len() * (LINE + GAP) + GAP;
            let pills = services
                .into_iter()
                .enumerate()
                .map(|(row, (text, sources))| Pill {
                    text,
                    sources,
                    middle: top + GAP + row * (LINE + GAP) + LINE / 2,
                });
            targets.push(Target {
                name,
                top,
                height,
                pills: pills.collect(),
            });
            top += height + GAP;
        }
        let mut sources: Vec<(usize, &str)> = order()
            .filter_map(|name| Some((centre(&targets, name)?, name)))
            .collect();
        // Sources near what they reach have short lines that cross little.
        sources.sort_by_key(|(centre, _)| *centre);
        let mut next = header;
        let origins: Vec<Origin<'_>> = sources
            .into_iter()
            .map(|(centre, name)| {
                let middle = centre.max(next + LINE);
                next = middle + LINE + GAP;
                Origin { name, middle }
            })
            .collect();
        let widest = |texts: Vec<String>| {
            let longest = texts
                .iter()
                .map(|text| cut(text).chars().count())
                .max()
                .unwrap_or(0);
            longest * CHARACTER_TENTHS / 10 + 2 * GAP
        };
        Self {
            origin_width: widest(origins.iter().map(|origin| origin.name.to_owned()).collect()),
            pill_width: widest(
                targets
                    .iter()
                    .flat_map(|target| target.pills.iter().map(|pill| pill.text.clone()))
                    .collect(),
            ),
            target_width: widest(targets.iter().map(|target| target.name.to_owned()).collect()),
            height: top.max(next + GAP),
            outside: connectivity
                .outside
                .iter()
                .map(|group| group.name.as_str())
                .chain([OWN_NODE])
                .collect(),
            origins,
            targets,
        }
    }

    fn draw(&self) -> String {
        let pills_at = GAP + self.origin_width + CURVES;
        let targets_at = pills_at + self.pill_width + GAP;
        let width = targets_at + self.target_width + GAP;
        let mut svg = String::new();
        // Writing to a string does not fail.
        let mut line = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        line(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{0}\" viewBox=\"0 0 {width} {0}\" \
             font-family=\"sans-serif\" font-size=\"12\">",
            self.height
        ));
        line("<title>Allowed connections</title>".to_owned());
        line(format!(
            "<rect width=\"{width}\" height=\"{}\" fill=\"#ffffff\"/>",
            self.height
        ));
        for (x, text) in [(GAP, "from"), (pills_at, "on"), (targets_at, "to")] {
            line(format!(
                "<text x=\"{x}\" y=\"{}\" font-size=\"13\" font-weight=\"bold\" fill=\"#444444\">{text}</text>",
                2 * LINE
            ));
        }
        if self.targets.is_empty() {
            line(format!(
                "<text x=\"{GAP}\" y=\"{}\">nothing may pass</text>",
                3 * LINE
            ));
        }
        let end = GAP + self.origin_width;
        for (origin, colour) in self.origins.iter().zip(COLOURS.into_iter().cycle()) {
            for pill in self.targets.iter().flat_map(|target| &target.pills) {
                if pill.sources.contains(origin.name) {
                    let (from, to, bend) = (origin.middle, pill.middle, CURVES / 2);
                    line(format!(
                        "<path d=\"M{end} {from} C{} {from} {} {to} {pills_at} {to}\" fill=\"none\" stroke=\"{colour}\" \
                         stroke-width=\"1.4\" stroke-opacity=\"0.75\"/>",
                        end + bend,
                        pills_at - bend
                    ));
                }
            }
        }
        for (origin, colour) in self.origins.iter().zip(COLOURS.into_iter().cycle()) {
            let top = origin.middle - LINE / 2 - GAP / 2;
            line(self.block(GAP, top, self.origin_width, LINE + GAP, origin.name, colour));
        }
        for target in &self.targets {
            line(self.block(
                targets_at,
                target.top,
                self.target_width,
                target.height,
                target.name,
                "#444444",
            ));
            for pill in &target.pills {
                let top = pill.middle - LINE / 2;
                line(format!(
                    "<rect x=\"{pills_at}\" y=\"{top}\" width=\"{}\" height=\"{LINE}\" rx=\"9\" fill=\"#eef2f6\" \
                     stroke=\"#9aa5b1\"/>",
                    self.pill_width
                ));
                line(text(pills_at + GAP, pill.middle, &pill.text));
            }
        }
        line("</svg>".to_owned());
        svg
    }

    /// A box with a name in the middle of its height. Those that are not workloads are dashed.
    fn block(&self, x: usize, y: usize, width: usize, height: usize, name: &str, colour: &str) -> String {
        let dash = if self.outside.contains(name) {
            " stroke-dasharray=\"4 3\""
        } else {
            ""
        };
        let mut block = format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\" fill=\"#ffffff\" \
             stroke=\"{colour}\" stroke-width=\"1.4\"{dash}/>\n"
        );
        block.push_str(&text(x + GAP, y + height / 2, name));
        block
    }
}

/// Where the lines of a source go on average.
fn centre(targets: &[Target<'_>], source: &str) -> Option<usize> {
    let pills = targets.iter().flat_map(|target| &target.pills);
    let middles: Vec<usize> = pills
        .filter(|pill| pill.sources.contains(source))
        .map(|pill| pill.middle)
        .collect();
    middles.iter().sum::<usize>().checked_div(middles.len())
}

fn label(connection: &Connection) -> String {
    match connection.family {
        Some(family) => format!("{} ({family})", connection.text),
        None => connection.text.clone(),
    }
}

fn ends_in_use(connectivity: &Connectivity) -> BTreeSet<&str> {
    let ends = connectivity.connections.iter();
    ends.flat_map(|connection| [connection.from.as_str(), connection.to.as_str()])
        .collect()
}

fn cut(text: &str) -> String {
    match text.chars().count() > MAX_TEXT {
        true => text.chars().take(MAX_TEXT - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Text whose middle is at `y`; what was cut is shown by the viewer when asked.
fn text(x: usize, y: usize, text: &str) -> String {
    let mut element = format!("<text x=\"{x}\" y=\"{}\" fill=\"#1c1f23\">", y + 4);
    let shown = cut(text);
    if shown != text {
        // Writing to a string does not fail.
        write!(element, "<title>{}</title>", escaped(text)).unwrap_or_default();
    }
    element.push_str(&escaped(&shown));
    element.push_str("</text>");
    element
}

/// Text for XML, in elements and attributes alike.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // In an attribute they would be read as blanks.
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            // XML has no way to write these: https://www.w3.org/TR/xml/#charsets
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Char` of XML 1.0.
    fn is_xml(c: char) -> bool {
        matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    }

    #[test]
    fn any_text_can_stand_in_an_attribute() {
        let all: String = ('\0'..=char::MAX).collect();
        let escaped_all = escaped(&all);
        let plain = |c: char| is_xml(c) && !['\t', '\n', '\r', '<', '>', '"'].contains(&c);
        assert_eq!(escaped_all.chars().find(|c| !plain(*c)), None);
        assert_eq!(
            escaped("a \u{fffe}\u{ffff} b\n\tc\r"),
            "a \u{fffd}\u{fffd} b&#10;&#9;c&#13;"
        );
        assert_eq!(
            escaped("<\u{1f600}> & \"ü\""),
            "&lt;\u{1f600}&gt; &amp; &quot;ü&quot;"
        );
    }
}
