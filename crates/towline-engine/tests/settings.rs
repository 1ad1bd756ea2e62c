//! Settings as text, and at their bounds: validation refuses a value by name, or a node runs with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::time::Duration;

use crate::common::{DEADLINE, EmptyMachine, TestNode};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, MapDeserializer};
use towline_engine::config::{Config, TIME_MAX};
use towline_engine::node::Consistency;
use towline_engine::units::ByteSize;

const MS: Duration = Duration::from_millis(1);

/// Settings whose largest value is refused, with the setting that the error names.
const REFUSED: &[(&str, &str)] = &[
    ("tick", "tick"),
    ("heartbeat_interval", "heartbeat_interval"),
    ("election_timeout_min", "election_timeout_min"),
    ("election_timeout_max", "election_timeout_max"),
    ("append_bytes_max", "append_bytes_max"),
    ("append_inflight_max", "append_inflight_max"),
    ("proposal_bytes_max", "proposal_bytes_max"),
    ("proposal_timeout", "proposal_timeout"),
    ("read_timeout", "read_timeout"),
    ("lane_dispatch_timeout", "lane_dispatch_timeout"),
    ("lane_connect_timeout", "lane_connect_timeout"),
    ("lane_backoff_min", "lane_backoff_min"),
    ("lane_backoff_max", "lane_backoff_max"),
    ("log_stall_timeout", "log_stall_timeout"),
    ("apply_stall_timeout", "apply_stall_timeout"),
    ("disk_low", "disk_low"),
    ("snapshot_chunk_bytes", "snapshot_chunk_bytes"),
    ("snapshot_offer_timeout", "snapshot_offer_timeout"),
    ("snapshot_progress_timeout", "snapshot_progress_timeout"),
    ("snapshot_phase_timeout", "snapshot_phase_timeout"),
    ("snapshot_backoff_max", "snapshot_backoff_max"),
    ("apply_workers", "apply_workers"),
    ("network_workers", "network_workers"),
];

/// The defaults, with the largest value of its type in one field.
fn largest(field: &str) -> Config {
    fn with<T: IntoDeserializer<'static, Error>>(field: &str, value: T) -> Result<Config, Error> {
        let entries = [(field.to_owned(), value)].into_iter();
        Config::deserialize(MapDeserializer::<_, Error>::new(entries).into_deserializer())
    }
    with(field, u64::MAX)
        .or_else(|_| with(field, format!("{}ns", Duration::MAX.as_nanos())))
        .or_else(|_| with(field, format!("{}B", u64::MAX)))
        .unwrap_or_else(|error| panic!("{field}: {error}"))
}

fn fields() -> Vec<String> {
    let table = toml::Table::try_from(Config::default()).unwrap();
    table.into_iter().filter(|(_, value)| !value.is_bool()).map(|(field, _)| field).collect()
}

#[test]
fn a_time_or_size_is_read_and_written_exactly() {
    let hour = 3_600_000 * MS;
    let times = [
        ("100ms", 100 * MS, "100ms"),
        ("1000 ms", 1_000 * MS, "1s"),
        ("1500ms", 1_500 * MS, "1500ms"),
        ("90s", 90_000 * MS, "90s"),
        ("120s", 120_000 * MS, "2m"),
        ("36h", 36 * hour, "36h"),
        ("365d", TIME_MAX, "365d"),
        ("1us", Duration::from_micros(1), "1us"),
        ("007ns", Duration::from_nanos(7), "7ns"),
        ("0s", Duration::ZERO, "0ns"),
        ("18446744073709551615999999999ns", Duration::MAX, "18446744073709551615999999999ns"),
    ];
    for (read, value, written) in times {
        let config: Config = toml::from_str(&format!("read_timeout = '{read}'")).unwrap();
        assert_eq!(config, Config { read_timeout: value, ..Config::default() });
        let table = toml::Table::try_from(&config).unwrap();
        assert_eq!(table["read_timeout"].as_str(), Some(written));
        assert_eq!(table.try_into(), Ok(config));
    }
    let sizes = [
        ("64MiB", ByteSize::mib(64), "64MiB"),
        ("64 KiB", ByteSize::kib(64), "64KiB"),
        ("1024GiB", ByteSize::gib(1_024), "1TiB"),
        ("1536MiB", ByteSize::mib(1_536), "1536MiB"),
        ("1000000B", ByteSize::bytes(1_000_000), "1000000B"),
        ("0MiB", ByteSize::bytes(0), "0B"),
        ("18446744073709551615B", ByteSize::MAX, "18446744073709551615B"),
    ];
    for (read, value, written) in sizes {
        let config: Config = toml::from_str(&format!("snapshot_bytes_max = '{read}'")).unwrap();
        assert_eq!(config, Config { snapshot_bytes_max: value, ..Config::default() });
        let table = toml::Table::try_from(&config).unwrap();
        assert_eq!(table["snapshot_bytes_max"].as_str(), Some(written));
        assert_eq!(table.try_into(), Ok(config));
        assert_eq!((read.parse(), value.to_string().as_str()), (Ok(value), written));
    }
    let text = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(text.try_into(), Ok(Config::default()));
}

