//! Compares the Rust version that each library states with those of its dependencies.
//!
//! CI has one toolchain, so it checks no more of the promise.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::packages::LIBRARIES;
use crate::{Result, cargo};

type Version = (u64, u64, u64);

pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata =
        cargo::captured(root, &["metadata", "--locked", "--all-features", "--format-version", "1"])?;
    let found = check(&serde_json::from_str(&metadata)?, LIBRARIES)?;
    if found.is_empty() {
        println!("{} libraries: no dependency needs a newer Rust than its crate states", LIBRARIES.len());
        return Ok(());
    }
    Err(found.join("\n").into())
}

/// One line per normal dependency that needs a newer Rust than its library states.
fn check(metadata: &Value, libraries: &[&str]) -> Result<Vec<String>> {
    let packages: BTreeMap<&str, &Value> = array(metadata, "packages")
        .iter()
        .filter_map(|package| Some((text(package, "id")?, package)))
        .collect();
    let nodes: BTreeMap<&str, &Value> = metadata
        .get("resolve")
        .map(|resolve| array(resolve, "nodes"))
        .unwrap_or_default()
        .iter()
        .filter_map(|node| Some((text(node, "id")?, node)))
        .collect();

    let mut found = Vec::new();
    for library in libraries {
        let (id, package) = packages
            .iter()
            .find(|(_, package)| text(package, "name") == Some(library))
            .ok_or_else(|| format!("cargo metadata knows no package {library}"))?;
        let stated =
            text(package, "rust_version").ok_or_else(|| format!("{library} states no rust-version"))?;
        for dependency in normal_dependencies(&nodes, id) {
            let Some(dependency) = packages.get(dependency) else { continue };
            let Some(needs) = text(dependency, "rust_version") else { continue };
            if version(needs) > version(stated) {
                let name = text(dependency, "name").unwrap_or_default();
                found.push(format!("{library} states Rust {stated}, but {name} needs {needs}"));
            }
        }
    }
    Ok(found)
}

/// The ids of all direct and indirect normal dependencies of a package.
fn normal_dependencies<'a>(nodes: &BTreeMap<&'a str, &'a Value>, of: &'a str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![of];
    while let Some(id) = waiting.pop() {
        let Some(node) = nodes.get(id) else { continue };
        for dependency in array(node, "deps") {
            // Null is the kind of a normal dependency.
            let normal =
                array(dependency, "dep_kinds").iter().any(|kind| kind.get("kind") == Some(&Value::Null));
            if let Some(id) = text(dependency, "pkg").filter(|id| normal && seen.insert(*id)) {
                waiting.push(id);
            }
        }
    }
    seen
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn version(text: &str) -> Version {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(stated: &str, needed: &str, kind: Value) -> Value {
        json!({
            "packages": [
                {"id": "a", "name": "library", "rust_version": stated},
                {"id": "b", "name": "middle"},
                {"id": "c", "name": "leaf", "rust_version": needed},
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": null}]}]},
                {"id": "b", "deps": [{"pkg": "c", "dep_kinds": [{"kind": kind}]}]},
                {"id": "c", "deps": []},
            ]},
        })
    }

    #[test]
    fn a_dependency_that_needs_a_newer_rust_is_named() {
        let found = check(&metadata("1.85", "1.88.0", Value::Null), &["library"]).unwrap();
        assert_eq!(found, ["library states Rust 1.85, but leaf needs 1.88.0"]);
    }

    #[test]
    fn older_needs_and_dev_dependencies_pass() {
        assert!(check(&metadata("1.85.1", "1.85", Value::Null), &["library"]).unwrap().is_empty());
        assert!(check(&metadata("1.85", "1.90", json!("dev")), &["library"]).unwrap().is_empty());
    }
}
