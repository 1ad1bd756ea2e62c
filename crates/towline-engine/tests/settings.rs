//! The largest value of every setting: it is refused by name, or a node runs with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::time::Duration;

use crate::common::{Alone, DEADLINE, Machine, address, id};
use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error, MapDeserializer};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::node::{Consistency, Start};

/// Settings that are refused at their largest value, with the setting that the error names.
const REFUSED: &[(&str, &str)] = &[
    ("tick_ms", "tick_ms"),
    ("heartbeat_ticks", "election_ticks_min"),
    ("election_ticks_min", "election_ticks_max"),
    ("election_ticks_max", "election_ticks_max"),
    ("append_bytes_max", "append_bytes_max"),
    ("append_inflight_max", "append_inflight_max"),
    ("proposal_bytes_max", "proposal_bytes_max"),
    ("proposal_timeout_ms", "proposal_timeout_ms"),
    ("read_timeout_ms", "read_timeout_ms"),
    ("lane_dispatch_timeout_ms", "lane_dispatch_timeout_ms"),
    ("lane_connect_timeout_ms", "lane_connect_timeout_ms"),
    ("lane_backoff_min_ms", "lane_backoff_min_ms"),
    ("lane_backoff_max_ms", "lane_backoff_max_ms"),
    ("snapshot_chunk_bytes", "snapshot_chunk_bytes"),
    ("snapshot_offer_timeout_ms", "snapshot_offer_timeout_ms"),
    ("snapshot_progress_timeout_ms", "snapshot_progress_timeout_ms"),
    ("snapshot_phase_timeout_ms", "snapshot_phase_timeout_ms"),
    ("snapshot_backoff_max_ms", "snapshot_backoff_max_ms"),
    ("apply_workers", "apply_workers"),
    ("network_workers", "network_workers"),
];

/// The defaults, but for one number that is as large as its type allows.
fn largest(field: &str) -> Config {
    let with = |value: u64| {
        let entries = [(field.to_owned(), value)].into_iter();
        Config::deserialize(MapDeserializer::<_, Error>::new(entries).into_deserializer())
    };
    with(u64::MAX).or_else(|_| with(u32::MAX.into())).unwrap_or_else(|error| panic!("{field}: {error}"))
}

fn fields() -> Vec<String> {
    let table = toml::Table::try_from(Config::default()).unwrap();
    table.into_iter().filter(|(_, value)| value.is_integer()).map(|(field, _)| field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_value_of_every_setting_is_refused_by_name_or_a_node_runs_with_it() {
    let (fields, mut refused, mut accepted) = (fields(), Vec::new(), Vec::new());
    assert!(fields.len() > 40, "{fields:?}");
    for field in &fields {
        let config = largest(field);
        match config.clone().validate() {
            Err(error) => refused.push((field.as_str(), error.field)),
            Ok(_) => accepted.push((field.clone(), config)),
        }
    }
    run_all(accepted).await;
    refused.sort_unstable();
    let mut expected = REFUSED.to_vec();
    expected.sort_unstable();
    assert_eq!(refused, expected);
}

/// The largest that are accepted: nothing that is added to them may overflow.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_runs_with_the_longest_times() {
    let times = fields().into_iter().filter(|field| field.ends_with("_ms") && field != "tick_ms");
    let longest = times.map(|field| {
        let with = |value: u64| toml::from_str::<Config>(&format!("{field} = {value}")).unwrap();
        let (mut low, mut high) = (0, i64::MAX as u64);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match with(middle).validate() {
                Ok(_) => low = middle,
                Err(_) => high = middle - 1,
            }
        }
        let config = with(low);
        (field, config)
    });
    run_all(longest.collect()).await;
}

/// With each of these settings a node starts, decides, reads, and ends.
async fn run_all(settings: Vec<(String, Config)>) {
    let run = |(field, config)| (field, tokio::spawn(run(config)));
    let running: Vec<_> = settings.into_iter().map(run).collect();
    for (field, running) in running {
        let ended = tokio::time::timeout(3 * DEADLINE, running).await;
        ended
            .unwrap_or_else(|_| panic!("{field}: it hangs"))
            .unwrap_or_else(|error| panic!("{field}: {error}"));
    }
}

async fn run(config: Config) {
    let alone = Alone::start(config).await;
    let group = alone.node.group(GroupId::DEFAULT, Machine::default());
    let group = group.start(Start::Bootstrap(vec![(id(1), address(1))])).await.unwrap();
    group.wait_leader(Duration::MAX).await.unwrap();
    group.propose("x").await.unwrap();
    group.read(Consistency::Linearizable).await.unwrap();
    let shutdown = alone.node.shutdown(Duration::MAX).await;
    assert!(shutdown.is_complete(), "{shutdown:?}");
}
