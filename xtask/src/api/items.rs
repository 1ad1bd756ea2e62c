//! The lines of the list: each public item by the path under which a user reaches it.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, Meta, TraitItem, Type, Visibility};

use super::modules::{Import, Module, head, imports, is_hidden};

/// Collects the lines of one library.
pub(super) struct Listing<'a> {
    root: &'a Module,
    impls: Vec<&'a ItemImpl>,
    lines: BTreeSet<String>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(root: &'a Module) -> Self {
        let items = root.all().into_iter().flat_map(|module| &module.items);
        let impls =
            items.filter_map(|item| if let Item::Impl(item) = item { Some(item) } else { None }).collect();
        Self { root, impls, lines: BTreeSet::new() }
    }

    pub(super) fn of(mut self, name: &str) -> BTreeSet<String> {
        for item in self.root.all().into_iter().flat_map(|module| &module.items) {
            if let Item::Macro(item) = item
                && let Some(ident) = &item.ident
                && item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"))
            {
                self.lines.insert(format!("{name}::{ident}!: macro{}", gates(&item.attrs)));
            }
        }
        self.module(&[], name, "");
        self.lines
    }

    /// Lists the module at `path`, which users reach as `public`. `gate` names the features on the way.
    fn module(&mut self, path: &[String], public: &str, gate: &str) {
        let Some(module) = self.root.at(path) else { return };
        for item in &module.items {
            let gate = format!("{gate}{}", gates(head(item).0));
            match item {
                Item::Use(item) if is_public(&item.vis) => {
                    imports(&item.tree).iter().for_each(|import| self.import(path, import, public, &gate));
                }
                item => {
                    if let Some(name) = public_name(item) {
                        self.item(path, item, &format!("{public}::{name}"), &gate);
                    }
                }
            }
        }
    }

    fn import(&mut self, from: &[String], import: &Import, public: &str, gate: &str) {
        let Some(path) = self.root.resolve(from, &import.path) else {
            let (name, path) = (import.name.as_deref().unwrap_or("*"), import.path.join("::"));
            self.lines.insert(format!("{public}::{name}: pub use {path}{gate}"));
            return;
        };
        match &import.name {
            None => self.module(&path, public, gate),
            Some(name) => self.named(&path, &format!("{public}::{name}"), gate),
        }
    }

    /// Lists what stands at `path`: an item of its module, or a re-export there.
    fn named(&mut self, path: &[String], public: &str, gate: &str) {
        let Some((name, parent)) = path.split_last() else { return };
        let Some(module) = self.root.at(parent) else { return };
        for item in &module.items {
            if public_name(item).as_deref() == Some(name) {
                self.item(parent, item, public, gate);
            } else if let Item::Use(item) = item {
                let found = imports(&item.tree).into_iter().find(|import| import.name.as_ref() == Some(name));
                if let Some(path) = found.and_then(|import| self.root.resolve(parent, &import.path)) {
                    self.named(&path, public, gate);
                }
            }
        }
    }

    fn item(&mut self, parent: &[String], item: &Item, public: &str, gate: &str) {
        match item {
            Item::Mod(item) => {
                self.line(public, "mod", &item.attrs, gate);
                self.module(&[parent, &[item.ident.to_string()]].concat(), public, gate);
            }
            Item::Const(item) => self.line(public, &format!("const {}", text(&item.ty)), &[], gate),
            Item::Static(item) => self.line(public, &format!("static {}", text(&item.ty)), &[], gate),
            Item::Type(item) => {
                self.line(public, &format!("type{} = {}", text(&item.generics), text(&item.ty)), &[], gate);
            }
            Item::Fn(item) => self.line(public, &text(&item.sig), &[], gate),
            Item::Struct(item) => {
                self.line(public, &format!("struct{}", text(&item.generics)), &item.attrs, gate);
                for (at, field) in item.fields.iter().enumerate().filter(|(_, field)| is_public(&field.vis)) {
                    let name = field.ident.as_ref().map_or(at.to_string(), ToString::to_string);
                    let gate = format!("{gate}{}", gates(&field.attrs));
                    self.lines.insert(format!("{public}.{name}: {}{gate}", text(&field.ty)));
                }
                self.impls(&item.ident.to_string(), &item.attrs, public, gate);
            }
            Item::Enum(item) => {
                self.line(public, &format!("enum{}", text(&item.generics)), &item.attrs, gate);
                for variant in &item.variants {
                    let gate = format!("{gate}{}", gates(&variant.attrs));
                    let what = format!("variant{}", fields(&variant.fields));
                    self.line(&format!("{public}::{}", variant.ident), &what, &variant.attrs, &gate);
                }
                self.impls(&item.ident.to_string(), &item.attrs, public, gate);
            }
            Item::Trait(item) => {
                let supertraits = bounds(&item.supertraits);
                self.line(public, &format!("trait{}{supertraits}", text(&item.generics)), &[], gate);
                item.items.iter().for_each(|member| self.trait_member(member, public, gate));
            }
            _ => {}
        }
    }

    fn trait_member(&mut self, member: &TraitItem, public: &str, gate: &str) {
        let (name, what, attrs) = match member {
            TraitItem::Fn(member) => {
                let kind = if member.default.is_some() { "provided" } else { "required" };
                (&member.sig.ident, format!("{kind} {}", text(&member.sig)), &member.attrs)
            }
            TraitItem::Const(member) => (&member.ident, format!("const {}", text(&member.ty)), &member.attrs),
            TraitItem::Type(member) => {
                (&member.ident, format!("type{}", bounds(&member.bounds)), &member.attrs)
            }
            _ => return,
        };
        if !is_hidden(attrs) {
            self.line(&format!("{public}::{name}"), &what, &[], &format!("{gate}{}", gates(attrs)));
        }
    }

    /// The traits that a type implements, and its own methods and constants. Two types of a crate never share a name.
    fn impls(&mut self, name: &str, attrs: &[Attribute], public: &str, gate: &str) {
        let mut traits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for attribute in attrs.iter().filter(|attribute| attribute.path().is_ident("derive")) {
            let Meta::List(list) = &attribute.meta else { continue };
            let derived = tidied(&list.tokens.to_string());
            let derived = derived.split(',').map(str::trim).filter(|name| !name.is_empty());
            traits.entry(gate.to_owned()).or_default().extend(derived.map(str::to_owned));
        }
        let own = |item: &&ItemImpl| {
            let Type::Path(ty) = &*item.self_ty else { return false };
            ty.path.segments.last().is_some_and(|last| last.ident == name)
        };
        for item in self.impls.iter().copied().filter(own).collect::<Vec<_>>() {
            let gate = format!("{gate}{}", gates(&item.attrs));
            if let Some((of, _)) = &item.trait_ {
                traits.entry(gate).or_default().insert(text(of));
                continue;
            }
            for member in &item.items {
                let (vis, name, what, attrs) = match member {
                    ImplItem::Fn(member) => {
                        (&member.vis, &member.sig.ident, text(&member.sig), &member.attrs)
                    }
                    ImplItem::Const(member) => {
                        (&member.vis, &member.ident, format!("const {}", text(&member.ty)), &member.attrs)
                    }
                    _ => continue,
                };
                if is_public(vis) && !is_hidden(attrs) {
                    let gate = format!("{gate}{}", gates(attrs));
                    self.line(&format!("{public}::{name}"), &what, &[], &gate);
                }
            }
        }
        for (gate, traits) in traits {
            let traits = traits.into_iter().collect::<Vec<_>>().join(", ");
            self.line(public, &format!("impl {traits}"), &[], &gate);
        }
    }

    fn line(&mut self, public: &str, what: &str, attrs: &[Attribute], gate: &str) {
        let open = attrs.iter().any(|attribute| attribute.path().is_ident("non_exhaustive"));
        let open = if open { " #[non_exhaustive]" } else { "" };
        self.lines.insert(format!("{public}: {what}{open}{gate}"));
    }
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// The name of a public item that is neither an import nor an impl.
fn public_name(item: &Item) -> Option<String> {
    head(item).1.filter(|(vis, _)| is_public(vis)).map(|(_, name)| name.to_string())
}

