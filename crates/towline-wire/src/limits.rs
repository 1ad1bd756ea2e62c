//! Limits of a frame. Both ends keep them; a receiver checks them before it allocates.

/// Bytes of one encoded envelope: four commands of the default limit, sixteen windows of the default `append_bytes_max`.
/// A larger message cannot be sent, so `append_bytes_max` and `proposal_bytes_max` must stay below it.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of one encoded frame: a single largest message and its wrapping.
pub const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + (64 << 10);

/// Bytes of a frame after which a batch continues in the next frame, unless one message alone is larger. This bounds the
/// memory of a transport that holds a frame or two.
pub const FRAME_BYTES_TARGET: usize = 1 << 20;

/// Bytes of a hello, a welcome or a refusal.
pub const HELLO_BYTES_MAX: usize = 4 << 10;

/// Envelopes in one frame; a longer batch is split. An empty one is two bytes on the wire and some 300 in memory.
pub const ENVELOPES_MAX: usize = 4_096;

/// Entries in one frame, over all its messages. An empty one is two bytes on the wire and some 100 in memory. Twice
/// what the default `append_bytes_max` of 256 KiB can hold of the smallest entries there are.
pub const ENTRIES_MAX: usize = 131_072;

/// Member ids in one frame, over all its snapshot records and member tables.
pub const MEMBERS_MAX: usize = 4_096;

/// Nacks in one frame: as many as envelopes, since a frame is answered with at most one a group.
pub const NACKS_MAX: usize = 4_096;

/// Bytes of the text in a refusal; a longer one is cut.
pub const DETAIL_BYTES_MAX: usize = 512;
