//! Rules on Cargo.toml: layers, versions and lints in one place, metadata for crates.io, unwinding.

use toml::{Table, Value};

use super::rules::{CONFINED_DEPENDENCIES, ENGINE, EXAMPLE, LAYERS, Layer};
use super::{File, Violation};
use crate::packages::{LIBRARIES, UNPUBLISHED};

pub(super) fn check(tree: &[File], violations: &mut Vec<Violation>) {
    let mut parsed: Vec<(&File, Table)> = Vec::new();
    for file in tree.iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml")) {
        match file.text.parse() {
            Ok(table) => parsed.push((file, table)),
            Err(error) => violations.push(at(file, "manifest", format!("does not parse: {error}"))),
        }
    }
    let packages: Vec<&str> = parsed.iter().filter_map(|(_, table)| package_name(table)).collect();

    for (file, table) in &parsed {
        unwinding(file, table, violations);
        if file.path == "Cargo.toml" {
            workspace(file, table, violations);
            continue;
        }
        // A separate workspace, such as `fuzz`, cannot inherit, and no crate depends on it.
        if table.contains_key("workspace") {
            continue;
        }
        let Some(name) = package_name(table) else {
            violations.push(at(file, "manifest", "has no package name"));
            continue;
        };
        layering(file, table, name, &packages, violations);
        shared_versions(file, table, violations);
        metadata(file, table, tree, violations);
        test_files(file, table, tree, violations);
    }

    // Flags in configuration and scripts count as much as a profile.
    for file in tree.iter().filter(|file| file.path.starts_with(".cargo/") || file.path.starts_with(".ci/")) {
        let dense: String =
            file.text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '"' | '\'')).collect();
        if dense.contains("panic=abort") {
            violations.push(at(file, "unwinding", ABORT));
        }
    }
}

const ABORT: &str = "panic = \"abort\": the quarantine of one group depends on unwinding";

fn at(file: &File, rule: &'static str, what: impl Into<String>) -> Violation {
    Violation { path: file.path.clone(), line: 0, rule, what: what.into() }
}

fn package_name(table: &Table) -> Option<&str> {
    table.get("package")?.get("name")?.as_str()
}

fn unwinding(file: &File, table: &Table, violations: &mut Vec<Violation>) {
    fn aborts(value: &Value) -> bool {
        value.as_table().is_some_and(|table| {
            table
                .iter()
                .any(|(key, value)| (key == "panic" && value.as_str() == Some("abort")) || aborts(value))
        })
    }
    if table.get("profile").is_some_and(aborts) {
        violations.push(at(file, "unwinding", ABORT));
    }
}

/// The workspace table keeps the engine's driver off unless a crate enables it.
fn workspace(file: &File, table: &Table, violations: &mut Vec<Violation>) {
    let engine = table.get("workspace").and_then(|w| w.get("dependencies")).and_then(|d| d.get(ENGINE));
    if engine.is_some_and(|engine| engine.get("default-features").and_then(Value::as_bool) != Some(false)) {
        violations.push(at(file, "layering", format!("{ENGINE} must be `default-features = false` here")));
    }
}

/// Every dependency of a manifest, also below `[target.…]`: section, name and entry.
fn dependencies(table: &Table) -> Vec<(&'static str, &str, &Value)> {
    let mut tables = vec![table];
    if let Some(targets) = table.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut found = Vec::new();
    for table in tables {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            if let Some(entries) = table.get(section).and_then(Value::as_table) {
                found.extend(entries.iter().map(|(name, entry)| (section, name.as_str(), entry)));
            }
        }
    }
    found
}

fn layering(file: &File, table: &Table, name: &str, packages: &[&str], violations: &mut Vec<Violation>) {
    let layer: &Layer = match LAYERS.iter().find(|layer| layer.name == name) {
        Some(layer) => layer,
        None if file.path.starts_with("examples/") => &EXAMPLE,
        None => {
            violations.push(at(
                file,
                "layering",
                format!("{name} has no layer: give it one in xtask/src/tidy/rules.rs"),
            ));
            return;
        }
    };
    listed(file, name, violations);
    for (section, key, entry) in dependencies(table) {
        // A rename must not hide the package.
        let dependency = entry.get("package").and_then(Value::as_str).unwrap_or(key);
        let dev = section == "dev-dependencies";
        if packages.contains(&dependency) || LAYERS.iter().any(|layer| layer.name == dependency) {
            let allowed = layer.normal.contains(&dependency) || (dev && layer.dev.contains(&dependency));
            if !allowed {
                violations.push(at(
                    file,
                    "layering",
                    format!("{name} must not have {dependency} in [{section}]"),
                ));
            }
        }
        if dependency == ENGINE && !layer.driver && switches_driver_on(entry) {
            violations.push(at(
                file,
                "layering",
                format!("{name} takes {ENGINE} without its driver: seams, core and lane policy only"),
            ));
        }
        if let Some((_, owners)) = CONFINED_DEPENDENCIES.iter().find(|(confined, _)| *confined == dependency)
            && !dev
            && !owners.contains(&name)
        {
            violations.push(at(
                file,
                "layering",
                format!("{dependency} belongs to {} alone", owners.join(", ")),
            ));
        }
    }
}

