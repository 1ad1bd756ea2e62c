//! Runs cargo in the workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;

/// Has clippy compile the crates of this workspace, warnings denied. A call without it, or with other flags, would build them
/// again.
pub(crate) const LINTED: &[(&str, &str)] =
    &[("RUSTC_WORKSPACE_WRAPPER", "clippy-driver"), ("CLIPPY_ARGS", "-Dwarnings")];

/// Runs cargo with its output on ours.
pub(crate) fn run(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let status = command(root, arguments).envs(environment.iter().copied()).stdin(Stdio::null()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`cargo {}` ended with {status}", arguments.join(" ")).into())
    }
}

/// Runs cargo and returns its standard output; the error text holds its standard error.
pub(crate) fn captured(root: &Path, arguments: &[&str]) -> Result<String> {
    output(command(root, arguments), arguments)
}

/// Runs cargo with [`LINTED`] and its standard error on ours, and returns its standard output.
pub(crate) fn captured_stdout(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = command(root, arguments);
    command.envs(LINTED.iter().copied()).stderr(Stdio::inherit());
    output(command, arguments)
}

fn output(mut command: Command, arguments: &[&str]) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`cargo {}` ended with {}: {said}", arguments.join(" "), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set by the cargo that runs xtask; inherited, they would make the inner cargo rebuild crates that read them.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(variable);
    }
    command.current_dir(root).args(arguments);
    command
}

/// The target directory, by environment and configuration.
pub(crate) fn target_directory(root: &Path) -> Result<PathBuf> {
    let metadata = captured(root, &["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let directory = metadata.get("target_directory").and_then(Value::as_str);
    Ok(directory.ok_or("cargo metadata names no target directory")?.into())
}
