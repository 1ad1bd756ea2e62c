//! Each rule finds a planted violation, and this repository passes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::code::{test_regions, without_comments_and_literals};
use super::{Violation, check};

mod prose;

const METRICS: &str = "crates/towline-metrics/Cargo.toml";
const NODE: &str = "crates/towline-engine/src/node.rs";
const FRAMES: &str = "crates/towline-wire/tests/frames.rs";
const FRAME: &str = "crates/towline-wire/src/frame.rs";
const WIRE: &str = "crates/towline-wire/Cargo.toml";

/// A tree that breaks no rule: a few libraries, an example, xtask.
fn clean_tree() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(
        root,
        "Cargo.toml",
        "[workspace]\nmembers = []\n[workspace.dependencies]\n\
         towline-engine = { path = \"crates/towline-engine\", default-features = false }\n\
         [profile.release]\ndebug = 1\n",
    );
    for (name, dependencies) in [
        ("towline-metrics", ""),
        ("towline-engine", "towline-metrics.workspace = true\nraft.workspace = true"),
        ("towline-wire", "towline-engine.workspace = true\nprost.workspace = true"),
        ("towline", "towline-engine = { workspace = true, features = [\"driver\"] }"),
    ] {
        write(root, &format!("crates/{name}/Cargo.toml"), &library(name, dependencies));
        write(root, &format!("crates/{name}/README.md"), "Read me.\n");
        write(root, &format!("crates/{name}/src/lib.rs"), "//! A crate.\n");
    }
    for (path, name, dependencies) in [
        ("examples/hello", "towline-hello", "towline.workspace = true"),
        ("xtask", "xtask", "clap.workspace = true"),
    ] {
        write(root, &format!("{path}/Cargo.toml"), &unpublished(name, dependencies));
        write(root, &format!("{path}/src/main.rs"), "fn main() {}\n");
    }
    directory
}

const INHERITED: &str = "rust-version = \"1.85\"\nversion.workspace = true\nedition.workspace = true\n\
    license.workspace = true\nrepository.workspace = true\nauthors.workspace = true\n";

fn library(name: &str, dependencies: &str) -> String {
    format!(
        "[package]\nname = \"{name}\"\ndescription = \"It does one thing\"\nkeywords = [\"raft\"]\n\
         categories = [\"database\"]\nreadme = \"README.md\"\n{INHERITED}\
         [package.metadata.docs.rs]\nall-features = true\n[lints]\nworkspace = true\n[dependencies]\n{dependencies}\n"
    )
}

fn unpublished(name: &str, dependencies: &str) -> String {
    format!(
        "[package]\nname = \"{name}\"\ndescription = \"It does one thing\"\npublish = false\n{INHERITED}\
         [lints]\nworkspace = true\n[dependencies]\n{dependencies}\n"
    )
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The violations in a clean tree with these files written over it.
fn planted(files: &[(&str, &str)]) -> Vec<Violation> {
    let directory = clean_tree();
    for (path, text) in files {
        write(directory.path(), path, text);
    }
    check(directory.path()).unwrap().1
}

/// Asserts that `check` finds exactly one violation, of this rule and in this file.
#[track_caller]
fn assert_one(files: &[(&str, &str)], rule: &str, path: &str) {
    let found = planted(files);
    assert!(
        matches!(found.as_slice(), [one] if one.rule == rule && one.path == path),
        "expected one [{rule}] in {path}, found {found:#?}"
    );
}

/// Asserts that a file with this text breaks this rule, and only this rule.
#[track_caller]
fn assert_found(path: &str, text: &str, rule: &str) {
    assert_one(&[(path, text)], rule, path);
}

#[test]
fn this_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (files, violations) = check(root).unwrap();
    assert!(files > 20, "the tree was not read");
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "\n{}", lines.join("\n"));
}

#[test]
fn a_clean_tree_has_no_violation() {
    assert_eq!(planted(&[]), []);
}

#[test]
fn an_upward_dependency_is_found_in_every_section() {
    for section in
        ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"]
    {
        let manifest = library("towline-metrics", &format!("[{section}]\ntowline-engine.workspace = true"));
        let manifest =
            if section == "dependencies" { manifest.replacen("[dependencies]\n", "", 1) } else { manifest };
        assert_found(METRICS, &manifest, "layering");
    }
}

