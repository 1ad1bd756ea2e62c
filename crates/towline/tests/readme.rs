//! The documents of the repository show the programs in this crate's README, which doctests run.
#![allow(clippy::expect_used)] // helpers of tests

use std::path::{Path, PathBuf};

/// The Rust blocks of a document, in order.
fn rust_blocks(text: &str) -> Vec<&str> {
    text.split("```rust\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

/// The root of the repository; `None` in a package of this crate.
fn repository() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    root.join("docs").is_dir().then(|| root.to_path_buf())
}

#[test]
fn the_documents_show_tested_programs() {
    let tested = include_str!("../README.md");
    let tested = rust_blocks(tested);
    assert_eq!(tested.len(), 2, "the counter and the retry");
    let Some(root) = repository() else { return };
    for (document, example) in [("README.md", tested[0]), ("docs/retries.md", tested[1])] {
        let text = std::fs::read_to_string(root.join(document)).expect(document);
        // A document may show a program in several blocks.
        let shown = rust_blocks(&text).join("\n\n");
        assert_eq!(shown, example, "{document} differs from crates/towline/README.md");
    }
}
