//! Label names, and the closed sets of label values.
//!
//! Each enum here is the full set of values its label can take, so the number of series a node can make
//! is known in advance. `as_str()` is the value as it appears in the metric; changing one breaks
//! dashboards and is a breaking change.

/// Label on every metric: the id of the node that counted.
pub const NODE: &str = "node";
/// Label: the id of the other node, or [`OTHER`].
pub const PEER: &str = "peer";
/// Label: the transport's scheme, such as `grpc`, or [`OTHER`].
pub const TRANSPORT: &str = "transport";
/// Label: the id of the Raft group, or [`OTHER`].
pub const GROUP: &str = "group";
/// Label with the values of [`Lane`].
pub const LANE: &str = "lane";
/// Label with the values of [`DropReason`] or [`NackDropReason`]: which one depends on the metric.
pub const REASON: &str = "reason";
/// Label with the values of [`ReportKind`].
pub const KIND: &str = "kind";
/// Label with the values of an outcome enum: which one depends on the metric.
pub const OUTCOME: &str = "outcome";
/// Label with the values of [`Direction`].
pub const DIRECTION: &str = "direction";
/// Label with the values of [`RejectCause`] or [`WaitKind`]: which one depends on the metric.
pub const CAUSE: &str = "cause";
/// Label with the values of [`Table`].
pub const TABLE: &str = "table";

/// Value of an id label where no single id applies: an unknown peer, or one past the bound of its table.
pub const OTHER: &str = "other";

/// What the handle tables need of a closed label set. Positions are `0..ALL.len()`, in the order of `ALL`.
pub(crate) trait Closed: Copy + 'static {
    const LABEL: &'static str;
    const VALUES: &'static [Self];
    fn value(self) -> &'static str;
    fn position(self) -> usize;
}