#[test]
fn a_renamed_dependency_is_found() {
    let manifest = library("towline-metrics", "core = { package = \"towline-engine\", workspace = true }");
    assert_found(METRICS, &manifest, "layering");
}

#[test]
fn an_example_that_reaches_under_the_facade_is_found() {
    let manifest = unpublished("towline-hello", "towline-engine.workspace = true");
    assert_found("examples/hello/Cargo.toml", &manifest, "layering");
}

#[test]
fn xtask_that_depends_on_a_crate_of_ours_is_found() {
    let manifest = unpublished("xtask", "towline.workspace = true");
    assert_found("xtask/Cargo.toml", &manifest, "layering");
}

#[test]
fn a_crate_without_a_layer_is_found() {
    let files = [
        ("crates/towline-new/Cargo.toml", library("towline-new", "")),
        ("crates/towline-new/README.md", String::new()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    assert_one(&files, "layering", "crates/towline-new/Cargo.toml");
}

#[test]
fn a_crate_that_ci_does_not_name_is_found() {
    // An example that stands among the libraries.
    let files = [
        ("crates/towline-custom-transport/Cargo.toml", library("towline-custom-transport", "")),
        ("crates/towline-custom-transport/README.md", String::new()),
    ];
    let files = files.each_ref().map(|(path, text)| (*path, text.as_str()));
    assert_one(&files, "ci-lists", "crates/towline-custom-transport/Cargo.toml");
    let example = unpublished("towline-new", "towline.workspace = true");
    assert_found("examples/new/Cargo.toml", &example, "ci-lists");
}

#[test]
fn a_wire_crate_that_switches_the_driver_on_is_found() {
    for entry in ["features = [\"driver\"]", "default-features = true"] {
        let manifest = library("towline-wire", &format!("towline-engine = {{ workspace = true, {entry} }}"));
        assert_found(WIRE, &manifest, "layering");
    }
}

#[test]
fn a_workspace_table_that_switches_the_driver_on_is_found() {
    let manifest = "[workspace.dependencies]\ntowline-engine = { path = \"crates/towline-engine\" }\n";
    assert_found("Cargo.toml", manifest, "layering");
}

#[test]
fn a_foreign_library_outside_its_crate_is_found() {
    for dependency in ["raft", "raft-engine", "tonic", "quinn"] {
        let manifest = library("towline-wire", &format!("{dependency}.workspace = true"));
        assert_found(WIRE, &manifest, "layering");
        let manifest = library("towline-wire", &format!("[dev-dependencies]\n{dependency}.workspace = true"));
        assert_eq!(planted(&[(WIRE, &manifest)]), [], "tests may");
    }
}

#[test]
fn a_version_outside_the_workspace_table_is_found() {
    for entry in ["bytes = \"1\"", "bytes = { version = \"1\" }", "bytes = { path = \"../bytes\" }"] {
        let manifest = library("towline-wire", entry);
        assert_found(WIRE, &manifest, "versions");
    }
    let manifest = library("towline-wire", "")
        .replace("version.workspace = true\nedition", "version = \"9.9.9\"\nedition");
    assert_found(WIRE, &manifest, "versions");
}

#[test]
fn missing_lints_are_found() {
    let manifest = library("towline-wire", "").replace("[lints]\nworkspace = true\n", "");
    assert_found(WIRE, &manifest, "lints");
}

#[test]
fn each_missing_piece_of_metadata_is_found() {
    for line in [
        "description = \"It does one thing\"\n",
        "keywords = [\"raft\"]\n",
        "categories = [\"database\"]\n",
        "readme = \"README.md\"\n",
        "rust-version = \"1.85\"\n",
        "[package.metadata.docs.rs]\nall-features = true\n",
    ] {
        let manifest = library("towline-wire", "");
        assert!(manifest.contains(line), "{line}");
        let manifest = manifest.replace(line, "");
        assert_found(WIRE, &manifest, "metadata");
    }
    let manifest = library("towline-wire", "").replace("README.md", "ABSENT.md");
    assert_found(WIRE, &manifest, "metadata");
    let manifest = unpublished("towline-hello", "").replace("publish = false\n", "");
    assert_found("examples/hello/Cargo.toml", &manifest, "metadata");
}

#[test]
fn aborting_on_panic_is_found_in_profiles_and_flags() {
    let profile = "[profile.release.package.x]\nopt-level = 1\n[profile.bench]\npanic = \"abort\"\n";
    assert_found("Cargo.toml", profile, "unwinding");
    let flags = "[build]\nrustflags = [\"-C\", \"panic=abort\"]\n";
    assert_found(".cargo/config.toml", flags, "unwinding");
    let profile = "[profile.release]\npanic = \"abort\"\n";
    assert_found(".cargo/config.toml", profile, "unwinding");
}

#[test]
fn raft_types_outside_their_module_are_found() {
    for code in [
        "use raft::RawNode;\n",
        "use ::raft::RawNode;\n",
        "fn f(m: raft::prelude::Message) {}\n",
        "type E = eraftpb::Entry;\n",
        "use raft as consensus;\n",
    ] {
        assert_found(NODE, code, "raft-types");
        for allowed in
            ["crates/towline-engine/src/core/raft.rs", "crates/towline-engine/src/core/raft/step.rs"]
        {
            assert_eq!(planted(&[(allowed, code)]), [], "{allowed} may");
        }
        assert_eq!(planted(&[("crates/towline-wire/tests/golden.rs", code)]), [], "tests may");
    }
    let engine = "use raft_engine::Engine;\n";
    assert_found(NODE, engine, "raft-engine-types");
}

#[test]
fn our_own_module_named_raft_and_words_about_it_pass() {
    let code = "//! Unlike `raft::RawNode`, eraftpb is not seen here.\nuse crate::core::raft::Step;\n\
                const WHY: &str = \"use raft::RawNode\";\n/* raft::x /* nested */ raft::y */\n\
                fn f<'a>(x: &'a str) -> char { let _ = r#\"raft::\"#; '\"' }\n";
    assert_eq!(planted(&[(NODE, code)]), []);
}

#[test]
fn raft_types_in_a_unit_test_pass_and_after_it_are_found() {
    let test = "#[cfg(test)]\nmod tests {\n    use raft::RawNode;\n    fn f() { let _ = '}'; }\n}\n";
    assert_eq!(planted(&[(NODE, test)]), []);
    let after = format!("{test}use raft::Config;\n");
    assert_found(NODE, &after, "raft-types");
    let files = [
        (NODE, "#[cfg(test)]\nmod fixtures;\n"),
        ("crates/towline-engine/src/node/fixtures.rs", "use raft::RawNode;\n"),
    ];
    assert_eq!(planted(&files), []);
}

#[test]
fn impure_words_in_the_core_or_the_policy_are_found() {
    for (place, rule) in [
        ("crates/towline-engine/src/core/group.rs", "pure"),
        ("crates/towline-engine/src/lanes/policy.rs", "sans-io"),
        ("crates/towline-engine/src/lanes/policy/backoff.rs", "sans-io"),
    ] {
        for code in [
            "use tokio::sync::mpsc;\n",
            "fn f() { let _ = std::time::Instant::now(); }\n",
            "use std::time::SystemTime;\n",
            "use std::thread;\n",
            "use std::net::SocketAddr;\n",
        ] {
            assert_one(&[(place, code)], rule, place);
        }
        assert_eq!(planted(&[(place, "//! Knows no tokio.\nuse std::time::Duration;\n")]), []);
    }
    let argument = "use std::time::{Duration, Instant};\n";
    assert_eq!(planted(&[("crates/towline-engine/src/lanes/policy.rs", argument)]), []);
    assert_eq!(planted(&[("crates/towline-engine/src/lanes/worker.rs", "use tokio::sync::mpsc;\n")]), []);
}

#[test]
fn shared_memory_is_found_in_the_core_and_allowed_in_its_tests() {
    let place = "crates/towline-engine/src/core/attempts.rs";
    for code in [
        "use std::sync::{Arc, Mutex};\n",
        "fn f() { let _ = std::sync::RwLock::new(1); }\n",
        "use std::sync::atomic::{AtomicU64, Ordering};\n",
        "struct S { taken: std::sync::Arc<AtomicUsize> }\n",
        "fn f() -> std::task::Waker { std::task::Waker::noop().clone() }\n",
        "use std::time::{Duration, Instant};\n",
        "use crate::reporter::{Mailbox, Report};\n",
    ] {
        assert_found(place, code, "pure");
        assert_eq!(planted(&[("crates/towline-engine/src/core/attempts/tests.rs", code)]), [], "{code}");
        assert_eq!(planted(&[("crates/towline-engine/src/reporter/mailbox.rs", code)]), [], "{code}");
    }
    assert_eq!(planted(&[(place, "use std::sync::Arc;\n")]), [], "text that is only read");
}

#[test]
fn a_file_name_without_a_concept_is_found() {
    for path in [
        "crates/towline-wire/src/utils.rs",
        "crates/towline-wire/src/misc.rs",
        "crates/towline-wire/src/manager.rs",
        "crates/towline-wire/src/lane_manager.rs",
        "crates/towline-wire/src/utils/time.rs",
        "crates/towline-wire/src/utils/mod.rs",
    ] {
        assert_found(path, "//! A module.\n", "name");
    }
}

#[test]
fn a_file_that_is_too_long_is_found_unless_generated() {
    let text = "// line\n".repeat(801);
    assert_found(FRAME, &text, "length");
    assert_eq!(planted(&[("crates/towline-wire/src/gen/towline.v1.rs", &text)]), []);
    assert_eq!(planted(&[(FRAME, &"// line\n".repeat(800))]), []);
}

#[test]
fn a_test_file_that_never_runs_is_found() {
    let manifest = library("towline-wire", "prost.workspace = true").replacen(
        "[package.metadata",
        "autotests = false\n[package.metadata",
        1,
    );
    let manifest = format!("{manifest}[[test]]\nname = \"main\"\n[[test]]\nname = \"memory\"\n");
    let mut files = vec![
        (WIRE, manifest.as_str()),
        ("crates/towline-wire/tests/main.rs", "mod frames;\n"),
        (FRAMES, ""),
        ("crates/towline-wire/tests/memory.rs", ""),
        ("crates/towline-wire/tests/common/mod.rs", ""),
    ];
    assert_eq!(planted(&files), []);
    files.push(("crates/towline-wire/tests/golden.rs", ""));
    assert_one(&files, "test-files", "crates/towline-wire/tests/golden.rs");
}

#[test]
fn an_ignored_test_is_found() {
    for code in [
        "#[test]\n#[ignore]\nfn f() {}\n",
        "#[test]\n#[ignore = \"slow\"]\nfn f() {}\n",
        "#[test]\n#[cfg_attr(unix, ignore)]\nfn f() {}\n",
        "/// ```ignore\n/// f();\n/// ```\nfn f() {}\n",
        "//! ```rust,ignore\n//! f();\n//! ```\n",
    ] {
        assert_found(FRAMES, code, "ignored");
    }
}

#[test]
fn a_sleep_in_a_test_is_found_unless_explained() {
    for sleep in ["std::thread::sleep(D)", "tokio::time::sleep(D).await", "sleep(D).await"] {
        let test = format!("fn f() {{\n    {sleep};\n}}\n");
        assert_found(FRAMES, &test, "sleep");
        let unit = format!("#[cfg(test)]\nmod tests {{\n    fn f() {{ {sleep}; }}\n}}\n");
        assert_found(FRAME, &unit, "sleep");
        let empty = format!("fn f() {{\n    {sleep}; // not synchronisation: \n}}\n");
        assert_found(FRAMES, &empty, "sleep");

        let explained =
            format!("fn f() {{\n    {sleep}; // not synchronisation: poll interval under a deadline\n}}\n");
        assert_eq!(planted(&[(FRAMES, &explained)]), []);
        assert_eq!(planted(&[(FRAME, &format!("fn f() {{ {sleep}; }}\n"))]), []);
    }
}

#[test]
fn hidden_text_keeps_its_lines() {
    let text = "a // b\n\"c\nd\" e /* f\ng */ h '\\'' 'i' <'j> r\"k\\\" l b\"m\"\n";
    let code = without_comments_and_literals(text);
    assert_eq!(code.lines().count(), text.lines().count());
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "h", "<'j>", "l", "b"]);
}

