//! Two types of one crate never share a name, and neither do two public types of the libraries.
//!
//! The rule reads every `src/`, tests in it too. Files below `tests/`, `examples/` and `benches/` belong to other programs,
//! and generated code takes its names from the schema: the rule reads neither.

use std::collections::BTreeMap;

use syn::{Item, Visibility};

use super::rules::GENERATED;
use super::{File, Violation};
use crate::api::head;

/// Where a type stands: a struct, enum, union, trait or type alias at module level.
struct Place<'a> {
    file: &'a File,
    line: usize,
    public: bool,
}

pub(super) fn check(tree: &[File], violations: &mut Vec<Violation>) {
    // By crate and name.
    let mut types: BTreeMap<(&str, String), Vec<Place<'_>>> = BTreeMap::new();
    for file in tree.iter().filter(|file| file.path.ends_with(".rs") && !file.path.contains(GENERATED)) {
        let Some((directory, _)) = file.path.split_once("/src/") else { continue };
        // The compiler reports a file that does not parse.
        let Ok(parsed) = syn::parse_file(&file.text) else { continue };
        collect(file, &parsed.items, &mut |name, place| {
            types.entry((directory, name)).or_default().push(place);
        });
    }
    let mut public: BTreeMap<&str, &Place<'_>> = BTreeMap::new();
    for ((directory, name), places) in &types {
        let mut report = |other: &Place<'_>, first: &Place<'_>| {
            let what = format!("`{name}` is also a type in {}:{}", first.file.path, first.line);
            let (path, line) = (other.file.path.clone(), other.line);
            violations.push(Violation { path, line, rule: "type-names", what });
        };
        let Some((first, others)) = places.split_first() else { continue };
        others.iter().for_each(|other| report(other, first));
        let library = directory.starts_with("crates/");
        if let Some(place) = places.iter().find(|place| library && place.public) {
            match public.get(name.as_str()) {
                Some(first) => report(place, first),
                None => drop(public.insert(name, place)),
            }
        }
    }
}

fn collect<'a>(file: &'a File, items: &[Item], found: &mut impl FnMut(String, Place<'a>)) {
    for item in items {
        if let Item::Mod(module) = item
            && let Some((_, items)) = &module.content
        {
            collect(file, items, found);
        }
        let is_type =
            matches!(item, Item::Struct(_) | Item::Enum(_) | Item::Union(_) | Item::Trait(_) | Item::Type(_));
        let Some((vis, name)) = head(item).1.filter(|_| is_type) else { continue };
        let (line, public) = (name.span().start().line, matches!(vis, Visibility::Public(_)));
        found(name.to_string(), Place { file, line, public });
    }
}
