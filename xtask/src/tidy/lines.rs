//! Each log line of a library, at info or above, has a row in docs/operations.md, and each row has a line.

use std::collections::BTreeMap;

use super::code::{line_of, occurrences};
use super::rules::LOG_BRIDGES;
use super::source::Source;
use super::{File, Violation};

const PAGE: &str = "docs/operations.md";
/// Rows below it begin with the text of a line and its level.
const HEADING: &str = "## Every line of the log";
const LEVELS: [&str; 3] = ["error", "warn", "info"];

/// Text and level of a log line.
type LogLine = (String, String);

/// The first place of each line.
pub(super) type Lines = BTreeMap<LogLine, (String, usize)>;

/// Adds the log lines of a source file.
pub(super) fn collect(source: &Source<'_>, lines: &mut Lines, violations: &mut Vec<Violation>) {
    let path = &source.file.path;
    if LOG_BRIDGES.iter().any(|(bridge, _)| bridge == path) {
        return;
    }
    for level in LEVELS {
        for at in occurrences(&source.code, &format!("{level}!(")) {
            let line = line_of(&source.code, at);
            if source.is_test_line(line) {
                continue;
            }
            match message(&source.file.text, &source.code, at) {
                Some(text) if !text.contains('{') => {
                    lines.entry((text, level.to_owned())).or_insert_with(|| (path.clone(), line));
                }
                _ => violations.push(source.violation(
                    line,
                    "log-lines",
                    "a log line needs a fixed text, with values in fields".to_owned(),
                )),
            }
        }
    }
}

/// The message of the log macro at a byte of `code`: its last literal that is an argument of its own. `code` is `text` with
/// comments and literals blanked.
fn message(text: &str, code: &str, at: usize) -> Option<String> {
    let skip = code.get(..at)?.chars().count();
    let mut both = text.chars().zip(code.chars()).skip(skip);
    both.find(|(_, code)| *code == '(')?;
    let (mut depth, mut before, mut found) = (1_usize, '(', None);
    while let Some((seen, code)) = both.next() {
        match code {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ' ' if seen == '"' => {
                let literal = literal(&mut both);
                if depth == 1 && matches!(before, ',' | '(') {
                    found = Some(literal);
                }
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if !code.is_whitespace() {
            before = code;
        }
    }
    found
}

/// The text up to the closing quote. A `\` at the end of a line skips the indentation of the next line.
fn literal(rest: &mut impl Iterator<Item = (char, char)>) -> String {
    let mut text = String::new();
    let mut broken = false;
    while let Some((seen, _)) = rest.next() {
        match seen {
            '"' => break,
            '\\' => match rest.next() {
                Some(('\n', _)) => broken = true,
                Some((escaped, _)) => text.push(escaped),
                None => break,
            },
            _ if broken && seen.is_whitespace() => {}
            _ => {
                broken = false;
                text.push(seen);
            }
        }
    }
    text
}

/// Compares the lines with the rows of the page, both ways.
pub(super) fn compare(lines: &Lines, tree: &[File], violations: &mut Vec<Violation>) {
    let page = tree.iter().find(|file| file.path == PAGE);
    let rows = page.map(|page| rows(&page.text)).unwrap_or_default();
    for ((text, level), (path, line)) in lines {
        if !rows.contains_key(&(text.clone(), level.clone())) {
            let what = format!("{PAGE} does not explain `{text}` at level {level}");
            violations.push(Violation { path: path.clone(), line: *line, rule: "log-lines", what });
        }
    }
    for ((text, level), line) in &rows {
        if !lines.contains_key(&(text.clone(), level.clone())) {
            let what = format!("no library logs `{text}` at level {level}");
            violations.push(Violation { path: PAGE.to_owned(), line: *line, rule: "log-lines", what });
        }
    }
    for (path, target) in LOG_BRIDGES.iter().filter(|(path, _)| tree.iter().any(|file| file.path == *path)) {
        if !page.is_some_and(|page| page.text.contains(&format!("`{target}`"))) {
            let what = format!("{PAGE} does not name the target `{target}`");
            violations.push(Violation { path: (*path).to_owned(), line: 0, rule: "log-lines", what });
        }
    }
}

/// The rows under the heading, with their line numbers.
fn rows(page: &str) -> BTreeMap<LogLine, usize> {
    let below = page.lines().enumerate().skip_while(|(_, line)| *line != HEADING).skip(1);
    below
        .take_while(|(_, line)| !line.starts_with("## "))
        .filter_map(|(index, line)| {
            let (text, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            let (level, _) = rest.split_once(" |")?;
            Some(((text.to_owned(), level.to_owned()), index + 1))
        })
        .collect()
}
