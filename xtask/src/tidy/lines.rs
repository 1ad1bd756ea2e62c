//! Each line that a library writes to the log, at info or above, is explained to operators, and each line that is
//! explained is written.

use std::collections::BTreeMap;

use super::code::{line_of, occurrences};
use super::rules::LOG_BRIDGES;
use super::sources::Source;
use super::{File, Violation};

const PAGE: &str = "docs/operations.md";
/// Rows of the tables below it begin with a line and its level.
const HEADING: &str = "## Every line of the log";
const LEVELS: [&str; 3] = ["error", "warn", "info"];

/// Text and level of a line.
type Said = (String, String);

/// Where each is said first.
pub(super) type Lines = BTreeMap<Said, (String, usize)>;

/// Adds the lines of a file that is no test.
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
                    "a line of the log has a fixed text, and its values in fields".to_owned(),
                )),
            }
        }
    }
}

/// The text of the macro that is called at a byte of `code`: its last literal that stands for itself. `code` is `text`
/// with comments and literals blanked, character by character.
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

/// What stands until the closing quote; a line that is broken with `\` goes on where the next one begins.
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

/// The lines against the page, both ways.
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
            let what = format!("nothing says `{text}` at level {level}");
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

/// The rows under the heading, with the numbers of their lines.
fn rows(page: &str) -> BTreeMap<Said, usize> {
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
