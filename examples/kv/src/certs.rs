//! Certificates for development.

use std::path::Path;

use towline::dev_certs::{Written, write};

use crate::failure::Failure;

/// Writes the missing files and prints what it did with each.
pub(crate) fn make(dir: &Path, nodes: u64) -> Result<(), Failure> {
    let failed = |error| Failure::run(format!("cannot make certificates in {}", dir.display()), error);
    for file in write(dir, nodes).map_err(failed)? {
        match file {
            Written::Created(path) => eprintln!("created {}", path.display()),
            Written::Kept(path) => eprintln!("kept {}, which was there already", path.display()),
        }
    }
    Ok(())
}
