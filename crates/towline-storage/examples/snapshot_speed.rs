//! Writes a snapshot of 1 GiB through the store, and bare files of as many bytes, one with a single fsync and one that is
//! synced as often as the store does it, in turn; then reads the snapshot back. Arguments: directory, MiB, rounds.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towline_engine::ids::GroupId;
use towline_engine::message::{ConfState, LogId, MemberTable};
use towline_engine::snapshot_store::{SnapshotHead, SnapshotStore};
use towline_storage::DataDir;

const PART_BYTES: usize = 1024 * 1024;
const MIB: usize = 1024;
/// As the store does it.
const SYNC_PARTS: usize = 32;
const ROUNDS: u64 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = root.join(format!("towline-snapshot-speed-{}", std::process::id()));
    let parts = std::env::args().nth(2).map_or(Ok(MIB), |n| n.parse())?;
    let rounds = std::env::args().nth(3).map_or(Ok(ROUNDS), |n| n.parse())?;
    let measured = measure(&root, parts, rounds);
    std::fs::remove_dir_all(&root)?;
    measured
}

fn measure(root: &Path, parts: usize, rounds: u64) -> Result<(), Box<dyn Error>> {
    let files = DataDir::open(root)?.snapshots();
    // Not to be compressed by anything below.
    let mut seed = 1_u64;
    let part: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    })
    .take(PART_BYTES)
    .collect();
    let (mut floors, mut synced_floors) = (Vec::new(), Vec::new());
    let (mut stores, mut reads) = (Vec::new(), Vec::new());
    // In turn, so that both meet the disk in the same mood.
    for round in 0..rounds {
        floors.push(bare(&root.join("floor"), &part, parts, parts)?);
        synced_floors.push(bare(&root.join("floor"), &part, parts, SYNC_PARTS)?);

        let head = SnapshotHead {
            group: GroupId::DEFAULT,
            at: LogId { index: round + 1, term: 1 },
            conf_state: ConfState::default(),
            members: MemberTable::new(),
        };
        let start = Instant::now();
        let mut writer = files.create(&head)?;
        for _ in 0..parts {
            writer.write_all(&part)?;
        }
        let written = start.elapsed();
        writer.verify(None)?;
        let meta = writer.commit()?;
        stores.push(start.elapsed());

        let start = Instant::now();
        let mut reader = files.open(&meta, 0)?;
        while reader.next_part(PART_BYTES)?.is_some() {}
        reads.push(start.elapsed());
        drop(reader);
        files.retain(GroupId::DEFAULT, &[])?;
        let last = |times: &[Duration]| times.last().copied().unwrap_or_default();
        println!(
            "round {}: bare {:.2?}, synced on the way {:.2?}, store {:.2?} ({written:.2?} until verify and commit), cached read {:.2?}",
            round + 1,
            last(&floors),
            last(&synced_floors),
            last(&stores),
            last(&reads)
        );
    }
    let (store, read) = (median(stores), median(reads));
    let (floor, synced_floor) = (median(floors), median(synced_floors));
    let rate = |time: Duration| parts as f64 / time.as_secs_f64();
    let ratio = |floor: Duration| floor.as_secs_f64() / store.as_secs_f64();
    println!(
        "{parts} MiB, median of {rounds}: store {:.0} MiB/s, cached read {:.0} MiB/s",
        rate(store),
        rate(read)
    );
    println!("write+fsync {:.0} MiB/s, ratio {:.2}", rate(floor), ratio(floor));
    println!("synced on the way {:.0} MiB/s, ratio {:.2}", rate(synced_floor), ratio(synced_floor));
    Ok(())
}

/// The time a file takes that is synced after every so many parts and at its end.
fn bare(path: &Path, part: &[u8], parts: usize, sync_parts: usize) -> std::io::Result<Duration> {
    let start = Instant::now();
    let mut file = File::create(path)?;
    for number in 1..=parts {
        file.write_all(part)?;
        if number % sync_parts == 0 {
            file.sync_data()?;
        }
    }
    file.sync_all()?;
    let took = start.elapsed();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
