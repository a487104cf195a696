//! The grammar of assertions; errors point at the column.

use std::fmt;

use api::selector::LabelSelector;
use policies_compiler::{parse_net, parse_protocol};
use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS, TCP};

use crate::{
    assertion::{Assertion, EndTerm, Ends},
    space::{Interval, Space},
};

/// Where a text stops being an assertion, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The text.
    pub text: String,
    /// The place, counted in characters from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// Reads an assertion.
pub fn parse(text: &str) -> Result<Assertion, ParseError> {
    let mut parser = Parser::new(text)?;
    let assertion = parser.assertion()?;
    match parser.next {
        None => Ok(assertion),
        Some(_) => Err(parser.wrong("the assertion should end here")),
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "column {}: {}", self.column, self.problem)?;
        writeln!(f, "  {}", self.text.replace(['\n', '\t'], " "))?;
        write!(f, "  {:>width$}", '^', width = self.column)
    }
}

impl std::error::Error for ParseError {}

/// A word, such as `reaches`, `ns` or `443/TCP`, with what stands in parentheses right behind it.
#[derive(Debug, Clone)]
struct Token {
    column: usize,
    word: String,
    /// With its own column.
    argument: Option<(usize, String)>,
    /// What follows `/` behind the parentheses, as in `ns(a)/labels(b)`.
    qualifier: Option<Box<Token>>,
}

struct Parser<'a> {
    text: &'a str,
    tokens: std::vec::IntoIter<Token>,
    next: Option<Token>,
    end: usize,
}

