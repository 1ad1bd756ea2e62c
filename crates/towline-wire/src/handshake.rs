//! The handshake: a hello, then a welcome or a refusal. The same rules for every transport.

use prost::Message as _;
use towline_engine::ids::{ClusterId, FoundingHash, GroupId, Incarnation, NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, FOUNDED_MAX, Founded, Hello, PROTOCOL_VERSION, Refusal, Welcome,
};

use crate::error::WireError;
use crate::frames::kind_name;
use crate::limits::{DETAIL_BYTES_MAX, HELLO_BYTES_MAX};
use crate::pb::{self, frame::Kind};
use crate::raft::node;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// A lane: batches one way, nacks the other.
    Lane(Lane),
    /// One snapshot transfer.
    Snapshot,
}

impl From<Lane> for Purpose {
    fn from(lane: Lane) -> Self {
        Self::Lane(lane)
    }
}

impl Purpose {
    /// For the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lane(lane) => lane.as_str(),
            Self::Snapshot => "snapshot",
        }
    }
}

/// The first frame of a dialler.
pub fn hello_frame(hello: &Hello, purpose: impl Into<Purpose>) -> pb::Frame {
    let lane = match purpose.into() {
        Purpose::Lane(Lane::Control) => pb::Lane::Control,
        Purpose::Lane(Lane::Append) => pb::Lane::Append,
        Purpose::Snapshot => pb::Lane::Snapshot,
    };
    pb::Frame {
        kind: Some(Kind::Hello(pb::Hello {
            cluster: hello.cluster.as_str().into(),
            from: hello.from.as_u64(),
            to: hello.to.as_u64(),
            incarnation: hello.incarnation.as_u64(),
            protocol: hello.protocol,
            lane: lane.into(),
        })),
    }
}

/// The answer to a hello that was accepted.
pub fn welcome_frame(welcome: &Welcome) -> pb::Frame {
    pb::Frame {
        kind: Some(Kind::Welcome(pb::Welcome {
            node: welcome.node.as_u64(),
            incarnation: welcome.incarnation.as_u64(),
            protocol: welcome.protocol,
        })),
    }
}

/// The answer to a hello that was not.
pub fn refused_frame(refusal: &Refusal) -> pb::Frame {
    pb::Frame { kind: Some(Kind::Refused(refusal.into())) }
}

/// Checks a dialler's first frame. A listener calls it before [`Inbound::admit`].
///
/// The version is checked before every other field. A hello of a future version is therefore answered with the versions of
/// both sides, regardless of its other fields.
///
/// [`Inbound::admit`]: towline_engine::transport::Inbound::admit
///
/// # Errors
/// [`Refusal::Version`], or [`Refusal::Malformed`] with the reason.
pub fn check_first_frame(frame: pb::Frame) -> Result<(Hello, Purpose), Refusal> {
    let malformed = |error: WireError| Refusal::Malformed { detail: error.to_string() };
    let bytes = frame.encoded_len();
    if bytes > HELLO_BYTES_MAX {
        return Err(malformed(WireError::FrameTooLarge { bytes, bytes_max: HELLO_BYTES_MAX }));
    }
    let hello = match frame.kind {
        Some(Kind::Hello(hello)) => hello,
        other => {
            let got = kind_name(other.as_ref());
            return Err(malformed(WireError::Unexpected { expected: "a hello", got }));
        }
    };
    if hello.protocol != PROTOCOL_VERSION {
        return Err(Refusal::Version { ours: PROTOCOL_VERSION, theirs: hello.protocol });
    }
    hello.try_into().map_err(malformed)
}

/// Checks the first frame that a dialler gets back. `to` is the node that it meant to reach.
///
/// # Errors
/// [`ConnectError::Refused`] with the peer's reason, [`ConnectError::WrongPeer`] if another node or version answered,
/// [`ConnectError::Protocol`] if the frame is no answer at all.
pub fn check_answer(address: &PeerAddr, to: NodeId, frame: pb::Frame) -> Result<Welcome, ConnectError> {
    let protocol =
        |error: WireError| ConnectError::Protocol { address: address.clone(), detail: error.to_string() };
    let bytes = frame.encoded_len();
    if bytes > HELLO_BYTES_MAX {
        return Err(protocol(WireError::FrameTooLarge { bytes, bytes_max: HELLO_BYTES_MAX }));
    }
    let welcome: Welcome = match frame.kind {
        Some(Kind::Welcome(welcome)) => welcome.try_into().map_err(protocol)?,
        Some(Kind::Refused(refused)) => {
            return Err(ConnectError::Refused(refused.try_into().map_err(protocol)?));
        }
        other => {
            let got = kind_name(other.as_ref());
            return Err(protocol(WireError::Unexpected { expected: "a welcome or a refusal", got }));
        }
    };
    if welcome.node != to {
        let detail = format!("node {} at {address}, where node {to} was expected", welcome.node);
        return Err(ConnectError::WrongPeer { detail });
    }
    if welcome.protocol != PROTOCOL_VERSION {
        let theirs = welcome.protocol;
        let detail = format!("protocol version {theirs} at {address}, where {PROTOCOL_VERSION} was expected");
        return Err(ConnectError::WrongPeer { detail });
    }
    Ok(welcome)
}