#[test]
fn a_test_region_ends_where_its_item_ends() {
    let code =
        "#[cfg(test)]\nuse a::{b};\nfn c() {}\n#[cfg(test)]\n#[path = \"\"]\npub(crate) mod d;\nfn e() {}\n";
    let (lines, modules) = test_regions(code);
    let inside: Vec<usize> = (1..=7).filter(|line| lines[*line]).collect();
    assert_eq!(inside, [1, 2, 4, 5, 6]);
    assert_eq!(modules, ["d"]);
}

/// Checks a library with this code, and a page with these rows.
fn assert_lines(code: &str, page: &str, path: &str) {
    let page = format!(
        "# Operations\n\n## Every line of the log\n\n{page}\n## Every metric\n\n| `metric` | none |\n"
    );
    let code = format!("fn f() {{\n    {code}\n}}\n");
    let files = [("crates/towline/src/lib.rs", code.as_str()), ("docs/operations.md", page.as_str())];
    match path {
        "" => assert_eq!(planted(&files), [], "{code}"),
        path => assert_one(&files, "log-lines", path),
    }
}

#[test]
fn a_log_line_without_a_row_is_found() {
    let library = "crates/towline/src/lib.rs";
    let row = "| `it broke` | warn | `peer` | it did | nothing |\n";
    for explained in [
        "tracing::warn!(\"it broke\");",
        "tracing::warn!(%error, peer = a.b(\"x\"), \"it broke\");",
        "warn!(target: \"t\", kind = \"other\", // \"words\"\n \"it \\\n     broke\"\n);",
        "tracing::warn!(\"it broke\"); tracing::debug!(\"not for operators\");",
    ] {
        assert_lines(explained, row, "");
        assert_lines(explained, "", library);
    }
    // At another level it is another line, which the page does not have, and the page has one too many.
    let found = planted(&[(library, "fn f() { tracing::error!(\"it broke\"); }\n")]);
    assert!(matches!(found.as_slice(), [one] if one.rule == "log-lines"), "{found:?}");
    assert_lines("tracing::warn!(\"it broke\"); tracing::error!(\"it broke\");", row, library);
    assert_lines("tracing::warn!(\"it broke\"); tracing::info!(\"peer {peer}\");", row, library);
    let tests = "#[cfg(test)]\nmod tests {\n    fn f() { tracing::warn!(\"of a test\"); }\n}\n";
    assert_eq!(
        planted(&[(library, tests), ("examples/hello/src/main.rs", "fn f() { warn!(\"an example's\"); }")]),
        []
    );
}