/// The conditions of `#[cfg]`, each in brackets.
fn gates(attrs: &[Attribute]) -> String {
    let conditions = attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions
        .filter_map(|attribute| attribute.meta.require_list().ok())
        .map(|list| format!(" [{}]", tidied(&list.tokens.to_string())))
        .collect()
}

fn fields(fields: &Fields) -> String {
    let types = fields.iter().map(|field| match &field.ident {
        Some(name) => format!("{name}: {}", text(&field.ty)),
        None => text(&field.ty),
    });
    let types = types.collect::<Vec<_>>().join(", ");
    match fields {
        Fields::Named(_) => format!(" {{ {types} }}"),
        Fields::Unnamed(_) => format!("({types})"),
        Fields::Unit => String::new(),
    }
}

fn bounds(bounds: &impl ToTokens) -> String {
    let bounds = text(bounds);
    if bounds.is_empty() { bounds } else { format!(": {bounds}") }
}

fn text(tokens: &impl ToTokens) -> String {
    tidied(&tokens.to_token_stream().to_string())
}

/// Removes the spaces that the display of tokens puts between them and a reader does not expect.
fn tidied(tokens: &str) -> String {
    let mut text = tokens.replace("-> (", "->\u{0}(");
    for (spaced, tight) in [
        (" ::", "::"),
        (":: ", "::"),
        (" :", ":"),
        (" ,", ","),
        (" ;", ";"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        ("[ ", "["),
        (" ]", "]"),
        ("& ", "&"),
        ("? ", "?"),
        (",)", ")"),
        (",>", ">"),
    ] {
        text = text.replace(spaced, tight);
    }
    text.replace("->\u{0}(", "-> (")
}
