//! Calico's selector expressions: `app == "web" && !has(old) || tier in {"a", "b"}`.
//!
//! The grammar, from loosest to tightest: `||`, `&&`, any number of `!`, then one of `has(label)`, `all()`,
//! `global()`, `label OPERATOR operand` or a parenthesis. Operators are `==`, `!=`, `contains`, `starts with`,
//! `ends with` (each with a string), `in` and `not in` (with a set). Strings are quoted by `"` or `'` and have
//! no escapes. White space is blanks and tabs. Words behind a label are operators, so a label may be called `in`
//! or `has`. An expression without any text selects everything.
//!
//! Source: `libcalico-go/lib/selector` of Calico. Stricter here: nesting is bounded.

use std::{collections::BTreeSet, fmt};

/// Longest expression.
pub const MAX_LENGTH: usize = 1024;
/// Longest name of a label.
pub const MAX_LABEL_LENGTH: usize = 512;
/// Parentheses within parentheses.
const MAX_DEPTH: usize = 64;

/// A parsed expression. Its text form is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Expression {
    /// Everything.
    All,
    /// What belongs to no namespace.
    Global,
    /// The label is there.
    Has(String),
    /// The label is there and its value stands in this relation to the operand.
    Value(String, Relation, String),
    /// The label is there with one of these values.
    In(String, BTreeSet<String>),
    /// It does not hold.
    Not(Box<Expression>),
    /// All hold.
    And(Vec<Expression>),
    /// One holds.
    Or(Vec<Expression>),
}

/// Relation of a label's value to a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// They are equal.
    Equals,
    /// The string is somewhere in the value.
    Contains,
    /// The value begins with the string.
    StartsWith,
    /// The value ends with the string.
    EndsWith,
}

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Longer than [`MAX_LENGTH`].
    #[error("a selector has at most {MAX_LENGTH} characters, this one has {0}")]
    TooLong(usize),
    /// The name of a label is longer than [`MAX_LABEL_LENGTH`].
    #[error("the name of a label has at most {MAX_LABEL_LENGTH} characters, at character {0}")]
    LabelTooLong(usize),
    /// Too many parentheses.
    #[error("parentheses are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// A string without its closing quote.
    #[error("the string that begins at character {0} has no closing quote")]
    Unterminated(usize),
    /// Something else stands where the grammar wants this.
    #[error("expected {wanted} at character {at}, found {found}")]
    Unexpected {
        /// What may stand there.
        wanted: &'static str,
        /// Position, from 1.
        at: usize,
        /// What stands there.
        found: String,
    },
}

