//! A source file as the rules read it.

use super::code::{test_regions, without_comments_and_literals};
use super::{File, Violation};

pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    pub(super) code: String,
    /// By 1-based line.
    under_cfg_test: Vec<bool>,
    test_modules: Vec<String>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        let code = without_comments_and_literals(&file.text);
        let (under_cfg_test, test_modules) = test_regions(&code);
        Self { file, code, under_cfg_test, test_modules }
    }

    pub(super) fn is_test_line(&self, line: usize) -> bool {
        self.under_cfg_test.get(line).copied().unwrap_or(false)
    }

    /// `#[cfg(test)] mod x;` in `a/b.rs` means `a/b/x.rs`; in `a/mod.rs`, `a/lib.rs` or `a/main.rs`, `a/x.rs`.
    pub(super) fn files_of_test_modules(&self) -> Vec<String> {
        let (directory, stem) = split(&self.file.path);
        let base = match stem {
            "mod" | "lib" | "main" => directory.to_owned(),
            stem => format!("{directory}{stem}/"),
        };
        self.test_modules
            .iter()
            .flat_map(|module| [format!("{base}{module}.rs"), format!("{base}{module}/mod.rs")])
            .collect()
    }

    pub(super) fn violation(&self, line: usize, rule: &'static str, what: String) -> Violation {
        Violation { path: self.file.path.clone(), line, rule, what }
    }
}

/// The directory with its `/`, and the name without `.rs`.
pub(super) fn split(path: &str) -> (&str, &str) {
    let at = path.rfind('/').map_or(0, |at| at + 1);
    let (directory, name) = path.split_at(at);
    (directory, name.trim_end_matches(".rs"))
}
