//! The packages of this workspace, as CI and tidy know them.

/// The crates that are published, lowest first.
pub(crate) const LIBRARIES: &[&str] = &[
    "towline-metrics",
    "towline-engine",
    "towline-wire",
    "towline-tls",
    "towline-storage",
    "towline-grpc",
    "towline-quic",
    "towline-testkit",
    "towline",
];

/// Workspace members that are not published.
pub(crate) const UNPUBLISHED: &[&str] =
    &["xtask", "towline-tools", "towline-hello", "towline-kv", "towline-custom-transport"];

/// What consumers can pick: libraries, feature arguments. Libraries share a run only if each gets the features of its direct
/// dependencies that it gets alone, or the run would hide a feature that its manifest lacks. Clippy verifies that.
pub(crate) const CONSUMERS: &[(&[&str], &[&str])] = &[
    (
        &[
            "towline-metrics",
            "towline-wire",
            "towline-tls",
            "towline-storage",
            "towline-grpc",
            "towline-quic",
        ],
        &[],
    ),
    (&["towline-engine"], &["--no-default-features"]),
    (&["towline-engine"], &["--no-default-features", "--features", "core"]),
    (&["towline-engine", "towline-testkit", "towline"], &[]),
    (&["towline-metrics", "towline-tls", "towline-storage"], &["--all-features"]),
    (&["towline"], &["--no-default-features"]),
    (&["towline-engine", "towline"], &["--all-features"]),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use toml::Table;

    use super::*;

    fn manifests() -> Vec<(String, Table)> {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("crates");
        let mut manifests = Vec::new();
        for directory in fs::read_dir(crates).unwrap() {
            let text = fs::read_to_string(directory.unwrap().path().join("Cargo.toml")).unwrap();
            let table: Table = text.parse().unwrap();
            manifests.push((table["package"]["name"].as_str().unwrap().to_owned(), table));
        }
        manifests
    }

    fn position(library: &str) -> Option<usize> {
        LIBRARIES.iter().position(|listed| *listed == library)
    }

    #[test]
    fn every_crate_is_listed_above_what_it_depends_on() {
        let manifests = manifests();
        assert_eq!(manifests.len(), LIBRARIES.len());
        for (name, table) in &manifests {
            let at = position(name).unwrap_or_else(|| panic!("{name} is not among LIBRARIES"));
            let Some(dependencies) = table.get("dependencies").and_then(|value| value.as_table()) else {
                continue;
            };
            for below in dependencies.keys().filter(|key| key.starts_with("towline")) {
                let below_at = position(below).unwrap_or_else(|| panic!("{below} is not among LIBRARIES"));
                assert!(below_at < at, "{name} depends on {below}, which stands after it");
            }
        }
    }

    #[test]
    fn every_library_is_in_a_run_with_its_default_features() {
        for library in LIBRARIES {
            let by_default = |(libraries, features): &(&[&str], &[&str])| {
                libraries.contains(library) && features.is_empty()
            };
            assert!(CONSUMERS.iter().any(by_default), "no run has {library}");
        }
    }

    /// What a default enables is covered by the run with default features.
    #[test]
    fn every_feature_is_in_some_run() {
        let mut seen = 0;
        for (name, table) in manifests() {
            let Some(features) = table.get("features").and_then(|value| value.as_table()) else { continue };
            let default = features.get("default").and_then(|value| value.as_array());
            for feature in features.keys().filter(|feature| *feature != "default") {
                seen += 1;
                let by_default =
                    default.is_some_and(|list| list.iter().any(|on| on.as_str() == Some(feature)));
                let by_run = CONSUMERS.iter().any(|(libraries, arguments)| {
                    libraries.contains(&name.as_str())
                        && arguments
                            .iter()
                            .any(|argument| *argument == "--all-features" || argument == feature)
                });
                assert!(by_default || by_run, "no run of {name} has its feature {feature}");
            }
        }
        assert!(seen >= 8, "the manifests have features");
    }
}