impl Expression {
    /// Parses a text. A blank one is [`Expression::All`].
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        if text.chars().count() > MAX_LENGTH {
            return Err(ExpressionError::TooLong(text.chars().count()));
        }
        let mut parser = Parser { text, at: 0 };
        parser.skip_blanks();
        if parser.rest().is_empty() {
            return Ok(Self::All);
        }
        let expression = parser.or(0)?;
        match parser.rest() {
            "" => Ok(expression),
            _ => Err(parser.unexpected("&&, || or the end")),
        }
    }

    /// Whether it holds for the labels that `label` looks up. A label that is missing satisfies `!=` and
    /// `not in`, and no other operator.
    pub fn matches<'a>(&self, label: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::All => true,
            Self::Global => label(crate::policy::Workload::NAMESPACE_LABEL).is_none(),
            Self::Has(key) => label(key).is_some(),
            Self::Value(key, relation, operand) => {
                label(key).is_some_and(|value| relation.holds(value, operand))
            }
            Self::In(key, values) => label(key).is_some_and(|value| values.contains(value)),
            Self::Not(inner) => !inner.matches(label),
            Self::And(parts) => parts.iter().all(|part| part.matches(label)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(label)),
        }
    }

    /// The same expression about labels whose names have `prefix` before them, with `all` in place of `all()`
    /// and its opposite in place of `global()`.
    #[must_use]
    pub fn prefixed(self, prefix: &str, all: &Self) -> Self {
        let name = |key: String| format!("{prefix}{key}");
        let each = |parts: Vec<Self>| parts.into_iter().map(|part| part.prefixed(prefix, all)).collect();
        match self {
            Self::All => all.clone(),
            Self::Global => Self::Not(Box::new(all.clone())),
            Self::Has(key) => Self::Has(name(key)),
            Self::Value(key, relation, operand) => Self::Value(name(key), relation, operand),
            Self::In(key, values) => Self::In(name(key), values),
            Self::Not(inner) => Self::Not(Box::new(inner.prefixed(prefix, all))),
            Self::And(parts) => Self::And(each(parts)),
            Self::Or(parts) => Self::Or(each(parts)),
        }
    }

    /// Whether `global()` stands anywhere in it.
    pub fn mentions_global(&self) -> bool {
        match self {
            Self::Global => true,
            Self::Not(inner) => inner.mentions_global(),
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::mentions_global),
            Self::All | Self::Has(_) | Self::Value(..) | Self::In(..) => false,
        }
    }

    /// Whether a label whose name begins with `prefix` is asked for.
    pub fn asks_for(&self, prefix: &str) -> bool {
        match self {
            Self::Has(key) | Self::Value(key, ..) | Self::In(key, _) => key.starts_with(prefix),
            Self::Not(inner) => inner.asks_for(prefix),
            Self::And(parts) | Self::Or(parts) => parts.iter().any(|part| part.asks_for(prefix)),
            Self::All | Self::Global => false,
        }
    }
}

impl Relation {
    fn holds(self, value: &str, operand: &str) -> bool {
        match self {
            Self::Equals => value == operand,
            Self::Contains => value.contains(operand),
            Self::StartsWith => value.starts_with(operand),
            Self::EndsWith => value.ends_with(operand),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Equals => "==",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], by: &str| {
            f.write_str("(")?;
            for (i, part) in parts.iter().enumerate() {
                let by = if i == 0 { "" } else { by };
                write!(f, "{by}{part}")?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(key) => write!(f, "has({key})"),
            Self::Value(key, relation, operand) => {
                write!(f, "{key} {} {}", relation.word(), Quoted(operand))
            }
            Self::In(key, values) => {
                write!(f, "{key} in {{")?;
                for (i, value) in values.iter().enumerate() {
                    let by = if i == 0 { "" } else { ", " };
                    write!(f, "{by}{}", Quoted(value))?;
                }
                f.write_str("}")
            }
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) => joined(f, parts, " && "),
            Self::Or(parts) => joined(f, parts, " || "),
        }
    }
}

