//! Rules on Rust files: confined words, waits in tests, length and name.

use std::collections::BTreeSet;

use super::code::{line_of, occurrences};
use super::rules::{
    ABSENT_WORDS, CONFINED_WORDS, FILE_LINES_MAX, FORBIDDEN_STEMS, GENERATED, LONG_FILES, SLEEP_REASON,
};
use super::source::{Source, split};
use super::{File, Violation, lines};

pub(super) fn check(tree: &[File], violations: &mut Vec<Violation>) {
    let sources: Vec<Source<'_>> =
        tree.iter().filter(|file| file.path.ends_with(".rs")).map(Source::new).collect();
    let test_files: BTreeSet<String> = sources.iter().flat_map(Source::files_of_test_modules).collect();

    let mut said = lines::Lines::new();
    for source in &sources {
        name(source, violations);
        if source.file.path.contains(GENERATED) {
            continue;
        }
        length(source, violations);
        ignored_tests(source, violations);
        let all_test = is_test_path(&source.file.path)
            || test_files.iter().any(|test| {
                source.file.path == *test
                    || source.file.path.starts_with(&format!("{}/", test.trim_end_matches(".rs")))
            });
        words(source, all_test, violations);
        sleeps(source, all_test, violations);
        if !all_test && source.file.path.starts_with("crates/") && source.file.path.contains("/src/") {
            lines::collect(source, &mut said, violations);
        }
    }
    lines::compare(&said, tree, violations);
    for (path, _) in LONG_FILES {
        if !tree.is_empty() && !sources.iter().any(|source| source.file.path == *path) {
            violations.push(Violation {
                path: (*path).to_owned(),
                line: 0,
                rule: "length",
                what: "has an exception, but does not exist".to_owned(),
            });
        }
    }
}

fn is_test_path(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn name(source: &Source<'_>, violations: &mut Vec<Violation>) {
    let (directory, stem) = split(&source.file.path);
    let folder = directory.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    for word in FORBIDDEN_STEMS {
        if stem == *word || folder == *word || stem.ends_with(&format!("_{word}")) {
            violations.push(source.violation(0, "name", format!("`{word}` names no concept")));
            return;
        }
    }
}

fn length(source: &Source<'_>, violations: &mut Vec<Violation>) {
    let lines = source.file.text.lines().count();
    if lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(path, _)| *path == source.file.path) {
        violations.push(source.violation(
            0,
            "length",
            format!("{lines} lines, {FILE_LINES_MAX} allowed: find the second concept, or give a reason in LONG_FILES"),
        ));
    }
}

fn ignored_tests(source: &Source<'_>, violations: &mut Vec<Violation>) {
    for word in ["#[ignore", ", ignore)]"] {
        for (at, _) in source.code.match_indices(word) {
            let line = line_of(&source.code, at);
            violations.push(source.violation(
                line,
                "ignored",
                "a test that never runs proves nothing".to_owned(),
            ));
        }
    }
    // A skipped doctest. ```text and ```no_run are allowed.
    for (index, line) in source.file.text.lines().enumerate() {
        let line = line.trim_start();
        let fence =
            ["///", "//!"].iter().find_map(|mark| line.strip_prefix(mark)?.trim_start().strip_prefix("```"));
        if fence.is_some_and(|attributes| attributes.split(',').any(|word| word.trim() == "ignore")) {
            violations.push(source.violation(index + 1, "ignored", "a doctest that never runs".to_owned()));
        }
    }
}

fn words(source: &Source<'_>, all_test: bool, violations: &mut Vec<Violation>) {
    let path = &source.file.path;
    if all_test {
        return;
    }
    for confined in CONFINED_WORDS {
        if confined.allowed.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        report(source, confined.words, confined.rule, confined.why, violations);
    }
    for absent in ABSENT_WORDS {
        if absent.places.iter().any(|place| path.starts_with(place)) {
            report(source, absent.words, absent.rule, absent.why, violations);
        }
    }
}

fn report(
    source: &Source<'_>,
    words: &[&str],
    rule: &'static str,
    why: &str,
    violations: &mut Vec<Violation>,
) {
    // A line with several words is one violation.
    let mut lines = BTreeSet::new();
    for word in words {
        for at in occurrences(&source.code, word) {
            let line = line_of(&source.code, at);
            if !source.is_test_line(line) && lines.insert(line) {
                violations.push(source.violation(line, rule, format!("`{word}` here: {why}")));
            }
        }
    }
}

/// A test waits on a condition with a deadline. Another sleep gives its reason on its line or the line above.
fn sleeps(source: &Source<'_>, all_test: bool, violations: &mut Vec<Violation>) {
    let lines: Vec<&str> = source.file.text.lines().collect();
    let explained = |line: Option<usize>| {
        let text = line.and_then(|index| lines.get(index)).copied().unwrap_or_default();
        text.split_once(SLEEP_REASON).is_some_and(|(_, reason)| !reason.trim().is_empty())
    };
    for at in occurrences(&source.code, "sleep(") {
        let line = line_of(&source.code, at);
        let before = source.code.get(..at).unwrap_or_default().trim_end();
        let called = !before.ends_with("fn") && !before.ends_with('.');
        if called
            && (all_test || source.is_test_line(line))
            && !explained(line.checked_sub(1))
            && !explained(line.checked_sub(2))
        {
            violations.push(source.violation(
                line,
                "sleep",
                format!("wait on a condition with a deadline, or say `{SLEEP_REASON}<why>`"),
            ));
        }
    }
}
