//! cargo-deny with deny.toml: licenses, bans, sources, yanked versions, and advisories if their database is reachable.
//!
//! git's `url.<mirror>.insteadOf` names a mirror of the database.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, cargo};

const FETCH_DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The default database of cargo-deny.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// An advisory that matches nothing. cargo-deny finds yanked versions only with a database, which must not be empty.
const PLACEHOLDER: &str = "\
```toml
[advisory]
id = \"RUSTSEC-2000-0001\"
package = \"no-such-package\"
date = \"2000-01-01\"

[versions]
patched = []
```

# A placeholder
";

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    All,
    AllButAdvisories,
}

pub(crate) fn run(root: &Path) -> Result<Checked> {
    cargo::run(root, &["deny", "--all-features", "check", "bans", "licenses", "sources"], &[])?;
    let mut fetch = cargo::command(root, &["deny", "fetch", "db"]);
    fetch.env("GIT_TERMINAL_PROMPT", "0");
    if finishes(fetch.stdin(Stdio::null()).spawn()?, FETCH_DEADLINE)? {
        cargo::run(root, &["deny", "--all-features", "check", "advisories"], &[])?;
        return Ok(Checked::All);
    }
    println!("the advisory database cannot be fetched: yanked versions are checked, advisories are not");
    yanked(root)?;
    Ok(Checked::AllButAdvisories)
}

/// Whether a process succeeds before the deadline.
fn finishes(mut process: Child, deadline: Duration) -> Result<bool> {
    let started = Instant::now();
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(status.success());
        }
        if started.elapsed() > deadline {
            process.kill()?;
            process.wait()?;
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Checks for yanked versions, with a database whose only advisory is the placeholder.
fn yanked(root: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let database = directory.path().join("placeholder");
    let entry = database.join("crates/no-such-package");
    fs::create_dir_all(&entry)?;
    fs::write(entry.join("RUSTSEC-2000-0001.md"), PLACEHOLDER)?;
    for arguments in [
        &["init", "--quiet", "--initial-branch", "main"][..],
        &["add", "--all"],
        &[
            "-c",
            "user.name=ci",
            "-c",
            "user.email=ci@localhost",
            "commit",
            "--quiet",
            "--message",
            "Placeholder",
        ],
    ] {
        let status = Command::new("git").current_dir(&database).args(arguments).status()?;
        if !status.success() {
            return Err(format!("`git {}` ended with {status}", arguments.join(" ")).into());
        }
    }
    // Keeps the placeholder out of the directory of the real database.
    let section = "[advisories]\n";
    let text = fs::read_to_string(root.join("deny.toml"))?;
    let place = directory.path().join("databases");
    let text = text.replacen(section, &format!("{section}db-path = {place:?}\n"), 1);
    let config = directory.path().join("deny.toml");
    fs::write(&config, text)?;
    let config = config.to_str().ok_or("the temporary directory has no UTF-8 name")?;
    // The placeholder matches none of the exceptions in deny.toml, which is no error here.
    let check = ["deny", "--log-level", "error", "--all-features", "--config", config, "check", "advisories"];
    let instead = format!("url.{}.insteadOf", database.display());
    cargo::run(
        root,
        &[&check[..], &["--allow", "advisory-not-detected", "--allow", "unknown-advisory"]].concat(),
        &[("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", &instead), ("GIT_CONFIG_VALUE_0", DATABASE)],
    )
}