/// No string holds both kinds of quote: the grammar cannot write one.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Bytes read; always at the border of a character.
    at: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self, depth: usize) -> Result<Expression, ExpressionError> {
        let mut parts = vec![self.and(depth)?];
        while self.take("||") {
            parts.push(self.and(depth)?);
        }
        Ok(match parts.pop() {
            Some(only) if parts.is_empty() => only,
            last => Expression::Or(parts.into_iter().chain(last).collect()),
        })
    }

    fn and(&mut self, depth: usize) -> Result<Expression, ExpressionError> {
        let mut parts = vec![self.operation(depth)?];
        while self.take("&&") {
            parts.push(self.operation(depth)?);
        }
        Ok(match parts.pop() {
            Some(only) if parts.is_empty() => only,
            last => Expression::And(parts.into_iter().chain(last).collect()),
        })
    }

    fn operation(&mut self, depth: usize) -> Result<Expression, ExpressionError> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let operation = self.plain_operation(depth)?;
        Ok(match (negated, operation) {
            // Twice negated, as in `!a != "b"`: written so, it would not be read so again.
            (true, Expression::Not(inner)) => *inner,
            (true, operation) => Expression::Not(Box::new(operation)),
            (false, operation) => operation,
        })
    }

    fn plain_operation(&mut self, depth: usize) -> Result<Expression, ExpressionError> {
        if self.take("(") {
            if depth == MAX_DEPTH {
                return Err(ExpressionError::TooDeep);
            }
            let inner = self.or(depth + 1)?;
            self.demand(")")?;
            return Ok(inner);
        }
        for (word, expression) in [("all(", Expression::All), ("global(", Expression::Global)] {
            if self.take(word) {
                self.demand(")")?;
                return Ok(expression);
            }
        }
        if self.take("has(") {
            let key = self.label()?;
            self.demand(")")?;
            return Ok(Expression::Has(key));
        }
        let key = self.label()?;
        self.relation(key)
    }

    /// What stands behind a label. Words need no blank behind them, as in Calico.
    fn relation(&mut self, key: String) -> Result<Expression, ExpressionError> {
        let value = |key, relation, operand| Expression::Value(key, relation, operand);
        if self.take("==") {
            return Ok(value(key, Relation::Equals, self.string()?));
        }
        if self.take("!=") {
            let equal = value(key, Relation::Equals, self.string()?);
            return Ok(Expression::Not(Box::new(equal)));
        }
        if self.take("contains") {
            return Ok(value(key, Relation::Contains, self.string()?));
        }
        for (word, relation) in [("starts", Relation::StartsWith), ("ends", Relation::EndsWith)] {
            if self.take(word) {
                self.demand("with")?;
                return Ok(value(key, relation, self.string()?));
            }
        }
        if self.take("not") {
            self.demand("in")?;
            let within = Expression::In(key, self.set()?);
            return Ok(Expression::Not(Box::new(within)));
        }
        if self.take("in") {
            return Ok(Expression::In(key, self.set()?));
        }
        Err(self.unexpected("an operator (==, !=, in, not in, contains, starts with, ends with)"))
    }

    /// May be empty, and may end with a comma.
    fn set(&mut self) -> Result<BTreeSet<String>, ExpressionError> {
        self.demand("{")?;
        let mut values = BTreeSet::new();
        while !self.take("}") {
            values.insert(self.string()?);
            if !self.take(",") {
                self.demand("}")?;
                break;
            }
        }
        Ok(values)
    }

    fn string(&mut self) -> Result<String, ExpressionError> {
        let begin = self.position();
        for quote in ["\"", "'"] {
            if self.rest().starts_with(quote) {
                let text = self.rest().get(1..).unwrap_or_default();
                let Some((value, _)) = text.split_once(quote) else {
                    return Err(ExpressionError::Unterminated(begin));
                };
                self.at += value.len() + 2;
                self.skip_blanks();
                return Ok(value.to_owned());
            }
        }
        Err(self.unexpected("a string in quotes"))
    }

    fn label(&mut self) -> Result<String, ExpressionError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
        let rest = self.rest();
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        if name.is_empty() {
            return Err(self.unexpected("a label, has(), all() or a parenthesis"));
        }
        if name.len() > MAX_LABEL_LENGTH {
            return Err(ExpressionError::LabelTooLong(self.position()));
        }
        self.at += end;
        self.skip_blanks();
        Ok(name.to_owned())
    }

    fn demand(&mut self, token: &'static str) -> Result<(), ExpressionError> {
        match self.take(token) {
            true => Ok(()),
            false => Err(self.unexpected(token)),
        }
    }

    /// Reads `token` and the blanks behind it, if it stands here. `!` does not stand where `!=` does.
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest();
        let stands = rest.starts_with(token) && !(token == "!" && rest.starts_with("!="));
        if stands {
            self.at += token.len();
            self.skip_blanks();
        }
        stands
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn position(&self) -> usize {
        self.text.get(..self.at).map_or(0, |read| read.chars().count()) + 1
    }

    fn unexpected(&self, wanted: &'static str) -> ExpressionError {
        let rest = self.rest();
        let found = match rest.chars().take(12).collect::<String>() {
            none if none.is_empty() => "the end".to_owned(),
            some => format!("{some:?}"),
        };
        ExpressionError::Unexpected {
            wanted,
            at: self.position(),
            found,
        }
    }
}
