//! Bytes that moved are counted, bytes asked for are not, and the total is recorded once on every exit.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex};

use towline_metrics::labels::SnapshotOutcome;
use towline_metrics::{ByteTally, CountingReader, CountingWriter, RecordTotal};

#[derive(Clone, Default)]
struct Totals(Arc<Mutex<Vec<(SnapshotOutcome, u64)>>>);

impl Totals {
    fn record(&self) -> impl RecordTotal + use<> {
        let totals = self.clone();
        move |outcome, bytes| totals.0.lock().unwrap().push((outcome, bytes))
    }

    fn all(&self) -> Vec<(SnapshotOutcome, u64)> {
        self.0.lock().unwrap().clone()
    }
}

/// Moves at most three bytes per call, and fails once `left` bytes have moved.
struct Halting {
    left: usize,
    flushed: bool,
}

impl Halting {
    fn after(left: usize) -> Self {
        Self { left, flushed: false }
    }

    fn step(&mut self, asked: usize) -> io::Result<usize> {
        if self.left == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let moved = asked.min(self.left).min(3);
        self.left -= moved;
        Ok(moved)
    }
}

impl Read for Halting {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.step(buf.len())
    }
}

impl Write for Halting {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.step(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed = true;
        Ok(())
    }
}

#[test]
fn short_reads_count_what_came() {
    let totals = Totals::default();
    let mut reader = CountingReader::new(Halting::after(10), totals.record());
    let count = reader.count();
    let seen: Vec<_> = (0..4).map(|_| (reader.read(&mut [0; 1024]).unwrap(), count.bytes())).collect();
    assert_eq!(seen, [(3, 3), (3, 6), (3, 9), (1, 10)]);
    assert_eq!(totals.all(), [], "nothing is recorded while it runs");
    assert_eq!(reader.finish(SnapshotOutcome::Finished), 10);
    assert_eq!(totals.all(), [(SnapshotOutcome::Finished, 10)]);
    assert_eq!(count.bytes(), 10, "the count outlives the reader");
}

#[test]
fn an_error_midway_keeps_what_was_read() {
    let totals = Totals::default();
    let mut reader = CountingReader::new(Halting::after(10), totals.record());
    let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(reader.finish(SnapshotOutcome::Failed), 10);
    assert_eq!(totals.all(), [(SnapshotOutcome::Failed, 10)]);
}

#[test]
fn short_writes_count_what_was_taken() {
    let totals = Totals::default();
    let mut writer = CountingWriter::new(Halting::after(100), totals.record());
    let count = writer.count();
    assert_eq!((writer.write(&[0; 50]).unwrap(), count.bytes()), (3, 3));
    writer.write_all(&[0; 20]).unwrap();
    assert_eq!(count.bytes(), 23);
    writer.flush().unwrap();
    assert!(writer.inner().flushed);
    assert_eq!(writer.finish(SnapshotOutcome::Finished), 23);
    assert_eq!(totals.all(), [(SnapshotOutcome::Finished, 23)]);
}

#[test]
fn an_error_midway_keeps_what_was_written() {
    let totals = Totals::default();
    let mut writer = CountingWriter::new(Halting::after(7), totals.record());
    let error = writer.write_all(&[0; 50]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    drop(writer);
    assert_eq!(totals.all(), [(SnapshotOutcome::Cancelled, 7)]);
}

#[test]
fn vectored_calls_are_counted_once() {
    let totals = Totals::default();
    let mut reader = CountingReader::new(&[1; 10][..], totals.record());
    let (mut a, mut b) = ([0; 4], [0; 4]);
    let read = reader.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap();
    assert_eq!((read, reader.count().bytes()), (8, 8));
    let mut writer = CountingWriter::new(Vec::new(), totals.record());
    let written = writer.write_vectored(&[IoSlice::new(&a), IoSlice::new(&b)]).unwrap();
    assert_eq!((written, writer.count().bytes()), (8, 8));
    drop((reader, writer));
    assert_eq!(totals.all(), [(SnapshotOutcome::Cancelled, 8), (SnapshotOutcome::Cancelled, 8)]);
}

#[test]
fn a_drop_without_finish_is_cancelled() {
    let totals = Totals::default();
    drop(CountingReader::new(&b"abc"[..], totals.record()));
    assert_eq!(totals.all(), [(SnapshotOutcome::Cancelled, 0)]);
}

#[test]
fn a_panic_in_the_copy_still_records() {
    let totals = Totals::default();
    let record = totals.record();
    let copy = std::thread::spawn(move || {
        let mut reader = CountingReader::new(&[0; 100][..], record);
        reader.read_exact(&mut [0; 60]).unwrap();
        panic!("a fault of the code around the reader");
    });
    assert!(copy.join().is_err());
    assert_eq!(totals.all(), [(SnapshotOutcome::Cancelled, 60)]);
}

#[test]
fn the_outcome_may_come_after_the_inner_value_is_consumed() {
    let totals = Totals::default();
    let mut writer = CountingWriter::new(Vec::new(), totals.record());
    writer.write_all(b"hello").unwrap();
    let (file, tally) = writer.into_parts();
    assert_eq!((file.as_slice(), totals.all().len()), (&b"hello"[..], 0));
    drop(file);
    tally.add(2);
    assert_eq!(tally.finish(SnapshotOutcome::AlreadyHad), 7);
    assert_eq!(totals.all(), [(SnapshotOutcome::AlreadyHad, 7)]);
}

#[test]
fn a_tally_records_once_whichever_way_it_ends() {
    let totals = Totals::default();
    drop(ByteTally::new(totals.record()));
    ByteTally::new(totals.record()).finish(SnapshotOutcome::Refused);
    assert_eq!(totals.all(), [(SnapshotOutcome::Cancelled, 0), (SnapshotOutcome::Refused, 0)]);
}
