//! Measures the median time of a durable append, and of a bare write and fdatasync of as many bytes in the same run.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towline_engine::ids::GroupId;
use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
use towline_engine::message::Entry;
use towline_storage::DataDir;

const APPENDS: usize = 200;
const ENTRY_BYTES: usize = 256;
/// The bare file is allocated ahead, like the files of the log.
const ALLOCATED_BYTES: u64 = 64 * 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("towline-append-latency-{}", std::process::id()));
    let measured = measure(&root);
    std::fs::remove_dir_all(&root)?;
    measured
}

fn measure(root: &Path) -> Result<(), Box<dyn Error>> {
    let dir = DataDir::open(root)?;
    let log = dir.log();
    let mut floor = File::create(root.join("floor"))?;
    floor.set_len(ALLOCATED_BYTES)?;
    floor.sync_all()?;
    let mut index = 0;
    for entries in [1_usize, 64] {
        let (mut appends, mut floors) = (Vec::new(), Vec::new());
        let bytes = vec![0xa5; entries * ENTRY_BYTES];
        // In turn, so that both see the same disk.
        for _ in 0..APPENDS {
            let mut batch = LogBatch {
                writes: vec![GroupWrite {
                    entries: (0..entries as u64)
                        .map(|n| Entry {
                            index: index + n + 1,
                            term: 1,
                            data: vec![0xa5; ENTRY_BYTES].into(),
                            ..Entry::default()
                        })
                        .collect(),
                    ..GroupWrite::new(GroupId::DEFAULT)
                }],
            };
            index += entries as u64;
            let start = Instant::now();
            log.append(&mut batch)?;
            appends.push(start.elapsed());
            let start = Instant::now();
            floor.write_all(&bytes)?;
            floor.sync_data()?;
            floors.push(start.elapsed());
        }
        let (append, floor) = (median(appends), median(floors));
        let ratio = append.as_secs_f64() / floor.as_secs_f64();
        println!(
            "{entries:>2} x {ENTRY_BYTES} B: append {append:?}, write+fdatasync {floor:?}, ratio {ratio:.2}"
        );
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
