//! t
/// a
#[derive(Debug,Clone,Copy,PartialEq,Eq,Hash)] pub enum ReportKind { /// a
Unreachable, /// a
SnapshotFinish, /// a
SnapshotFailure }
/// b
#[derive(Debug,Clone,Copy,PartialEq,Eq,Hash)] pub enum ReportOutcome { /// a
Applied, /// a
Stale, /// a
Coalesced, /// a
AfterClose, /// a
Synthesized, /// a
UnknownPeer }
impl ReportKind { /// a
 pub fn as_str(self)->&'static str { match self {Self::Unreachable=>"u",Self::SnapshotFinish=>"f",_=>"x"} } }
impl ReportOutcome { /// a
 pub fn as_str(self)->&'static str { match self {Self::Applied=>"a",Self::Stale=>"s",Self::Coalesced=>"c",Self::AfterClose=>"ac",Self::Synthesized=>"sy",_=>"un"} } }
