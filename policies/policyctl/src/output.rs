//! Printing: to standard output what was asked for, to standard error what went wrong, colour only on a
//! terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    cli::{Connection, ObjectOutput, VersionArgs},
    cluster,
};

/// Whoever read standard output does so no more, as `head` when it has its lines. That is no error: the program ends
/// quietly, as every Unix tool does.
#[derive(Debug)]
pub(crate) struct Closed;

impl Closed {
    /// What a shell says of a program that SIGPIPE ended.
    pub(crate) const EXIT_CODE: u8 = 141;
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// What became of writing to standard output.
pub(crate) fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints one line to standard output.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Copies bytes to standard output.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Says what went wrong on standard error.
pub(crate) fn complain(text: &str) {
    let label = if io::stderr().is_terminal() {
        "\x1b[31merror:\x1b[0m"
    } else {
        "error:"
    };
    // Nothing can be done about an unwritable standard error.
    writeln!(io::stderr().lock(), "{label} {text}").unwrap_or_default();
}

/// Says something beside the output on standard error.
pub(crate) fn note(text: &str) {
    writeln!(io::stderr().lock(), "{text}").unwrap_or_default();
}

/// Wraps `text` in an ANSI colour when standard output is a terminal.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Good => 32,
        Colour::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// What a colour means.
#[derive(Clone, Copy)]
pub(crate) enum Colour {
    /// Passed, allowed.
    Good,
    /// Refused, denied.
    Bad,
}

/// Prints an object as JSON or YAML.
pub(crate) fn object(value: &Value, format: ObjectOutput) -> Result<()> {
    match format {
        ObjectOutput::Json => line(&serde_json::to_string_pretty(value).context("cannot write JSON")?),
        ObjectOutput::Yaml => line(
            serde_saphyr::to_string(value)
                .context("cannot write YAML")?
                .trim_end(),
        ),
    }
}

/// Prints a Kubernetes `Table`. Columns of priority above 0 are for `wide` only; the namespace is no column of
/// the server's.
pub(crate) fn table(table: &Value, wide: bool, namespaces: bool) -> Result<()> {
    let columns: Vec<(usize, &str)> = table["columnDefinitions"]
        .as_array()
        .context("the server's table has no columns")?
        .iter()
        .enumerate()
        .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or(0) == 0)
        .map(|(index, column)| (index, column["name"].as_str().unwrap_or("?")))
        .collect();
    let namespace = |text: &str| namespaces.then(|| text.to_owned()).into_iter();
    let header = namespace("NAMESPACE")
        .chain(columns.iter().map(|(_, name)| name.to_uppercase()))
        .collect();
    let rows = table["rows"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let cells = columns.iter().map(|(index, _)| match &row["cells"][*index] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            });
            let own = row["object"]["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default();
            namespace(own).chain(cells).collect()
        });
    aligned(std::iter::once(header).chain(rows).collect())
}

/// Prints rows with aligned columns.
pub(crate) fn aligned(rows: Vec<Vec<String>>) -> Result<()> {
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(cells.join("   ").trim_end())?;
    }
    Ok(())
}

/// `policyctl version`.
pub(crate) async fn version(connection: &Connection, args: &VersionArgs) -> Result<()> {
    let client = json!({ "version": env!("CARGO_PKG_VERSION") });
    let mut all = json!({ "client": client });
    if args.output.is_none() {
        // Known without a server, so it is said before one is asked.
        line(&format!("client: {}", env!("CARGO_PKG_VERSION")))?;
    }
    if !args.client {
        all["server"] = cluster::get(&cluster::connect(connection).await?, "/version").await?;
    }
    match args.output {
        Some(format) => object(&all, format),
        None => match all["server"]["gitVersion"].as_str() {
            Some(server) => line(&format!("server: {server}")),
            None => Ok(()),
        },
    }
}