#[test]
fn a_row_without_a_log_line_is_found() {
    assert_lines("", "| `it broke` | warn | none | it did | nothing |\n", "docs/operations.md");
}

#[test]
fn a_log_bridge_needs_its_target_on_the_page() {
    let bridge = "crates/towline-storage/src/log_bridge.rs";
    let code = "fn f() { tracing::warn!(source, \"{text}\"); }\n";
    assert_found(bridge, code, "log-lines");
    assert_eq!(planted(&[(bridge, code), ("docs/operations.md", "of `raft_engine`\n")]), []);
}

#[test]
fn two_types_of_one_crate_with_one_name_are_found() {
    let (first, second) = (FRAME, "crates/towline-wire/src/lane.rs");
    let wire = |text| planted(&[(first, "struct Key;\n"), (second, text)]);
    for code in
        ["enum Key {}\n", "trait Key {}\n", "type Key = u8;\n", "mod inner {\n    union Key { a: u8 }\n}\n"]
    {
        assert!(
            matches!(wire(code).as_slice(), [one] if one.rule == "type-names" && one.path == second),
            "{code}"
        );
    }
    assert_one(
        &[(first, "struct Key;\n#[cfg(test)]\nmod tests {\n    struct Key;\n}\n")],
        "type-names",
        first,
    );
    for code in
        ["fn f() {\n    struct Key;\n}\n", "impl T for S {\n    type Key = u8;\n}\n", "const Key: u8 = 1;\n"]
    {
        assert_eq!(wire(code), [], "{code}");
    }
    for other in
        ["crates/towline-wire/tests/lane.rs", "crates/towline-wire/src/gen/a.rs", "crates/towline/src/b.rs"]
    {
        assert_eq!(planted(&[(first, "struct Key;\n"), (other, "pub struct Key;\n")]), [], "{other}");
    }
}

#[test]
fn two_public_types_of_the_libraries_with_one_name_are_found() {
    let (first, second) = ("crates/towline-metrics/src/a.rs", "crates/towline-wire/src/b.rs");
    assert_one(&[(first, "pub struct Key;\n"), (second, "pub enum Key {}\n")], "type-names", second);
    assert_eq!(planted(&[(first, "pub struct Key;\n"), (second, "pub(crate) enum Key {}\n")]), []);
    assert_eq!(
        planted(&[(first, "pub struct Key;\n"), ("examples/hello/src/b.rs", "pub enum Key {}\n")]),
        []
    );
}