#[test]
fn an_unreadable_time_or_size_is_refused_with_its_field_and_what_is_accepted() {
    let time = "ns, us, ms, s, m, h, d";
    let size = "B, KiB, MiB, GiB, TiB";
    let form = |text: &str, example| format!("{text} is not a whole number and a unit, as in {example:?}");
    for (field, text, cause) in [
        ("tick", "100", format!("100 needs a unit: {time}; as in \"100ms\"")),
        ("tick", "-1", format!("-1 needs a unit: {time}; as in \"100ms\"")),
        ("tick", "'100'", format!("\"100\" needs a unit: {time}; as in \"100ms\"")),
        ("tick", "'100sec'", format!("\"100sec\" has an unknown unit; use {time}")),
        ("tick", "'100MS'", format!("\"100MS\" has an unknown unit; use {time}")),
        ("tick", "''", form("\"\"", "100ms")),
        ("tick", "'ms'", form("\"ms\"", "100ms")),
        ("tick", "'1.5s'", form("\"1.5s\"", "100ms")),
        ("tick", "'-1ms'", form("\"-1ms\"", "100ms")),
        ("tick", "' 1ms'", form("\" 1ms\"", "100ms")),
        ("tick", "'1m30s'", format!("\"1m30s\" has an unknown unit; use {time}")),
        (
            "tick",
            "'213503982334602d'",
            "\"213503982334602d\" is too large; the limit is 213503982334601d".into(),
        ),
        ("snapshot_bytes_max", "64", format!("64 needs a unit: {size}; as in \"64MiB\"")),
        ("snapshot_bytes_max", "'64'", format!("\"64\" needs a unit: {size}; as in \"64MiB\"")),
        ("snapshot_bytes_max", "'64MB'", format!("\"64MB\" has an unknown unit; use {size}")),
        ("snapshot_bytes_max", "'0x40KiB'", format!("\"0x40KiB\" has an unknown unit; use {size}")),
        ("snapshot_bytes_max", "'1_000B'", form("\"1_000B\"", "64MiB")),
        (
            "snapshot_bytes_max",
            "'16777216TiB'",
            "\"16777216TiB\" is too large; the limit is 16777215TiB".into(),
        ),
        (
            "snapshot_bytes_max",
            "'999999999999999999999999999999999999999999B'",
            "\"999999999999999999999999999999999999999999B\" is too large; the limit is 16777215TiB".into(),
        ),
    ] {
        let error = toml::from_str::<Config>(&format!("{field} = {text}")).unwrap_err();
        assert_eq!(error.message(), format!("{field}: {cause}"));
    }
    let error = toml::from_str::<Config>("tick = 1.5").unwrap_err();
    let text = "invalid type: floating point `1.5`, expected text with a unit for tick, as in \"100ms\"";
    assert_eq!(error.message(), text);
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

#[test]
fn a_time_of_zero_is_refused_by_name() {
    let zero = |field: &String| toml::from_str::<Config>(&format!("{field} = '0ms'"));
    let times: Vec<_> = fields().into_iter().filter_map(|field| Some((zero(&field).ok()?, field))).collect();
    assert_eq!(times.len(), 16, "{times:?}");
    // Zero selects the shortest election timeout.
    for (config, field) in times.into_iter().filter(|(_, field)| field != "log_stall_timeout") {
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(error, format!("setting `{field}` is 0ns, but must be at least 1ms"));
    }
}

/// Sums with the longest valid times must not overflow.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_runs_with_the_longest_times() {
    let longest = [
        ("proposal_timeout", TIME_MAX),
        ("read_timeout", TIME_MAX),
        ("lane_dispatch_timeout", TIME_MAX),
        ("lane_connect_timeout", TIME_MAX),
        ("lane_backoff_min", Duration::from_millis(400)),
        ("lane_backoff_max", Duration::from_nanos(999_999_999)),
        ("snapshot_offer_timeout", TIME_MAX),
        ("snapshot_progress_timeout", TIME_MAX),
        ("snapshot_phase_timeout", TIME_MAX),
        ("snapshot_backoff_max", TIME_MAX),
        ("log_stall_timeout", TIME_MAX),
        ("apply_stall_timeout", TIME_MAX),
    ];
    let configs = longest.map(|(field, time)| {
        let with =
            |time: Duration| toml::from_str::<Config>(&format!("{field} = '{}ns'", time.as_nanos())).unwrap();
        let error = with(time + Duration::from_nanos(1)).validate().unwrap_err();
        assert!(error.field == field || error.field == "lane_backoff_max", "{error}");
        (field.to_owned(), with(time))
    });
    run_all(configs.to_vec()).await;
}

/// With each of these settings a node starts, elects, commits, reads and stops.
async fn run_all(settings: Vec<(String, Config)>) {
    let run = |(field, config)| (field, tokio::spawn(run(config)));
    let running: Vec<_> = settings.into_iter().map(run).collect();
    for (field, running) in running {
        let ended = tokio::time::timeout(3 * DEADLINE, running).await;
        ended
            .unwrap_or_else(|_| panic!("{field}: the node hangs"))
            .unwrap_or_else(|error| panic!("{field}: {error}"));
    }
}

async fn run(config: Config) {
    let test = TestNode::start(config).await;
    let group = test.found(1, EmptyMachine::default()).await.unwrap();
    group.wait_leader(Duration::MAX).await.unwrap();
    group.propose("x").await.unwrap();
    group.read(Consistency::Linearizable).await.unwrap();
    let shutdown = test.node.shutdown(Duration::MAX).await;
    assert!(shutdown.is_complete(), "{shutdown:?}");
}