const ENDS: &str = "a pod, ns(NAME), labels(SELECTOR), pod(NAMESPACE/NAME), cidr(CIDR), own-node, internet, outside or anything";

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        let mut tokens = tokens(text)?.into_iter();
        Ok(Self {
            text,
            next: tokens.next(),
            tokens,
            end: text.chars().count() + 1,
        })
    }

    fn assertion(&mut self) -> Result<Assertion, ParseError> {
        let quantifier = self.take_word(&["no", "never", "only", "isolated"]);
        if quantifier.as_deref() == Some("isolated") {
            return Ok(Assertion::Isolated { ends: self.ends()? });
        }
        let from = self.ends()?;
        if self.take_word(&["reaches", "reach"]).is_none() {
            return Err(self.wrong("expected `reaches`"));
        }
        let to = self.ends()?;
        let services = match self.take_word(&["on"]) {
            Some(_) => self.services()?,
            None if quantifier.is_none() => {
                return Err(self.wrong("expected `on` and a service, such as `on 443/TCP` or `on any`"));
            }
            None => Space::everything(),
        };
        Ok(match quantifier.as_deref() {
            Some("only") => Assertion::Only { from, to, services },
            Some(_) => Assertion::No { from, to, services },
            None => Assertion::Reaches { from, to, services },
        })
    }

    fn ends(&mut self) -> Result<Ends, ParseError> {
        let mut terms = vec![self.end_term()?];
        while self.take_word(&["or"]).is_some() {
            terms.push(self.end_term()?);
        }
        Ok(Ends(terms))
    }

    fn end_term(&mut self) -> Result<EndTerm, ParseError> {
        while self.take_word(&["any", "a", "the"]).is_some() {}
        let Some(token) = self.next.clone() else {
            return Err(self.wrong(&format!("expected {ENDS}")));
        };
        if token.argument.is_none() && self.take_word(&["pod", "pods"]).is_some() {
            return match self.take_word(&["in"]) {
                None => Ok(every_workload()),
                Some(_) => match self.next.clone() {
                    Some(token) if matches!(token.word.as_str(), "ns" | "labels") => self.scope(&token),
                    _ => Err(self.wrong("expected ns(NAME) or labels(SELECTOR)")),
                },
            };
        }
        match (token.word.as_str(), &token.argument) {
            ("ns" | "labels", _) => self.scope(&token),
            ("pod", Some((column, name))) => {
                let parts: Vec<&str> = name.split('/').collect();
                if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
                    return Err(self.at(*column, "expected NAMESPACE/NAME of a pod"));
                }
                let term = EndTerm::Workload(name.clone());
                self.finish(&token, term)
            }
            ("host", Some((_, name))) => {
                let term = EndTerm::Workload(format!("host {name}"));
                self.finish(&token, term)
            }
            ("cidr", Some((column, net))) => match parse_net(net) {
                Ok(net) => self.finish(&token, EndTerm::Net(net)),
                Err(error) => Err(self.at(*column, &error.to_string())),
            },
            ("internet", None) => self.finish(&token, EndTerm::Internet),
            ("outside", None) => self.finish(&token, EndTerm::Outside),
            ("own-node", None) => self.finish(&token, EndTerm::OwnNode),
            ("anything" | "anyone" | "anywhere", None) => self.finish(&token, EndTerm::Anything),
            ("pod" | "host" | "cidr", None) => Err(self.at(
                token.column + token.word.chars().count(),
                "expected an argument in parentheses",
            )),
            _ => Err(self.wrong(&format!("expected {ENDS}"))),
        }
    }

    /// `ns(NAME)`, `labels(SELECTOR)` or `ns(NAME)/labels(SELECTOR)`.
    fn scope(&mut self, token: &Token) -> Result<EndTerm, ParseError> {
        let Some((column, argument)) = token.argument.clone() else {
            let column = token.column + token.word.chars().count();
            return Err(self.at(column, "expected an argument in parentheses"));
        };
        if token.word == "labels" {
            let labels = self.labels(column, &argument)?;
            let term = EndTerm::Workloads {
                namespace: None,
                labels,
            };
            return self.finish(token, term);
        }
        if argument.is_empty() || argument.contains('/') {
            return Err(self.at(column, "expected the name of a namespace"));
        }
        let labels = match token.qualifier.as_deref() {
            None => LabelSelector::default(),
            Some(Token {
                word,
                argument: Some((column, text)),
                qualifier: None,
                ..
            }) if word == "labels" => self.labels(*column, text)?,
            Some(other) => return Err(self.at(other.column, "expected labels(SELECTOR)")),
        };
        self.advance();
        Ok(EndTerm::Workloads {
            namespace: Some(argument),
            labels,
        })
    }

    fn labels(&self, column: usize, text: &str) -> Result<LabelSelector, ParseError> {
        text.parse()
            .map_err(|error: api::selector::SelectorError| self.at(column, &error.to_string()))
    }

    fn services(&mut self) -> Result<Space, ParseError> {
        let mut all = Space::nothing();
        loop {
            let Some(token) = self.next.clone() else {
                return Err(self.wrong("expected a service, such as 443, 53/UDP, 8000-8100, ICMP or any"));
            };
            // A comma may stand in the word or behind it.
            let mut column = token.column;
            for part in token.word.split(',') {
                if !part.is_empty() {
                    let service = service(part).map_err(|problem| self.at(column, &problem))?;
                    all = all.union(&service);
                }
                column += part.chars().count() + 1;
            }
            if let Some((column, _)) = &token.argument {
                return Err(self.at(*column, "a service has no argument"));
            }
            self.advance();
            if !token.word.ends_with(',') {
                return Ok(all);
            }
        }
    }

    /// Goes on behind a term that takes no qualifier.
    fn finish(&mut self, token: &Token, term: EndTerm) -> Result<EndTerm, ParseError> {
        if let Some(qualifier) = &token.qualifier {
            return Err(self.at(
                qualifier.column,
                "only ns(NAME) can be followed by /labels(SELECTOR)",
            ));
        }
        self.advance();
        Ok(term)
    }

    /// Takes the next word if it is one of these, bare and in this spelling.
    fn take_word(&mut self, words: &[&str]) -> Option<String> {
        let token = self.next.as_ref()?;
        if token.argument.is_some() || !words.contains(&token.word.as_str()) {
            return None;
        }
        let word = token.word.clone();
        self.advance();
        Some(word)
    }

    fn advance(&mut self) {
        self.next = self.tokens.next();
    }

    /// An error at the next token.
    fn wrong(&self, problem: &str) -> ParseError {
        match &self.next {
            Some(token) => self.at(token.column, &format!("{problem}, not {:?}", token.word)),
            None => self.at(self.end, problem),
        }
    }

    fn at(&self, column: usize, problem: &str) -> ParseError {
        ParseError {
            text: self.text.to_owned(),
            column,
            problem: problem.to_owned(),
        }
    }
}

fn every_workload() -> EndTerm {
    EndTerm::Workloads {
        namespace: None,
        labels: LabelSelector::default(),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    let error = |column: usize, problem: &str| ParseError {
        text: text.to_owned(),
        column,
        problem: problem.to_owned(),
    };
    let mut chars = text.chars().zip(1usize..).peekable();
    let mut tokens: Vec<Token> = Vec::new();
    while let Some(&(c, column)) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        let (mut word, mut argument) = (String::new(), None);
        while let Some((c, _)) = chars.next_if(|(c, _)| !c.is_whitespace() && !"()".contains(*c)) {
            word.push(c);
        }
        if let Some((open, at)) = chars.next_if(|(c, _)| "()".contains(*c)) {
            if open == ')' {
                return Err(error(at, "a closing parenthesis that nothing opened"));
            }
            if word.is_empty() || word == "/" {
                return Err(error(
                    at,
                    "a parenthesis must stand right behind a word, as in ns(NAME)",
                ));
            }
            argument = Some((
                at + 1,
                arguments(&mut chars).ok_or_else(|| error(at, "this parenthesis is never closed"))?,
            ));
        }
        let token = Token {
            column,
            word,
            argument,
            qualifier: None,
        };
        // `ns(a)/labels(b)` is one term: what begins with a slash belongs to what stands right before it.
        match (token.word.strip_prefix('/'), tokens.last_mut()) {
            (Some(word), Some(last)) if last.argument.is_some() && last.qualifier.is_none() => {
                last.qualifier = Some(Box::new(Token {
                    column: column + 1,
                    word: word.to_owned(),
                    ..token
                }));
            }
            _ => tokens.push(token),
        }
    }
    Ok(tokens)
}

