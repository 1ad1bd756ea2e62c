//! Readers and writers that count the bytes they move and record the total exactly once.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::labels::SnapshotOutcome;

/// Receives the total of an ended transfer: its outcome and the payload bytes moved.
/// Called once, on the thread that finishes or drops the transfer, so it must not block or panic.
pub trait RecordTotal: FnOnce(SnapshotOutcome, u64) + Send + 'static {}

impl<F: FnOnce(SnapshotOutcome, u64) + Send + 'static> RecordTotal for F {}

/// A running count of bytes, readable from anywhere while the copy runs. Cloning shares the count.
#[derive(Clone, Debug, Default)]
pub struct ByteCount {
    bytes: Arc<AtomicU64>,
}

impl ByteCount {
    /// A count of zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes moved so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Relaxed: the number shows progress and orders no other memory.
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The obligation to record one total: [`finish`](Self::finish) it with an outcome, or its drop records
/// [`SnapshotOutcome::Cancelled`]. Either way the total is recorded exactly once.
#[must_use = "dropping it records the transfer as cancelled"]
pub struct ByteTally {
    count: ByteCount,
    record: Option<Box<dyn FnOnce(SnapshotOutcome, u64) + Send>>,
}

impl ByteTally {
    /// A tally of zero bytes that will go to `record`.
    pub fn new(record: impl RecordTotal) -> Self {
        Self { count: ByteCount::new(), record: Some(Box::new(record)) }
    }

    /// Adds moved bytes that no reader or writer counts.
    pub fn add(&self, bytes: u64) {
        self.count.add(bytes);
    }

    /// A shared view of the running count.
    #[must_use]
    pub fn count(&self) -> ByteCount {
        self.count.clone()
    }

    /// Records the total with `outcome` and returns it.
    pub fn finish(mut self, outcome: SnapshotOutcome) -> u64 {
        self.settle(outcome)
    }

    /// [`finish`](Self::finish) for an owner that cannot give the tally away, such as one with a drop of its own. A second
    /// call records nothing.
    pub fn settle(&mut self, outcome: SnapshotOutcome) -> u64 {
        let total = self.count.bytes();
        if let Some(record) = self.record.take() {
            record(outcome, total);
        }
        total
    }

    fn moved(&self, result: io::Result<usize>) -> io::Result<usize> {
        result.inspect(|bytes| self.count.add(*bytes as u64))
    }
}

impl Drop for ByteTally {
    fn drop(&mut self) {
        self.settle(SnapshotOutcome::Cancelled);
    }
}

impl fmt::Debug for ByteTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteTally").field("bytes", &self.count.bytes()).finish_non_exhaustive()
    }
}

macro_rules! counting {
    ($(#[$outer:meta])* $name:ident<$bound:ident>) => {
        $(#[$outer])*
        #[derive(Debug)]
        #[must_use = "dropping it records the transfer as cancelled"]
        pub struct $name<T: $bound> {
            inner: T,
            tally: ByteTally,
        }

        impl<T: $bound> $name<T> {
            /// Counts what moves through `inner`; the total goes to `record`.
            pub fn new(inner: T, record: impl RecordTotal) -> Self {
                Self { inner, tally: ByteTally::new(record) }
            }

            /// A shared view of the running count, to be read while the copy runs.
            #[must_use]
            pub fn count(&self) -> ByteCount {
                self.tally.count()
            }

            /// Records the total with `outcome`, drops the inner value and returns the total.
            pub fn finish(self, outcome: SnapshotOutcome) -> u64 {
                self.tally.finish(outcome)
            }

            /// Gives the inner value back together with the obligation to record, for an outcome that is
            /// known only after the inner value was consumed, by a commit for example.
            pub fn into_parts(self) -> (T, ByteTally) {
                (self.inner, self.tally)
            }

            /// The inner value.
            pub fn inner(&self) -> &T {
                &self.inner
            }

            /// The inner value. What moves through it directly is not counted.
            pub fn inner_mut(&mut self) -> &mut T {
                &mut self.inner
            }
        }
    };
}

counting! {
    /// A reader that counts the bytes it returned, not the bytes asked of it.
    ///
    /// [`finish`](Self::finish) records the total with an outcome; dropping it, also by a panic or a
    /// cancelled task, records [`SnapshotOutcome::Cancelled`].
    CountingReader<Read>
}

counting! {
    /// A writer that counts the bytes its inner writer took, not the bytes offered to it.
    ///
    /// [`finish`](Self::finish) records the total with an outcome; dropping it, also by a panic or a
    /// cancelled task, records [`SnapshotOutcome::Cancelled`]. Neither flushes.
    CountingWriter<Write>
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buf);
        self.tally.moved(result)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let result = self.inner.read_vectored(bufs);
        self.tally.moved(result)
    }
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(buf);
        self.tally.moved(result)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let result = self.inner.write_vectored(bufs);
        self.tally.moved(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
