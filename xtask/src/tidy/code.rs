//! Rust text without the parts that rules must not see. Line numbers stay.

/// Replaces comments and literals by spaces.
pub(super) fn without_comments_and_literals(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, kind) = token(rest, out.chars().next_back());
        let length = length.max(first.len_utf8()).min(rest.len());
        let (taken, after) = rest.split_at(length);
        match kind {
            Kind::Code => out.push_str(taken),
            Kind::Hidden => out.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
        }
        rest = after;
    }
    out
}

enum Kind {
    Code,
    Hidden,
}

/// The length in bytes of the token at the start of `rest`, and whether it is code.
fn token(rest: &str, before: Option<char>) -> (usize, Kind) {
    let in_word = before.is_some_and(is_word);
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Kind::Hidden);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), Kind::Hidden);
    }
    if rest.starts_with('"') {
        return (string(rest), Kind::Hidden);
    }
    if !in_word && let Some(length) = raw_string(rest) {
        return (length, Kind::Hidden);
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    (0, Kind::Code)
}

/// Block comments nest in Rust.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, and with `b` or `c` before.
fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|tail| tail.trim_start_matches('#').starts_with('"'))
    })?;
    let tail = rest.strip_prefix(prefix)?;
    let hashes = tail.len() - tail.trim_start_matches('#').len();
    let opened = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(rest.get(opened..)?.find(&close).map_or(rest.len(), |at| opened + at + close.len()))
}

/// A character literal is hidden; a lifetime is code.
fn character(rest: &str) -> (usize, Kind) {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            let end = chars.find(|(_, c)| *c == '\'').map_or(rest.len(), |(at, _)| at + 1);
            (end, Kind::Hidden)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => (at + 1, Kind::Hidden),
            _ => (1, Kind::Code),
        },
        None => (1, Kind::Code),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Which lines (1-based, index 0 unused) stand under `#[cfg(test)]`, and the modules declared there without a body. `code`
/// comes from `without_comments_and_literals`.
pub(super) fn test_regions(code: &str) -> (Vec<bool>, Vec<String>) {
    let mut lines = vec![false; code.lines().count() + 2];
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(found) = code.get(from..).and_then(|tail| tail.find("#[cfg(test)]")) {
        let start = from + found;
        let end = item_end(code, start);
        let item = code.get(start..end).unwrap_or_default();
        if let Some(name) = declared_module(item) {
            modules.push(name);
        }
        let first = line_of(code, start);
        for line in first..=line_of(code, end.saturating_sub(1).max(start)) {
            if let Some(flag) = lines.get_mut(line) {
                *flag = true;
            }
        }
        from = end.max(start + 1);
    }
    (lines, modules)
}

/// The end of the item at `start`: its `;`, or the closing brace of its body.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (at, c) in code.get(start..).unwrap_or_default().char_indices() {
        match c {
            '[' | '(' => brackets += 1,
            ']' | ')' => brackets = brackets.saturating_sub(1),
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return start + at + 1;
                }
            }
            ';' if depth == 0 && brackets == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

fn declared_module(item: &str) -> Option<String> {
    let before = item.strip_suffix(';')?;
    let mut words = before.split_whitespace().rev();
    let name = words.next()?;
    (words.next()? == "mod").then(|| name.to_owned())
}

/// The 1-based line of a byte position.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Byte positions of `word` in `code` as a whole word. After `::` a word such as `raft::` names a module of ours, not the
/// crate, and does not count.
pub(super) fn occurrences(code: &str, word: &str) -> Vec<usize> {
    code.match_indices(word)
        .filter(|(at, _)| {
            let before = code.get(..*at).unwrap_or_default();
            let after = code.get(at + word.len()..).and_then(|tail| tail.chars().next());
            let longer_before = before.chars().next_back().is_some_and(is_word);
            let longer_after = word.chars().next_back().is_some_and(is_word) && after.is_some_and(is_word);
            let below_ours =
                word.ends_with("::") && before.strip_suffix("::").is_some_and(|path| path.ends_with(is_word));
            !longer_before && !longer_after && !below_ours
        })
        .map(|(at, _)| at)
        .collect()
}