/// What stands up to the parenthesis that closes, which is taken too; nothing if none does.
fn arguments(chars: &mut impl Iterator<Item = (char, usize)>) -> Option<String> {
    let (mut depth, mut text) = (1, String::new());
    for (c, _) in chars {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(text.trim().to_owned());
        }
        text.push(c);
    }
    None
}

/// `443`, `8000-8100`, `53/UDP`, `TCP`, `8/ICMP` (a type) or `any`.
fn service(text: &str) -> Result<Space, String> {
    if text == "any" {
        return Ok(Space::everything());
    }
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (Some(ports), protocol),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => (Some(text), ""),
        None => (None, text),
    };
    let protocol = match protocol {
        "" if text.contains('/') => return Err("expected a protocol behind /".to_owned()),
        "" => TCP,
        name => parse_protocol(name).map_err(|error| error.to_string())?,
    };
    let Some(ports) = ports else {
        return Ok(Space::of_protocol(protocol));
    };
    if ICMP_PROTOCOLS.contains(&protocol) {
        let kind: u8 = ports
            .parse()
            .map_err(|_no_number| format!("{ports:?} is no type of ICMP message"))?;
        let interval = (u16::from_be_bytes([kind, 0]), u16::from_be_bytes([kind, u8::MAX]));
        return Ok(Space::of_ports(protocol, [interval]));
    }
    if !PORT_PROTOCOLS.contains(&protocol) {
        return Err(format!("protocol {protocol} has no ports"));
    }
    let interval = interval(ports)
        .ok_or_else(|| format!("{ports:?} is no port or range of ports, such as 8000-8100"))?;
    Ok(Space::of_ports(protocol, [interval]))
}

fn interval(text: &str) -> Option<Interval> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let interval: Interval = (first.parse().ok()?, last.parse().ok()?);
    (interval.0 <= interval.1).then_some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        for text in [
            "no pod in ns(pci) reaches internet",
            "no pod in ns(pci)/labels(app in (web, api),!debug) reaches cidr(10.0.0.0/8) on 443/TCP",
            "never ns(dev) or pod(shop/web) reaches ns(prod) on 1-1024, 53/UDP,ICMP",
            "only labels(app=web) reaches pod(shop/db) on 5432",
            "isolated ns(pci)",
            "any pod reaches labels(k8s-app=dns) on 53/UDP,53/TCP",
            "outside reaches ns(web) on 8/ICMP",
            "pods reach anything on any",
        ] {
            if let Err(error) = parse(text) {
                panic!("{error}");
            }
        }
    }

    #[test]
    fn errors_point_at_the_column() {
        for (text, column, part) in [
            ("", 1, "expected a pod"),
            ("no pod in ns(pci reaches internet", 13, "never closed"),
            ("no pods in pci reaches internet", 12, "expected ns(NAME)"),
            ("no ns(pci) reach", 17, "expected a pod"),
            ("no ns(pci) sees internet", 12, "expected `reaches`"),
            ("ns(a) reaches ns(b)", 20, "expected `on`"),
            (
                "no ns(a) reaches cidr(10.0.0/8)",
                23,
                "is neither a CIDR nor an address",
            ),
            ("no cidr(010.0.0.0/8) reaches ns(a)", 9, "without leading zeros"),
            (
                "no cidr(::ffff:10.0.0.1/128) reaches ns(a)",
                9,
                "is an IPv4 CIDR in IPv6 form",
            ),
            (
                "no ns(a) reaches cidr(::ffff:10.0.0.2)",
                23,
                "write the IPv4 CIDR itself",
            ),
            (
                "no ns(a) reaches cidr(::ffff:0:0/96)",
                23,
                "is an IPv4 CIDR in IPv6 form",
            ),
            ("no ns(a) reaches ns(b) on 80,x/TCP", 30, "is no port"),
            ("no ns(a) reaches ns(b) on 80/XTP", 27, "neither TCP"),
            ("no ns(a) reaches ns(b) on 80 please", 30, "should end here"),
            ("no ns(a)/labels(=) reaches ns(b)", 17, "label key"),
            ("no ns(a)/pods(x) reaches ns(b)", 10, "expected labels"),
            ("no pod(web) reaches ns(b)", 8, "NAMESPACE/NAME"),
            ("no internet/labels(a) reaches ns(b)", 4, "expected a pod"),
            ("no ns reaches ns(b)", 6, "parentheses"),
            ("isolated ) ns(a)", 10, "nothing opened"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(
                (error.column, error.problem.contains(part)),
                (column, true),
                "{text}: {error}"
            );
        }
    }
}
