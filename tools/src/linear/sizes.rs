//! Reads of the number of keys, at any node. No client deletes a key, so the number only grows. A smaller number than an
//! earlier read returned shows a stale read.

use std::fmt;

/// One read. Times are nanoseconds on the clock of the histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeRead {
    pub(crate) node: usize,
    /// The client believed that another node leads.
    pub(crate) elsewhere: bool,
    pub(crate) invoked: u64,
    pub(crate) returned: u64,
    pub(crate) size: i64,
}

impl fmt::Display for SizeRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.invoked as f64 / 1e9, self.returned as f64 / 1e9);
        write!(f, "{} at node {} [{from:.6}, {to:.6}]", self.size, self.node + 1)
    }
}

/// Each read that returned less than an earlier one, with that earlier read.
pub(super) fn shrunk(reads: &[SizeRead]) -> Vec<(SizeRead, SizeRead)> {
    let mut by_return = reads.to_vec();
    by_return.sort_by_key(|read| read.returned);
    let mut by_call = reads.to_vec();
    by_call.sort_by_key(|read| read.invoked);
    let mut returned = by_return.into_iter().peekable();
    let mut most: Option<SizeRead> = None;
    let mut found = Vec::new();
    for read in by_call {
        while let Some(earlier) = returned.next_if(|earlier| earlier.returned < read.invoked) {
            if most.is_none_or(|most| most.size < earlier.size) {
                most = Some(earlier);
            }
        }
        found.extend(most.filter(|most| most.size > read.size).map(|most| (most, read)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(invoked: u64, returned: u64, size: i64) -> SizeRead {
        SizeRead { node: 0, elsewhere: false, invoked, returned, size }
    }

    #[test]
    fn a_size_below_an_earlier_one_is_found() {
        let (first, stale) = (read(0, 5, 10), read(6, 7, 9));
        assert_eq!(shrunk(&[stale, read(8, 9, 11), first]), [(first, stale)]);
        // The largest earlier read counts, not the last.
        assert_eq!(shrunk(&[first, stale, read(8, 9, 9)]).len(), 2);
    }

    #[test]
    fn concurrent_reads_may_return_either_size() {
        assert_eq!(shrunk(&[read(0, 5, 10), read(5, 7, 9), read(6, 9, 10)]), []);
        assert_eq!(shrunk(&[]), []);
    }
}