/// CI lints, documents and packs only crates in its lists.
fn listed(file: &File, name: &str, violations: &mut Vec<Violation>) {
    let (list, members) = if file.path.starts_with("crates/") {
        ("LIBRARIES", LIBRARIES)
    } else {
        ("UNPUBLISHED", UNPUBLISHED)
    };
    if !members.contains(&name) {
        violations.push(at(file, "ci-lists", format!("{name} is not among {list} of xtask/src/packages.rs")));
    }
}

/// With `autotests = false` a test file must be a target or a module of one; any other never runs.
fn test_files(file: &File, table: &Table, tree: &[File], violations: &mut Vec<Violation>) {
    if table.get("package").and_then(|package| package.get("autotests")).and_then(Value::as_bool)
        != Some(false)
    {
        return;
    }
    let targets = table.get("test").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let targets: Vec<&str> = targets.iter().filter_map(|target| target.get("name")?.as_str()).collect();
    let directory = format!("{}tests/", file.path.trim_end_matches("Cargo.toml"));
    let tests: Vec<(&str, &File)> = tree
        .iter()
        .filter_map(|test| Some((test.path.strip_prefix(&directory)?.strip_suffix(".rs")?, test)))
        .filter(|(name, _)| !name.contains('/'))
        .collect();
    for (name, test) in &tests {
        let module = format!("mod {name};");
        let runs = targets.contains(name)
            || tests.iter().any(|(root, root_file)| {
                targets.contains(root) && root_file.text.lines().any(|line| line == module)
            });
        if !runs {
            violations.push(at(
                test,
                "test-files",
                format!("never runs: write `{module}` in {directory}main.rs"),
            ));
        }
    }
}

fn switches_driver_on(entry: &Value) -> bool {
    let by_default = entry.get("default-features").and_then(Value::as_bool) == Some(true);
    let features = entry.get("features").and_then(Value::as_array);
    by_default
        || features.is_some_and(|list| {
            list.iter().filter_map(Value::as_str).any(|feature| matches!(feature, "driver" | "default"))
        })
}

fn shared_versions(file: &File, table: &Table, violations: &mut Vec<Violation>) {
    let inherits = |value: Option<&Value>| {
        value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
    };
    for (section, name, entry) in dependencies(table) {
        if !inherits(Some(entry)) {
            violations.push(at(
                file,
                "versions",
                format!("{name} in [{section}] must be `workspace = true`: versions stand once, in the root"),
            ));
        }
    }
    if !inherits(table.get("lints")) {
        violations.push(at(file, "lints", "[lints] must be `workspace = true`"));
    }
    let package = table.get("package");
    for key in ["version", "edition", "license", "repository", "authors"] {
        if !inherits(package.and_then(|package| package.get(key))) {
            violations.push(at(file, "versions", format!("package.{key} must be `workspace = true`")));
        }
    }
}

/// Metadata for crates.io and docs.rs. Unpublished members need only `description` and `rust-version`.
fn metadata(file: &File, table: &Table, tree: &[File], violations: &mut Vec<Violation>) {
    let package = table.get("package");
    let field = |key: &str| package.and_then(|package| package.get(key));
    let mut missing = |key: &str| violations.push(at(file, "metadata", format!("package.{key} is missing")));

    for key in ["description", "rust-version"] {
        if field(key).and_then(Value::as_str).is_none_or(|text| text.trim().is_empty()) {
            missing(key);
        }
    }
    if !file.path.starts_with("crates/") {
        if field("publish").and_then(Value::as_bool) != Some(false) {
            missing("publish = false");
        }
        return;
    }
    for key in ["keywords", "categories"] {
        // crates.io takes five of each at most.
        if field(key).and_then(Value::as_array).is_none_or(|list| !(1..=5).contains(&list.len())) {
            missing(key);
        }
    }
    if field("metadata").and_then(|metadata| metadata.get("docs")).and_then(|docs| docs.get("rs")).is_none() {
        missing("metadata.docs.rs");
    }
    let directory = file.path.trim_end_matches("Cargo.toml");
    match field("readme").and_then(Value::as_str) {
        Some(readme) if tree.iter().any(|other| other.path == format!("{directory}{readme}")) => {}
        _ => missing("readme (and its file)"),
    }
}
