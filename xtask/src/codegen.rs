//! `cargo xtask codegen`: generates the messages of towline-wire from the protobuf schema, without protoc.
//!
//! The messages are committed, so a build generates nothing. towline-grpc makes its one call itself and needs no stubs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

#[derive(clap::Args)]
pub(crate) struct CodegenOptions {
    /// Compare with what is committed and write nothing
    #[arg(long)]
    check: bool,
}

const SCHEMA: &str = "crates/towline-wire/proto";
const MESSAGES: &str = "crates/towline-wire/src/gen";

pub(crate) fn run(root: &Path, options: &CodegenOptions) -> Result<()> {
    check_or_write(root, options.check)
}

pub(crate) fn check_or_write(root: &Path, check: bool) -> Result<()> {
    let (generated, directory) = (generate(root)?, root.join(MESSAGES));
    let committed = committed(&directory)?;
    let different = differences(MESSAGES, &committed, &generated);
    if !check {
        write(&directory, &committed, &generated)?;
    }
    match (different.is_empty(), check) {
        (true, _) => println!("codegen: {} files, as committed", generated.len()),
        (false, false) => different.iter().for_each(|line| println!("wrote {line}")),
        (false, true) => {
            return Err(format!(
                "generated code differs from the schema; run `cargo xtask codegen`:\n{}",
                different.join("\n")
            )
            .into());
        }
    }
    Ok(())
}

/// File name to text.
type Files = BTreeMap<String, String>;

fn generate(root: &Path) -> Result<Files> {
    let schema = root.join(SCHEMA);
    let protos = protos(&schema)?;
    let descriptors = protox::compile(&protos, [&schema]).map_err(|error| format!("{SCHEMA}: {error}"))?;
    let scratch = tempfile::tempdir()?;
    prost_build::Config::new()
        // `Bytes`: a payload shares the memory of its received frame.
        .bytes(["."])
        .out_dir(scratch.path())
        .compile_fds(descriptors)
        .map_err(|error| format!("{MESSAGES}: {error}"))?;
    format(root, scratch.path())?;
    committed(scratch.path())
}

/// Every schema file, relative to its include path, sorted.
fn protos(schema: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![schema.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(&directory)
            .map_err(|error| format!("no schema to generate from: {}: {error}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension() == Some(OsStr::new("proto")) {
                found.push(path.strip_prefix(schema)?.to_path_buf());
            }
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(format!("no schema to generate from: no .proto file under {SCHEMA}").into());
    }
    Ok(found)
}

fn format(root: &Path, directory: &Path) -> Result<()> {
    let files: Vec<PathBuf> = committed(directory)?.keys().map(|name| directory.join(name)).collect();
    let status = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(root.join("rustfmt.toml"))
        .args(files)
        .status()
        .map_err(|error| format!("rustfmt: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("rustfmt ended with {status}").into()) }
}

/// The Rust files of a directory, if it exists, without a hand-written mod.rs.
fn committed(directory: &Path) -> Result<Files> {
    let mut files = Files::new();
    if !directory.is_dir() {
        return Ok(files);
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension() == Some(OsStr::new("rs")) && name != "mod.rs" {
            files.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(files)
}

/// One line per file that is missing, left over or different.
fn differences(directory: &str, committed: &Files, generated: &Files) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, text) in generated {
        match committed.get(name) {
            None => lines.push(format!("{directory}/{name}: missing")),
            Some(old) if old != text => {
                let same = old.lines().zip(text.lines()).take_while(|(old, new)| old == new).count();
                lines.push(format!(
                    "{directory}/{name}:{}: committed `{}`, generated `{}`",
                    same + 1,
                    old.lines().nth(same).unwrap_or("end of file").trim(),
                    text.lines().nth(same).unwrap_or("end of file").trim(),
                ));
            }
            Some(_) => {}
        }
    }
    let left_over = committed.keys().filter(|name| !generated.contains_key(*name));
    lines.extend(left_over.map(|name| format!("{directory}/{name}: no schema generates it")));
    lines
}

fn write(directory: &Path, committed: &Files, generated: &Files) -> Result<()> {
    fs::create_dir_all(directory)?;
    for (name, text) in generated {
        if committed.get(name) != Some(text) {
            fs::write(directory.join(name), text)?;
        }
    }
    for name in committed.keys().filter(|name| !generated.contains_key(*name)) {
        fs::remove_file(directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str = "syntax = \"proto3\";\npackage towline.v1;\n\
        message Frame { uint64 group = 1; bytes payload = 2; }\n\
        service Transport { rpc Lane(stream Frame) returns (stream Frame); }\n";

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let schema = root.path().join(SCHEMA).join("towline/v1");
        fs::create_dir_all(&schema).unwrap();
        fs::write(schema.join("transport.proto"), PROTO).unwrap();
        fs::write(root.path().join("rustfmt.toml"), "max_width = 110\n").unwrap();
        root
    }

    #[test]
    fn messages_are_written_without_stubs_and_check_accepts_what_was_written() {
        let root = tree();
        check_or_write(root.path(), false).unwrap();
        let messages = fs::read_to_string(root.path().join(MESSAGES).join("towline.v1.rs")).unwrap();
        assert!(messages.contains("pub struct Frame") && messages.contains("bytes::Bytes"), "{messages}");
        assert!(!messages.contains("mod transport_server"), "{messages}");
        check_or_write(root.path(), true).unwrap();
    }

    #[test]
    fn check_fails_on_a_changed_a_missing_and_a_left_over_file_and_writes_nothing() {
        let root = tree();
        let missing = check_or_write(root.path(), true).unwrap_err().to_string();
        assert!(missing.contains("towline.v1.rs: missing"), "{missing}");
        assert!(!root.path().join(MESSAGES).exists());

        check_or_write(root.path(), false).unwrap();
        let path = root.path().join(MESSAGES).join("towline.v1.rs");
        let edited = fs::read_to_string(&path).unwrap().replace("payload", "body");
        fs::write(&path, &edited).unwrap();
        let changed = check_or_write(root.path(), true).unwrap_err().to_string();
        assert!(changed.contains("committed `") && changed.contains("body"), "{changed}");
        assert_eq!(fs::read_to_string(&path).unwrap(), edited);

        check_or_write(root.path(), false).unwrap();
        fs::write(root.path().join(MESSAGES).join("old.v1.rs"), "").unwrap();
        let left_over = check_or_write(root.path(), true).unwrap_err().to_string();
        assert!(left_over.contains("old.v1.rs: no schema generates it"), "{left_over}");
    }

    #[test]
    fn a_tree_without_a_schema_says_so() {
        let root = tempfile::tempdir().unwrap();
        let error = check_or_write(root.path(), true).unwrap_err().to_string();
        assert!(error.contains("no schema to generate from"), "{error}");
    }
}
