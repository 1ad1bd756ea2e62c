//! Certificates for development.

use std::path::Path;

use towline::dev_certs::{Written, write};

use crate::Failure;
use crate::cli::Certs;

/// Writes what is missing, and says of each file what became of it.
pub(crate) fn run(args: &Certs) -> Result<(), Failure> {
    make(&args.dir, args.nodes)
}

pub(crate) fn make(dir: &Path, nodes: u64) -> Result<(), Failure> {
    let failed = |e| Failure::run(format!("cannot make certificates in {}", dir.display()), e);
    for file in write(dir, nodes).map_err(failed)? {
        match file {
            Written::Created(path) => eprintln!("created {}", path.display()),
            Written::Kept(path) => eprintln!("kept {}, which was there already", path.display()),
        }
    }
    Ok(())
}
