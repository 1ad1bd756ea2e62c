//! Checks rules that the compiler does not know: layers, confined types, names, tests and prose.
//!
//! The tables in `rules` say what is allowed. `check` takes a file tree, so tests plant each violation in a tree of their
//! own.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

mod code;
mod lines;
mod manifests;
mod prose;
mod rules;
mod source;
mod sources;
#[cfg(test)]
mod tests;
mod types;

/// One broken rule at one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    /// Relative to the root of the tree, with `/`.
    path: String,
    /// 1-based; 0 for the whole file.
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

pub(crate) fn run(root: &Path) -> Result<()> {
    let (files, violations) = check(root)?;
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("tidy: {files} files, no violation");
            Ok(())
        }
        count => Err(format!("tidy: {count} violations").into()),
    }
}

/// Returns the number of files, and all violations by file and line.
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

/// Reads all files, except build output and hidden directories other than `.cargo` and `.ci`.
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

/// A file that is not UTF-8 counts as empty.
fn read_file(root: &Path, path: PathBuf) -> Result<File> {
    let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
    let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(File { path: relative, text: String::from_utf8(bytes).unwrap_or_default() })
}
