//! Keeps the words of `prose_words.txt` out of Markdown and Rust files.
//!
//! A line that needs such a word gives the reason: `prose: allow(WORD) REASON`.

use std::collections::BTreeMap;

use super::rules::GENERATED;
use super::{File, Violation};

const RULE: &str = "prose";
pub(super) const WORDS: &str = include_str!("prose_words.txt");
/// Before the word, `)` and the reason.
const ALLOW: &str = "prose: allow(";

/// A word or phrase to avoid.
pub(super) struct Phrase {
    pub(super) text: &'static str,
    remedy: &'static str,
}

/// A word of a file, in lower case.
struct Word {
    text: String,
    line: usize,
    /// Whether the word continues the sentence of the word before, perhaps from the line above.
    joined: bool,
}

pub(super) fn check(tree: &[File], violations: &mut Vec<Violation>) {
    let phrases = phrases();
    let prose = tree.iter().filter(|file| is_prose(&file.path));
    violations.extend(prose.flat_map(|file| violations_of(file, &phrases)));
}

fn at(path: &str, line: usize, what: String) -> Violation {
    Violation { path: path.to_owned(), line, rule: RULE, what }
}

fn is_prose(path: &str) -> bool {
    (path.ends_with(".md") || path.ends_with(".rs")) && !path.contains(GENERATED)
}

/// The lines of a list, numbered from 1, without empty lines and comments.
fn entries(list: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = list.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

pub(super) fn phrases() -> Vec<Phrase> {
    let pairs = entries(WORDS).filter_map(|(_, line)| line.split_once(" = "));
    pairs.map(|(text, remedy)| Phrase { text, remedy }).collect()
}

fn violations_of(file: &File, phrases: &[Phrase]) -> Vec<Violation> {
    let words = words(&file.text);
    let mut excuses = excuses(&file.text, phrases);
    let mut found = Vec::new();
    for Phrase { text, remedy } in phrases {
        for line in lines_with(&words, text) {
            match excuses.get_mut(&(line, *text)) {
                Some(used) => *used = true,
                None => {
                    let what = format!("`{text}`: {remedy}; or excuse the line: `{ALLOW}{text}) reason`");
                    found.push(at(&file.path, line, what));
                }
            }
        }
    }
    let unused = excuses.into_iter().filter(|(_, used)| !used);
    found.extend(
        unused.map(|((line, text), _)| at(&file.path, line, format!("`{text}` is excused and absent"))),
    );
    found
}

/// The lines on which a phrase begins, each once.
fn lines_with(words: &[Word], phrase: &str) -> Vec<usize> {
    let parts: Vec<&str> = phrase.split(' ').collect();
    let is_phrase = |window: &&[Word]| {
        let same = window.iter().zip(&parts).all(|(word, part)| word.text == *part);
        same && window.iter().skip(1).all(|word| word.joined)
    };
    let mut lines: Vec<usize> =
        words.windows(parts.len()).filter(is_phrase).filter_map(|w| w.first()).map(|w| w.line).collect();
    lines.dedup();
    lines
}

/// The words of a text. An underscore separates words: a test name is a sentence.
fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut joined = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.split_once(ALLOW).map_or(line, |(before, _)| before);
        // Comment marks and a continued string do not end a sentence. An empty line does.
        let line = line.trim().trim_start_matches('/').trim_start_matches('!').trim_end_matches('\\');
        joined &= !line.trim().is_empty();
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_alphanumeric() {
                word.extend(c.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                words.push(Word { text: std::mem::take(&mut word), line: index + 1, joined });
                joined = true;
            }
            joined &= c.is_whitespace() || c == '_';
        }
    }
    words
}

/// The excuses with a reason, by line and phrase; none of them is used yet.
fn excuses<'a>(text: &str, phrases: &'a [Phrase]) -> BTreeMap<(usize, &'a str), bool> {
    let excuse = |line: &str| {
        let (word, reason) = line.split_once(ALLOW)?.1.split_once(')')?;
        let phrase = phrases.iter().find(|phrase| phrase.text == word)?;
        let reason = reason.trim().trim_end_matches("-->").trim();
        (!reason.is_empty()).then_some(phrase.text)
    };
    let lines = text.lines().enumerate();
    lines.filter_map(|(index, line)| Some(((index + 1, excuse(line)?), false))).collect()
}
