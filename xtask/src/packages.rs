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

/// Feature sets that a consumer can pick, beyond the default features: crate, arguments.
pub(crate) const FEATURE_SETS: &[(&str, &[&str])] = &[
    ("towline-engine", &["--no-default-features"]),
    ("towline-engine", &["--no-default-features", "--features", "core"]),
    ("towline-engine", &["--features", "prometheus"]),
    ("towline-metrics", &["--features", "prometheus"]),
    ("towline-tls", &["--features", "dev-certs"]),
    ("towline-storage", &["--features", "faults"]),
    ("towline", &["--no-default-features"]),
    ("towline", &["--all-features"]),
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

    /// What a default enables is covered by the plain invocation.
    #[test]
    fn every_feature_is_in_some_invocation() {
        let mut seen = 0;
        for (name, table) in manifests() {
            let Some(features) = table.get("features").and_then(|value| value.as_table()) else { continue };
            let default = features.get("default").and_then(|value| value.as_array());
            for feature in features.keys().filter(|feature| *feature != "default") {
                seen += 1;
                let by_default =
                    default.is_some_and(|list| list.iter().any(|on| on.as_str() == Some(feature)));
                let by_set = FEATURE_SETS.iter().any(|(library, arguments)| {
                    *library == name
                        && arguments
                            .iter()
                            .any(|argument| *argument == "--all-features" || argument == feature)
                });
                assert!(by_default || by_set, "no invocation of {name} has its feature {feature}");
            }
        }
        assert!(seen >= 8, "the manifests have features");
    }
}
