//! The tables of tidy. A change of a row changes the architecture (docs/architecture.md).

/// The dependencies within the workspace that a crate may have.
pub(super) struct Layer {
    pub(super) name: &'static str,
    pub(super) normal: &'static [&'static str],
    /// In tests, beyond `normal`.
    pub(super) dev: &'static [&'static str],
    /// Whether the crate may enable `driver` of towline-engine. Transports and stores know the seams only.
    pub(super) driver: bool,
}

const fn layer(name: &'static str, normal: &'static [&'static str]) -> Layer {
    Layer { name, normal, dev: &[], driver: false }
}

pub(super) const ENGINE: &str = "towline-engine";

pub(super) const LAYERS: &[Layer] = &[
    layer("towline-metrics", &[]),
    layer(ENGINE, &["towline-metrics"]),
    layer("towline-wire", &[ENGINE]),
    layer("towline-tls", &[ENGINE]),
    layer("towline-grpc", &[ENGINE, "towline-wire", "towline-tls"]),
    layer("towline-quic", &[ENGINE, "towline-wire", "towline-tls"]),
    layer("towline-storage", &[ENGINE]),
    Layer {
        name: "towline-testkit",
        normal: &[ENGINE],
        dev: &[
            "towline-metrics",
            "towline-wire",
            "towline-tls",
            "towline-grpc",
            "towline-quic",
            "towline-storage",
        ],
        driver: true,
    },
    Layer {
        name: "towline",
        normal: &[
            "towline-metrics",
            ENGINE,
            "towline-wire",
            "towline-tls",
            "towline-grpc",
            "towline-quic",
            "towline-storage",
        ],
        dev: &["towline-testkit"],
        driver: true,
    },
    // The view of an author of a transport.
    Layer {
        name: "towline-custom-transport",
        normal: &[ENGINE, "towline-wire"],
        dev: &["towline-testkit"],
        driver: false,
    },
    layer("towline-tools", &[]),
    layer("xtask", &[]),
];

/// Examples depend on the facade, and on the testkit in tests.
pub(super) const EXAMPLE: Layer =
    Layer { name: "examples", normal: &["towline"], dev: &["towline-testkit"], driver: false };

/// Dependencies that only the named crates may have, except in tests.
pub(super) const CONFINED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("raft", &[ENGINE, "towline-storage"]),
    ("protobuf", &[ENGINE, "towline-storage"]),
    ("raft-engine", &["towline-storage"]),
    ("tonic", &["towline-grpc"]),
    ("quinn", &["towline-quic"]),
    ("rustls", &["towline-tls"]),
    ("rustls-webpki", &["towline-tls"]),
    ("rcgen", &["towline-tls"]),
    ("tokio-rustls", &["towline-grpc"]),
];

/// Words that only files whose path begins with an entry of `allowed`, and tests, may contain.
pub(super) struct Confined {
    pub(super) rule: &'static str,
    pub(super) words: &'static [&'static str],
    pub(super) allowed: &'static [&'static str],
    pub(super) why: &'static str,
}

pub(super) const CONFINED_WORDS: &[Confined] = &[
    Confined {
        rule: "raft-types",
        words: &["raft::", "use raft", "eraftpb", "extern crate raft"],
        allowed: &["crates/towline-engine/src/core/raft", "crates/towline-storage/src/codec.rs"],
        why: "an upgrade of raft touches one module of the engine and one of the storage",
    },
    Confined {
        rule: "raft-engine-types",
        words: &["raft_engine::"],
        allowed: &["crates/towline-storage/src/"],
        why: "only the storage crate knows the library of the durable log",
    },
];

/// Words that must not occur in the named places.
pub(super) struct Absent {
    pub(super) rule: &'static str,
    pub(super) places: &'static [&'static str],
    pub(super) words: &'static [&'static str],
    pub(super) why: &'static str,
}

pub(super) const ABSENT_WORDS: &[Absent] = &[
    Absent {
        rule: "sans-io",
        places: &["crates/towline-engine/src/lanes/policy"],
        words: &[
            "tokio",
            "Instant::now",
            "SystemTime",
            "std::thread",
            "thread::spawn",
            "std::net",
            "std::fs",
        ],
        why: "the policy knows no runtime, clock, thread, socket or file: time is an argument",
    },
    Absent {
        rule: "pure",
        places: &["crates/towline-engine/src/core/"],
        words: &[
            "tokio",
            "Instant",
            "SystemTime",
            "thread",
            "std::net",
            "std::fs",
            "Mutex",
            "RwLock",
            "Condvar",
            "atomic",
            "AtomicBool",
            "AtomicU64",
            "AtomicUsize",
            "Waker",
            "Mailbox",
            "Reporter",
            "SnapshotTicket",
        ],
        why: "the core has no clock, thread, lock, socket or file, and shares nothing: inputs in, effects out",
    },
];

/// Files that forward log lines of a library, and the target of these lines.
pub(super) const LOG_BRIDGES: &[(&str, &str)] = &[
    ("crates/towline-engine/src/core/raft/logger.rs", "raft"),
    ("crates/towline-storage/src/log_bridge.rs", "raft_engine"),
];

/// Names that name no concept.
pub(super) const FORBIDDEN_STEMS: &[&str] = &["util", "utils", "misc", "manager", "helper", "helpers"];

pub(super) const FILE_LINES_MAX: usize = 800;

/// Files that may be longer, each with a reason.
pub(super) const LONG_FILES: &[(&str, &str)] = &[];

/// The directory of generated code.
pub(super) const GENERATED: &str = "/src/gen/";

/// Begins the reason of a sleep in a test.
pub(super) const SLEEP_REASON: &str = "// not synchronisation: ";
