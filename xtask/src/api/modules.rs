//! The module tree of a library, and the resolution of the paths in its `use` items.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, Ident, Item, UseTree, Visibility};

use crate::Result;

/// One module: its items without those of tests and those that documentation hides.
#[derive(Default)]
pub(super) struct Module {
    pub(super) items: Vec<Item>,
    children: BTreeMap<String, Module>,
}

/// One name that a `use` item brings in.
pub(super) struct Import {
    pub(super) path: Vec<String>,
    /// `None` for a glob.
    pub(super) name: Option<String>,
}

impl Module {
    /// `directory` holds the files of the child modules.
    pub(super) fn load(file: &Path, directory: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        Self::build(parsed.items, directory)
    }

    fn build(items: Vec<Item>, directory: &Path) -> Result<Self> {
        let mut module = Self::default();
        for mut item in items.into_iter().filter(|item| !is_hidden(head(item).0)) {
            if let Item::Mod(child) = &mut item {
                let name = child.ident.to_string();
                let below = directory.join(&name);
                let loaded = match child.content.take() {
                    Some((_, items)) => Self::build(items, &below)?,
                    None => {
                        let flat = directory.join(format!("{name}.rs"));
                        let file = if flat.exists() { flat } else { below.join("mod.rs") };
                        Self::load(&file, &below)?
                    }
                };
                module.children.insert(name, loaded);
            }
            module.items.push(item);
        }
        Ok(module)
    }

    pub(super) fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |module, name| module.children.get(name))
    }

    /// This module and all below it.
    pub(super) fn all(&self) -> Vec<&Self> {
        std::iter::once(self).chain(self.children.values().flat_map(Self::all)).collect()
    }

    /// The path from the root that an import in the module `from` names; `None` if it leads to another crate.
    pub(super) fn resolve(&self, from: &[String], path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut resolved = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.split_last()?.1.to_vec(),
            name if self.at(from)?.children.contains_key(name) => {
                [from, std::slice::from_ref(first)].concat()
            }
            _ => return None,
        };
        for name in rest {
            if name == "super" {
                resolved.pop();
            } else {
                resolved.push(name.clone());
            }
        }
        Some(resolved)
    }
}

/// The attributes of an item, and the visibility and name of an item that has both.
pub(crate) fn head(item: &Item) -> (&[Attribute], Option<(&Visibility, &Ident)>) {
    match item {
        Item::Const(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Enum(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Fn(item) => (&item.attrs, Some((&item.vis, &item.sig.ident))),
        Item::Mod(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Static(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Struct(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Trait(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Type(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Union(item) => (&item.attrs, Some((&item.vis, &item.ident))),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, None),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

/// Whether an item exists for tests only, or documentation hides it.
pub(super) fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let meta = attribute.meta.to_token_stream().to_string().replace(' ', "");
        meta == "doc(hidden)" || meta == "cfg(test)" || meta.starts_with("cfg(all(test,")
    })
}

pub(super) fn imports(tree: &UseTree) -> Vec<Import> {
    fn collect(tree: &UseTree, mut path: Vec<String>, found: &mut Vec<Import>) {
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                collect(&tree.tree, path, found);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| collect(tree, path.clone(), found)),
            UseTree::Glob(_) => found.push(Import { path, name: None }),
            UseTree::Name(leaf) => {
                let name = leaf.ident.to_string();
                // `a::{self}` imports `a`.
                if name != "self" {
                    path.push(name);
                }
                found.push(Import { name: path.last().cloned(), path });
            }
            UseTree::Rename(leaf) => {
                path.push(leaf.ident.to_string());
                found.push(Import { path, name: Some(leaf.rename.to_string()) });
            }
        }
    }
    let mut found = Vec::new();
    collect(tree, Vec::new(), &mut found);
    found
}
