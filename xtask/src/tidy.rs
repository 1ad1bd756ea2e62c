//! Rules that the compiler does not know: who may depend on whom, where a foreign type may appear, what a test may do,
//! which words prose does without.
//!
//! `check` is a function of a file tree, so that its tests plant each violation in a directory of their own and see the
//! rule fail. The tables that say what is allowed stand in `rules`; a change to the architecture is a change there.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

mod code;
mod lines;
mod manifests;
mod prose;
mod rules;
mod sources;
#[cfg(test)]
mod tests;
mod types;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    /// Relative to the root of the tree, with `/`.
    path: String,
    /// 1-based; 0 when the whole file is meant.
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: [{}] {}", self.path, self.rule, self.what),
            line => write!(f, "{}:{line}: [{}] {}", self.path, self.rule, self.what),
        }
    }
}

#[derive(clap::Args, Default)]
pub(crate) struct TidyOptions {
    /// Remove the entries of prose_todo.txt whose file is clean or gone
    #[arg(long)]
    shrink: bool,
}

pub(crate) fn run(root: &Path, options: &TidyOptions) -> Result<()> {
    if options.shrink {
        let (_, violations) = check(root)?;
        println!("tidy: {} entries removed", prose::shrink(root, &violations)?);
    }
    let (files, violations) = check(root)?;
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("tidy: {files} files, nothing to say");
            Ok(())
        }
        count => Err(format!("tidy: {count} violations").into()),
    }
}

/// Every violation in the tree, ordered by place, with the number of files looked at.
fn check(root: &Path) -> Result<(usize, Vec<Violation>)> {
    let tree = read_tree(root)?;
    let mut violations = Vec::new();
    manifests::check(&tree, &mut violations);
    sources::check(&tree, &mut violations);
    prose::check(&tree, &mut violations);
    types::check(&tree, &mut violations);
    violations.sort();
    Ok((tree.len(), violations))
}

/// A text file of the repository.
struct File {
    path: String,
    text: String,
}

/// Every text file that the rules read: manifests, configuration, Rust. Build output and hidden folders stay out,
/// except the two that configure builds.
fn read_tree(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let hidden = name.starts_with('.') && !matches!(name.as_str(), ".cargo" | ".ci");
                if !hidden && name != "target" {
                    waiting.push(entry.path());
                }
            } else if kind.is_file() {
                files.push(read_file(root, entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// A file that is no UTF-8 has a name to check, but no text.
fn read_file(root: &Path, path: PathBuf) -> Result<File> {
    let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
    let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(File { path: relative, text: String::from_utf8(bytes).unwrap_or_default() })
}
