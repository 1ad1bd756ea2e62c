//! The table of names, compared with the registered handles and with docs/operations.md.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::Memory;
use metrics::Unit;
use towline_metrics::NodeMetrics;
use towline_metrics::labels::{self, *};
use towline_metrics::names::{self, Kind};

#[test]
fn names_are_distinct_and_follow_the_conventions() {
    let mut seen = BTreeSet::new();
    for metric in names::ALL {
        let name = metric.name;
        assert!(seen.insert(name), "two rows: {name}");
        assert!(name.starts_with("towline_"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        let base = name.trim_end_matches("_total");
        assert_eq!(base.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
        assert_eq!(base.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
        assert!(metric.description.ends_with('.'), "{name}");
    }
}

#[test]
fn the_handles_register_exactly_the_table() {
    let memory = Memory::new();
    let node = NodeMetrics::new(7, Some(memory.shared()));
    let _ = (node.peer(2, "grpc"), node.group(1));
    let recorded = memory.recorded();
    let table: BTreeMap<_, _> = names::ALL.iter().map(|metric| (metric.name, metric)).collect();
    let mut registered = BTreeSet::new();
    for (series, (kind, name, label_names)) in &recorded.kinds {
        let row = table.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table"));
        let expected: Vec<_> = std::iter::once(labels::NODE).chain(row.labels.iter().copied()).collect();
        assert_eq!(*kind, row.kind, "{series}");
        assert_eq!(*label_names, expected, "{series}");
        assert!(series.contains("{node=7"), "{series}");
        registered.insert(name.as_str());
    }
    let described: BTreeSet<_> = recorded.described.keys().map(String::as_str).collect();
    assert_eq!(registered, table.keys().copied().collect(), "registered against the table");
    assert_eq!(described, registered, "described against registered");
    for (name, (kind, unit, text)) in &recorded.described {
        let row = table[name.as_str()];
        assert_eq!((*kind, *unit, text.as_str()), (row.kind, Some(row.unit), row.description), "{name}");
    }
}

#[test]
fn label_values_are_distinct_within_their_set() {
    fn check(set: &str, values: Vec<&'static str>) {
        let distinct: BTreeSet<_> = values.iter().collect();
        assert_eq!(distinct.len(), values.len(), "{set}");
        for value in &values {
            assert!(value.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{set} {value}");
            assert_ne!(*value, labels::OTHER, "{set}");
        }
    }
    macro_rules! check_all {
        ($($set:ident),+) => { $(check(stringify!($set), $set::ALL.iter().map(|v| v.as_str()).collect());)+ };
    }
    check_all!(Lane, Direction, DropReason, ReportKind, ReportOutcome, RejectCause, ProposalOutcome);
    check_all!(SnapshotOutcome, ReadOutcome, Table, NackDropReason, WaitKind);
    let codes: Vec<_> = GroupRole::ALL.iter().map(|role| role.code()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5]);
}

/// The metrics in the tables of docs/operations.md, with the labels of each row.
fn rows_for_operators() -> Option<BTreeMap<String, Vec<String>>> {
    // Not part of the package.
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md")).ok()?;
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `towline_")) {
        let cells: Vec<_> = line.split('|').collect();
        let name = quoted(cells[1]).remove(0);
        assert!(rows.insert(name, quoted(cells[2])).is_none(), "two rows: {line}");
    }
    Some(rows)
}

#[test]
fn the_page_for_operators_explains_exactly_the_metrics() {
    let Some(mut rows) = rows_for_operators() else { return };
    // The example tests its own metrics.
    rows.retain(|name, _| !name.starts_with("towline_kv_"));
    let labels = |metric: &names::Metric| metric.labels.iter().map(|label| (*label).to_owned()).collect();
    let table = names::ALL.iter().map(|metric| (metric.name.to_owned(), labels(metric))).collect();
    assert_eq!(rows, table);
}
