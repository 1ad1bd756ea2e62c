//! `cargo xtask api`: the public items of the libraries, one a line, against `docs/public-api.txt`.
//!
//! The items are read from the sources: no stable compiler lists them. A change of a line is a change of the public API.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::Result;
use crate::packages::LIBRARIES;

mod items;
mod modules;

use items::Listing;
use modules::Module;
pub(crate) use modules::head;

#[derive(clap::Args, Default)]
pub(crate) struct ApiOptions {
    /// Write the list
    #[arg(long)]
    bless: bool,
}

const LIST: &str = "docs/public-api.txt";

pub(crate) fn run(root: &Path, options: &ApiOptions) -> Result<()> {
    let mut lines = BTreeSet::new();
    for library in LIBRARIES {
        lines.extend(public_items(&root.join("crates").join(library), &library.replace('-', "_"))?);
    }
    let file = root.join(LIST);
    if options.bless {
        fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    }
    let listed = fs::read_to_string(&file).map_err(|error| format!("{LIST}: {error}"))?;
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let removed = listed.difference(&lines).map(|line| format!("- {line}"));
    let difference: Vec<String> =
        removed.chain(lines.difference(&listed).map(|line| format!("+ {line}"))).collect();
    if difference.is_empty() {
        println!("api: {} public items, as listed", lines.len());
        return Ok(());
    }
    let difference = difference.join("\n");
    Err(format!("{LIST} differs from the sources; `cargo xtask api --bless` writes it:\n{difference}").into())
}

/// The lines of one library. `name` is the crate's name in Rust.
fn public_items(directory: &Path, name: &str) -> Result<BTreeSet<String>> {
    let root = Module::load(&directory.join("src/lib.rs"), &directory.join("src"))?;
    Ok(Listing::new(&root).of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a library with these source files, without the name of the crate before each.
    fn listed(files: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join("src").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let lines = public_items(directory.path(), "lib").unwrap();
        lines
            .iter()
            .map(|line| line.strip_prefix("lib").unwrap().trim_start_matches("::").to_owned())
            .collect()
    }

    #[test]
    fn fields_variants_methods_and_traits_are_listed_and_private_parts_are_not() {
        let code = "
            /// Docs.
            #[derive(Debug, Clone)]
            #[non_exhaustive]
            pub struct Pair<T> { pub left: Vec<T>, right: T }
            impl<T: Copy> Pair<T> {
                pub const MAX: usize = 1;
                pub async fn swap(&mut self, by: &'static str) -> Result<(), Error> { todo!() }
                pub(crate) fn hidden(&self) {}
                #[doc(hidden)] pub fn also_hidden(&self) {}
            }
            impl From<u8> for Pair<u8> { fn from(_: u8) -> Self { todo!() } }
            pub enum Error { Io(std::io::Error), Late { by: u64 }, Gone }
            pub trait Store: Send { type Key: Ord; fn get(&self, at: Self::Key); fn len(&self) -> usize { 0 } }
            pub fn first<'a, K>(of: &'a [K]) -> Option<&'a K> where K: Ord { of.first() }
            struct Private;
            impl Private { pub fn unreachable(&self) {} }
            #[cfg(test)] pub mod checks { pub fn a() {} }";
        assert_eq!(
            listed(&[("lib.rs", code)]),
            [
                "Error: enum",
                "Error::Gone: variant",
                "Error::Io: variant(std::io::Error)",
                "Error::Late: variant { by: u64 }",
                "Pair.left: Vec<T>",
                "Pair: impl Clone, Debug, From<u8>",
                "Pair: struct<T> #[non_exhaustive]",
                "Pair::MAX: const usize",
                "Pair::swap: async fn swap(&mut self, by: &'static str) -> Result<(), Error>",
                "Store: trait: Send",
                "Store::Key: type: Ord",
                "Store::get: required fn get(&self, at: Self::Key)",
                "Store::len: provided fn len(&self) -> usize",
                "first: fn first<'a, K>(of: &'a [K]) -> Option<&'a K> where K: Ord",
            ]
        );
    }

    #[test]
    fn items_are_listed_where_a_public_path_reaches_them_with_the_features_on_the_way() {
        let files = [
            ("lib.rs", "#[cfg(feature = \"net\")] pub mod net; mod deep; pub use deep::inner::{Kept, other as renamed};
                pub use elsewhere::Thing; mod flat; pub use self::flat::*;"),
            ("net.rs", "pub use crate::deep::Through; pub const PORT: u16 = 1;"),
            ("deep/mod.rs", "pub(crate) mod inner; pub use self::inner::Through;"),
            ("deep/inner.rs", "pub struct Kept(pub u8, u8); pub struct Through; pub fn other() {} pub fn lost() {}"),
            ("flat.rs", "pub static NAME: &str = \"\"; #[macro_export] macro_rules! check { () => {} }"),
        ];
        assert_eq!(
            listed(&files),
            [
                "Kept.0: u8",
                "Kept: struct",
                "NAME: static &str",
                "Thing: pub use elsewhere::Thing",
                "check!: macro",
                "net: mod [feature = \"net\"]",
                "net::PORT: const u16 [feature = \"net\"]",
                "net::Through: struct [feature = \"net\"]",
                "renamed: fn other()",
            ]
        );
    }

    #[test]
    fn a_list_that_differs_is_an_error_with_the_lines() {
        let root = tempfile::tempdir().unwrap();
        for library in LIBRARIES {
            let source = root.path().join("crates").join(library).join("src");
            fs::create_dir_all(&source).unwrap();
            fs::write(source.join("lib.rs"), "pub fn one() {}\n").unwrap();
        }
        fs::create_dir_all(root.path().join("docs")).unwrap();
        run(root.path(), &ApiOptions { bless: true }).unwrap();
        let changed = root.path().join("crates/towline-wire/src/lib.rs");
        fs::write(changed, "pub fn one(with: u8) {}\n").unwrap();
        let error = run(root.path(), &ApiOptions { bless: false }).unwrap_err().to_string();
        assert!(
            error.ends_with("- towline_wire::one: fn one()\n+ towline_wire::one: fn one(with: u8)"),
            "{error}"
        );
    }
}
