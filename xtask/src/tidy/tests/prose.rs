//! The rule on words to avoid, and its excuses.

use super::super::prose::{WORDS, phrases};
use super::planted;

/// In two parts, because the rule reads this file too.
const WORD: &str = concat!("no", "body");
const PHRASE: &str = concat!("who ", "waits");
const PAGE: &str = "docs/page.md";
const CODE: &str = "crates/towline/src/lib.rs";

/// The lines on which a file with this text breaks the rule.
fn lines(path: &str, text: &str) -> Vec<usize> {
    let found = planted(&[(path, text)]);
    assert!(found.iter().all(|one| one.rule == "prose" && one.path == path), "{found:#?}");
    found.iter().map(|one| one.line).collect()
}

#[test]
fn every_line_of_the_word_list_has_a_word_and_a_remedy() {
    let listed = WORDS.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
    assert!(listed > 10, "the list was not read");
    assert_eq!(phrases().len(), listed);
}

#[test]
fn each_listed_word_is_found_in_markdown_and_in_rust() {
    for word in phrases().iter().map(|phrase| phrase.text) {
        assert_eq!(lines(PAGE, &format!("# A page\n\nHere {word} stands.\n")), [3], "{word}");
        assert_eq!(lines(CODE, &format!("//! A crate.\n// Here {word} stands.\n")), [2], "{word}");
    }
}

#[test]
fn a_word_is_found_in_a_name_in_capitals_and_in_a_string() {
    let capital = WORD.replacen('n', "N", 1);
    assert_eq!(lines(CODE, &format!("//! A crate.\nfn {WORD}_calls() {{}}\n")), [2]);
    assert_eq!(lines(CODE, &format!("//! {capital} calls.\n")), [1]);
    assert_eq!(lines(CODE, &format!("//! A crate.\nconst TEXT: &str = \"{WORD}'s\";\n")), [2]);
    assert_eq!(lines(CODE, &format!("//! A crate.\nfn {}() {{}}\n", PHRASE.replace(' ', "_"))), [2]);
}

#[test]
fn a_phrase_is_found_across_the_lines_of_a_comment_a_page_and_a_string() {
    let (first, second) = PHRASE.split_once(' ').unwrap();
    assert_eq!(
        lines(CODE, &format!("//! A crate.\n/// One {first}\n/// {second} here.\nfn f() {{}}\n")),
        [2]
    );
    assert_eq!(lines(PAGE, &format!("One {first}\n{second} here.\n")), [1]);
    assert_eq!(lines(CODE, &format!("//! A crate.\nconst T: &str = \"{first} \\\n    {second}\";\n")), [2]);
}

#[test]
fn a_longer_word_and_a_phrase_across_sentences_pass() {
    let (first, second) = PHRASE.split_once(' ').unwrap();
    assert_eq!(lines(PAGE, &format!("{WORD}ish, a{WORD}\n")), [] as [usize; 0]);
    assert_eq!(lines(PAGE, &format!("{first}. {second}; {first}\n\n{second}\n")), [] as [usize; 0]);
}

#[test]
fn an_excuse_needs_a_reason_and_the_word() {
    let excused = |excuse: &str| lines(CODE, &format!("//! {WORD} prose: allow({excuse}\n"));
    assert_eq!(excused(&format!("{WORD}) the title of a book")), [] as [usize; 0]);
    assert_eq!(excused(&format!("{WORD})")), [1], "no reason");
    assert_eq!(excused(&format!("{WORD}) -->")), [1], "no reason");
    assert_eq!(excused(&format!("{PHRASE}) the title of a book")), [1, 1], "another word");
    assert_eq!(lines(CODE, &format!("//! {WORD}\n// prose: allow({WORD}) one line above\n")), [1, 2]);
}

#[test]
fn generated_code_is_not_read() {
    let code = format!("//! {WORD}\n");
    assert_eq!(planted(&[("crates/towline/src/gen/made.rs", code.as_str())]), []);
}