impl TryFrom<pb::Hello> for (Hello, Purpose) {
    type Error = WireError;

    fn try_from(hello: pb::Hello) -> Result<Self, WireError> {
        let lane = match pb::Lane::try_from(hello.lane) {
            Ok(pb::Lane::Control) => Purpose::Lane(Lane::Control),
            Ok(pb::Lane::Append) => Purpose::Lane(Lane::Append),
            Ok(pb::Lane::Snapshot) => Purpose::Snapshot,
            Ok(pb::Lane::Unspecified) | Err(_) => {
                return Err(WireError::Unknown { what: "lane", number: hello.lane });
            }
        };
        let hello = Hello {
            cluster: ClusterId::new(&hello.cluster).map_err(WireError::Cluster)?,
            from: node(hello.from, "from")?,
            to: node(hello.to, "to")?,
            incarnation: incarnation(hello.incarnation)?,
            protocol: hello.protocol,
        };
        Ok((hello, lane))
    }
}

impl TryFrom<pb::Welcome> for Welcome {
    type Error = WireError;

    fn try_from(welcome: pb::Welcome) -> Result<Self, WireError> {
        Ok(Self {
            node: node(welcome.node, "node")?,
            incarnation: incarnation(welcome.incarnation)?,
            protocol: welcome.protocol,
        })
    }
}

impl From<&Refusal> for pb::Refused {
    fn from(refusal: &Refusal) -> Self {
        use pb::RefusalCode as Code;
        let with =
            |code: Code| Self { code: code.into(), detail: cut(refusal.to_string()), ..Self::default() };
        match refusal {
            Refusal::WrongCluster { ours } => Self { cluster: cut(ours.clone()), ..with(Code::WrongCluster) },
            Refusal::WrongNode { ours } => Self { node: *ours, ..with(Code::WrongNode) },
            Refusal::UnknownPeer { peer, founded } => {
                let founded = founded.iter().take(FOUNDED_MAX);
                let group =
                    |f: &Founded| pb::Founded { group: f.group.as_u64(), founding: f.founding.as_u64() };
                Self { node: *peer, founded: founded.map(group).collect(), ..with(Code::UnknownPeer) }
            }
            Refusal::WrongIncarnation { peer } => Self { node: *peer, ..with(Code::WrongIncarnation) },
            Refusal::Version { ours, theirs } => Self { ours: *ours, theirs: *theirs, ..with(Code::Version) },
            Refusal::Unauthenticated { detail } => {
                Self { detail: cut(detail.clone()), ..with(Code::Unauthenticated) }
            }
            // TLS itself reports both; this is their form as a frame.
            Refusal::Certificate(_) | Refusal::OwnCertificate(_) => with(Code::Unauthenticated),
            Refusal::Malformed { detail } => Self { detail: cut(detail.clone()), ..with(Code::Malformed) },
            Refusal::TooManyConnections | Refusal::Displaced => with(Code::TooManyConnections),
            Refusal::HandshakeTimeout => with(Code::HandshakeTimeout),
            Refusal::ShuttingDown => with(Code::ShuttingDown),
            // A refusal without a code in this version: its text still arrives.
            _ => with(Code::Unspecified),
        }
    }
}

impl TryFrom<pb::Refused> for Refusal {
    type Error = WireError;

    fn try_from(refused: pb::Refused) -> Result<Self, WireError> {
        use pb::RefusalCode as Code;
        let detail = cut(refused.detail);
        Ok(match Code::try_from(refused.code) {
            Ok(Code::WrongCluster) => Self::WrongCluster { ours: cut(refused.cluster) },
            Ok(Code::WrongNode) => Self::WrongNode { ours: refused.node },
            Ok(Code::UnknownPeer) => {
                let founded = refused.founded.into_iter().take(FOUNDED_MAX).map(|f| Founded {
                    group: GroupId::new(f.group),
                    founding: FoundingHash::new(f.founding),
                });
                Self::UnknownPeer { peer: refused.node, founded: founded.collect() }
            }
            Ok(Code::WrongIncarnation) => Self::WrongIncarnation { peer: refused.node },
            Ok(Code::Version) => Self::Version { ours: refused.ours, theirs: refused.theirs },
            Ok(Code::Unauthenticated) => Self::Unauthenticated { detail },
            Ok(Code::Malformed) => Self::Malformed { detail },
            Ok(Code::TooManyConnections) => Self::TooManyConnections,
            Ok(Code::HandshakeTimeout) => Self::HandshakeTimeout,
            Ok(Code::ShuttingDown) => Self::ShuttingDown,
            Ok(Code::Unspecified) | Err(_) => {
                return Err(WireError::UnknownRefusal { code: refused.code, detail });
            }
        })
    }
}

fn incarnation(raw: u64) -> Result<Incarnation, WireError> {
    Incarnation::new(raw).ok_or(WireError::Zero { field: "incarnation" })
}

pub(crate) fn cut(mut text: String) -> String {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
    }
    text
}
