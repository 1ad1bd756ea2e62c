//! File names. A name tells what a file is without opening it.

use towline_engine::ids::GroupId;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::{ContentId, SnapshotHead};

const COMPLETE: &str = "snapshot";
const PARTIAL: &str = "partial";
const TEMPORARY: &str = "tmp";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// `GROUP-INDEX-TERM-CONTENT.snapshot`, numbers as 16 hexadecimal digits.
    Complete { group: GroupId, at: LogId, content: ContentId },
    /// `GROUP-CONTENT.partial`: the received part of a snapshot.
    Partial { group: GroupId, content: ContentId },
    /// `GROUP-NUMBER.tmp`: an incomplete snapshot that this node makes; useless after a restart.
    Temporary { group: GroupId, number: u64 },
}

impl Named {
    pub(super) fn complete(head: &SnapshotHead, content: ContentId) -> Self {
        Self::Complete { group: head.group, at: head.at, content }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Complete { group, at, content } => {
                format!("{:016x}-{:016x}-{:016x}-{content}.{COMPLETE}", group.as_u64(), at.index, at.term)
            }
            Self::Partial { group, content } => format!("{:016x}-{content}.{PARTIAL}", group.as_u64()),
            Self::Temporary { group, number } => format!("{:016x}-{number:016x}.{TEMPORARY}", group.as_u64()),
        }
    }

    /// Parses a name. `None` if it is no name of a snapshot file.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (stem, extension) = name.split_once('.')?;
        let mut parts = stem.split('-');
        let group = GroupId::new(number(parts.next()?)?);
        let named = match extension {
            COMPLETE => {
                let at = LogId { index: number(parts.next()?)?, term: number(parts.next()?)? };
                Self::Complete { group, at, content: content(parts.next()?)? }
            }
            PARTIAL => Self::Partial { group, content: content(parts.next()?)? },
            TEMPORARY => Self::Temporary { group, number: number(parts.next()?)? },
            _ => return None,
        };
        // Only one spelling is valid, so two names never mean the same file.
        (named.name() == name).then_some(named)
    }
}

fn number(hex: &str) -> Option<u64> {
    u64::from_str_radix(hex, 16).ok()
}

fn content(hex: &str) -> Option<ContentId> {
    let mut id = [0; size_of::<ContentId>()];
    if hex.len() != 2 * id.len() {
        return None;
    }
    for (number, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * number..2 * number + 2)?, 16).ok()?;
    }
    Some(ContentId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_parses_to_its_meaning() {
        let (group, content) = (GroupId::new(u64::MAX), ContentId([0xa7; 16]));
        for named in [
            Named::Complete { group, at: LogId { index: 300, term: 2 }, content },
            Named::Partial { group, content },
            Named::Temporary { group, number: 7 },
        ] {
            assert_eq!(Named::parse(&named.name()), Some(named));
        }
    }

    #[test]
    fn another_spelling_does_not_parse() {
        let name = Named::Partial { group: GroupId::DEFAULT, content: ContentId([0xa7; 16]) }.name();
        let plus = format!("+{}", &name[1..]);
        for other in
            [&name.to_uppercase(), &plus, &name[1..], &format!("{name}.old"), "", ".", "-.partial", "ä"]
        {
            assert_eq!(Named::parse(other), None, "{other}");
        }
    }
}