macro_rules! closed {
    ($(#[$outer:meta])* $name:ident in $label:ident { $($(#[$inner:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$inner])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The label value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Closed for $name {
            const LABEL: &'static str = $label;
            const VALUES: &'static [Self] = Self::ALL;

            fn value(self) -> &'static str {
                self.as_str()
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    };
}

closed! {
    /// One of the separate streams between two nodes.
    Lane in LANE {
        /// Heartbeats, votes, read-index.
        Control = "control",
        /// Log entries and their answers.
        Append = "append",
        /// Snapshot transfers.
        Snapshot = "snapshot",
    }
}

closed! {
    /// The direction of a transfer, seen from the node that counts.
    Direction in DIRECTION {
        /// From this node to the peer.
        Sent = "sent",
        /// From the peer to this node.
        Received = "received",
    }
}

closed! {
    /// Why an outgoing message was dropped before it could reach the peer.
    DropReason in REASON {
        /// The lane's queue was at its bound in messages or bytes.
        QueueFull = "queue_full",
        /// A newer control message of the same group and kind replaced it.
        Superseded = "superseded",
        /// The lane had no link, or the link ended after it accepted the message.
        LinkDown = "link_down",
        /// The transport refused the batch.
        DispatchFailed = "dispatch_failed",
        /// Flow control did not accept the batch before the dispatch deadline.
        DispatchTimeout = "dispatch_timeout",
        /// No address is known for the peer.
        UnknownPeer = "unknown_peer",
        /// The node is stopping.
        Shutdown = "shutdown",
    }
}

closed! {
    /// Why a nack was not sent to the peer.
    NackDropReason in REASON {
        /// The queue of nacks that wait for the peer's next append was full.
        LateFull = "late_full",
        /// The transport's answer queue was full: the peer does not read its nacks.
        NoRoom = "no_room",
    }
}

closed! {
    /// The content of a report to Raft.
    ReportKind in KIND {
        /// A peer is unreachable.
        Unreachable = "unreachable",
        /// A snapshot attempt succeeded.
        SnapshotFinish = "snapshot_finish",
        /// A snapshot attempt failed.
        SnapshotFailure = "snapshot_failure",
    }
}

closed! {
    /// The outcome of a report.
    ReportOutcome in OUTCOME {
        /// Raft received the report.
        Applied = "applied",
        /// The report came too late: the attempt has ended, or this node does not lead.
        Stale = "stale",
        /// A report of the same kind about this peer and group was already waiting.
        Coalesced = "coalesced",
        /// The mailbox was closed.
        AfterClose = "after_close",
        /// The watchdog made the report because none had come.
        Synthesized = "synthesized",
        /// The peer is not a member.
        UnknownPeer = "unknown_peer",
    }
}

closed! {
    /// Why a message, hello or connection from the network was refused.
    RejectCause in CAUSE {
        /// The sender belongs to another cluster.
        WrongCluster = "wrong_cluster",
        /// It was addressed to another node.
        WrongNode = "wrong_node",
        /// The sender is no known member.
        UnknownPeer = "unknown_peer",
        /// The sender's incarnation differs from the one on record: its disk was wiped or replaced.
        WrongIncarnation = "wrong_incarnation",
        /// No such group on this node.
        UnknownGroup = "unknown_group",
        /// A message type that no peer may send, or not on this lane.
        NotAllowedKind = "not_allowed_kind",
        /// A term that no correct peer sends.
        BadTerm = "bad_term",
        /// A term that exceeds the group's by more than one message may raise it.
        TermJump = "term_jump",
        /// Entries that are not contiguous or do not follow their previous index.
        BadEntries = "bad_entries",
        /// A commit index beyond the log.
        BadCommit = "bad_commit",
        /// A term older than the group's.
        StaleTerm = "stale_term",
        /// A read-index message without its context.
        EmptyReadIndex = "empty_read_index",
        /// A read-index message that is a repetition, or older than one already received.
        RepeatedReadIndex = "repeated_read_index",
        /// A request that only a leader can serve.
        NotLeader = "not_leader",
        /// The group's inbox was at its bound.
        InboxFull = "inbox_full",
        /// Commands of a leader, but the disk of this node is low.
        DiskFull = "disk_full",
        /// The group is stopped or quarantined.
        GroupDown = "group_down",
        /// The node gives or counts no vote: it restarted lately, or a founder of a group that never committed objects or has
        /// not shown its list.
        Quiet = "quiet",
        /// Bytes that do not decode.
        Malformed = "malformed",
        /// A frame above its size limit.
        Oversized = "oversized",
        /// A protocol version this node does not speak.
        Version = "version",
        /// The peer did not prove who it is.
        Unauthenticated = "unauthenticated",
        /// The peer showed no certificate.
        CertificateMissing = "certificate_missing",
        /// No trusted authority has signed the peer's certificate.
        CertificateUnknownAuthority = "certificate_unknown_authority",
        /// The peer's certificate is not valid now.
        CertificateExpired = "certificate_expired",
        /// The peer's certificate names no node.
        CertificateNode = "certificate_node",
        /// The peer's certificate is unusable for another reason.
        CertificateInvalid = "certificate_invalid",
        /// The peer refused this node's certificate.
        OwnCertificate = "own_certificate",
        /// The sender founded the group with another list of founders.
        FoundedDifferently = "founded_differently",
        /// The bound on connections was reached.
        TooManyConnections = "too_many_connections",
        /// The handshake did not complete in time.
        HandshakeTimeout = "handshake_timeout",
        /// This node is stopping, or cannot persist the identity of the peer.
        ShuttingDown = "shutting_down",
    }
}

closed! {
    /// The one thing that a group waits for, on this node or on a peer.
    WaitKind in CAUSE {
        /// The group is out of service on this node.
        Down = "down",
        /// A write of the log has not completed.
        LogWrite = "log_write",
        /// The state machine has not restored a received snapshot.
        Install = "install",
        /// Too few voters were heard of.
        NoQuorum = "no_quorum",
        /// An election has no winner yet.
        Election = "election",
        /// No leader is known, and this node has not campaigned.
        NoLeader = "no_leader",
        /// Disks have too little room for commands.
        DiskFull = "disk_full",
        /// A quorum has not acknowledged the end of the log.
        Commit = "commit",
        /// Committed entries are not applied.
        Apply = "apply",
        /// Leadership moves to another node.
        Transfer = "transfer",
        /// Voters are silent, behind, or without room on their disks.
        Redundancy = "redundancy",
        /// The peer does not answer.
        Silent = "silent",
        /// The peer gets a snapshot.
        Snapshot = "snapshot",
        /// The peer refuses messages of the group.
        Refused = "refused",
        /// The next attempt to send the peer a snapshot has to wait.
        Backoff = "backoff",
        /// The peer lacks entries.
        CatchingUp = "catching_up",
    }
}

closed! {
    /// How a proposal ended.
    ProposalOutcome in OUTCOME {
        /// Committed and applied.
        Committed = "committed",
        /// Not proposed: this node does not lead.
        NotLeader = "not_leader",
        /// Not proposed: a bound was reached.
        Busy = "busy",
        /// Not proposed: disks have too little room.
        DiskFull = "disk_full",
        /// Not proposed: the command is invalid.
        Rejected = "rejected",
        /// Unknown: the command may or may not have been applied.
        Uncertain = "uncertain",
        /// The group or the node stopped.
        Stopped = "stopped",
    }
}

closed! {
    /// How a snapshot transfer ended.
    SnapshotOutcome in OUTCOME {
        /// Verified, durable and accepted by the receiver's Raft.
        Finished = "finished",
        /// The receiver did not need it.
        AlreadyHad = "already_had",
        /// Broken on the way, not verified, or not accepted.
        Failed = "failed",
        /// The receiver refused the offer.
        Refused = "refused",
        /// Cancelled by this side, also by dropping the transfer.
        Cancelled = "cancelled",
    }
}

closed! {
    /// How a read ended.
    ReadOutcome in OUTCOME {
        /// The caller got its view.
        Served = "served",
        /// The caller got an error.
        Failed = "failed",
    }
}

closed! {
    /// A bounded table of handles in this crate.
    Table in TABLE {
        /// Handles per peer and transport, at most [`PEERS_MAX`](crate::PEERS_MAX).
        Peers = "peers",
        /// Handles per group, at most [`GROUPS_MAX`](crate::GROUPS_MAX).
        Groups = "groups",
    }
}

/// The value of the gauge [`GROUP_ROLE`](crate::names::GROUP_ROLE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupRole {
    /// 0
    Follower,
    /// 1
    Candidate,
    /// 2
    Leader,
    /// 3
    PreCandidate,
    /// 4: the group panicked or its log is poisoned; it is silent.
    Quarantined,
    /// 5: the group stopped on this node, or the node shut down.
    Stopped,
}

impl GroupRole {
    /// Every role, in the order of its code.
    pub const ALL: &[Self] = &[
        Self::Follower,
        Self::Candidate,
        Self::Leader,
        Self::PreCandidate,
        Self::Quarantined,
        Self::Stopped,
    ];

    /// The number the gauge shows.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}
