//! Bounds the unacknowledged bytes to a peer by what its link delivers in a stated time.
//!
//! Sending more than the link delivers gains nothing: the bytes wait in buffers, delay later messages, and are sent again
//! when the link breaks. A sender therefore keeps a [`Window`]. The window starts small, doubles each round trip while
//! acknowledgements come soon, and shrinks when one takes too long. Pure: time is a number in the caller's unit.

use std::collections::VecDeque;

/// The most pieces with a recorded send time; above it the last two count as one piece.
const PIECES_MAX: usize = 128;

/// The unacknowledged bytes to one peer, and their bound.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The smallest size of the window.
    floor: u64,
    max: u64,
    /// The longest time that an acknowledgement should take.
    delay_max: u64,
    limit: u64,
    /// Since the start.
    sent: u64,
    acked: u64,
    /// The window was full when this piece was sent. Only such pieces make the window grow: a lightly used link does not show
    /// its capacity.
    full_through: u64,
    pieces: VecDeque<Piece>,
    /// The window does not shrink again before this time: pieces sent before the last cut are late as well.
    cut_until: u64,
}

/// A piece that was sent and is not acknowledged yet.
#[derive(Debug, Clone)]
struct Piece {
    /// Bytes sent since the start, including this piece.
    end: u64,
    at: u64,
    /// Unacknowledged bytes at that time, including this piece.
    under_way: u64,
}

impl Window {
    /// Creates a window of `floor` to `max` bytes that aims at acknowledgements within `delay_max`.
    pub(crate) fn new(floor: u64, max: u64, delay_max: u64) -> Self {
        let (floor, delay_max) = (floor.max(1), delay_max.max(1));
        let max = max.max(floor);
        Self {
            floor,
            max,
            delay_max,
            limit: floor,
            sent: 0,
            acked: 0,
            full_through: 0,
            pieces: VecDeque::new(),
            cut_until: 0,
        }
    }

    /// The size of the window in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that may be sent now. If this is not zero, a sender may send a longer piece.
    pub(crate) fn room(&self) -> u64 {
        self.limit.saturating_sub(self.under_way())
    }

    /// The unacknowledged bytes.
    pub(crate) fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.acked)
    }

    /// Records sent bytes.
    pub(crate) fn sent(&mut self, bytes: u64, now: u64) {
        self.sent = self.sent.saturating_add(bytes);
        if self.room() == 0 {
            self.full_through = self.sent;
        }
        let (end, under_way) = (self.sent, self.under_way());
        let full = self.pieces.len() >= PIECES_MAX;
        match self.pieces.back_mut() {
            Some(last) if full => (last.end, last.under_way) = (end, under_way),
            _ => self.pieces.push_back(Piece { end, at: now, under_way }),
        }
    }

    /// Records the number of bytes acknowledged since the start.
    pub(crate) fn acked(&mut self, total: u64, now: u64) {
        let total = total.min(self.sent);
        let bytes = total.saturating_sub(self.acked);
        let needed = self.acked < self.full_through;
        self.acked = self.acked.max(total);
        let mut last = None;
        while self.pieces.front().is_some_and(|piece| piece.end <= total) {
            last = self.pieces.pop_front();
        }
        let Some(Piece { at, under_way, .. }) = last else { return };
        let delay = now.saturating_sub(at);
        if delay.saturating_mul(2) <= self.delay_max {
            if needed {
                self.limit = self.limit.saturating_add(bytes).min(self.max);
            }
        } else if delay > self.delay_max && now >= self.cut_until {
            // What the link delivers in three quarters of the time.
            let drained = u128::from(under_way) * u128::from(self.delay_max) * 3 / (u128::from(delay) * 4);
            let drained = u64::try_from(drained).unwrap_or(u64::MAX);
            self.limit = drained.min(self.limit).max(self.floor);
            self.cut_until = now.saturating_add(delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: u64 = 128 << 10;
    const MAX: u64 = 16 << 20;
    /// In milliseconds.
    const DELAY_MAX: u64 = 2_500;
    const PIECE: u64 = 32 << 10;

    /// A link with a queue, on which a sender sends as much as its window allows.
    struct SimulatedLink {
        bytes_per_ms: u64,
        round_trip: u64,
        window: Window,
        now: u64,
        /// When the link becomes free, and the times and totals of acknowledgements.
        free_at: u64,
        acks: VecDeque<(u64, u64)>,
        total: u64,
        under_way_max: u64,
    }

    impl SimulatedLink {
        fn new(bytes_per_ms: u64, round_trip: u64) -> Self {
            let window = Window::new(FLOOR, MAX, DELAY_MAX);
            let acks = VecDeque::new();
            Self { bytes_per_ms, round_trip, window, now: 0, free_at: 0, acks, total: 0, under_way_max: 0 }
        }

        fn run(&mut self, ms: u64, offered: u64) {
            self.under_way_max = 0;
            let mut left = offered;
            for _ in 0..ms {
                while self.acks.front().is_some_and(|(at, _)| *at <= self.now) {
                    let (_, total) = self.acks.pop_front().unwrap();
                    self.window.acked(total, self.now);
                }
                while self.window.room() > 0 && left >= PIECE {
                    left -= PIECE;
                    self.total += PIECE;
                    self.window.sent(PIECE, self.now);
                    self.free_at = self.free_at.max(self.now) + PIECE / self.bytes_per_ms;
                    self.acks.push_back((self.free_at + self.round_trip, self.total));
                }
                self.under_way_max = self.under_way_max.max(self.window.under_way());
                self.now += 1;
            }
        }
    }

    #[test]
    fn a_fast_link_is_filled_within_a_few_round_trips() {
        for round_trip in [1, 10, 100, 300] {
            let mut link = SimulatedLink::new(50_000, round_trip);
            link.run(round_trip * 10, u64::MAX);
            let full = (50_000 * round_trip).min(MAX - PIECE);
            assert!(link.under_way_max >= full, "{} at {round_trip} ms", link.under_way_max);
        }
    }

    #[test]
    fn a_link_from_1_mbit_per_second_on_is_busy_and_drains_within_the_time() {
        for kilobytes_per_second in [125, 500, 1_250, 12_500] {
            let mut link = SimulatedLink::new(kilobytes_per_second, 50);
            link.run(10_000, u64::MAX);
            link.run(20_000, u64::MAX);
            let drained = link.under_way_max / kilobytes_per_second;
            assert!(drained <= DELAY_MAX * 5 / 4, "{drained} ms at {kilobytes_per_second} kB/s");
            let busy = link.total * 100 / (kilobytes_per_second * 30_000);
            assert!(busy >= 95, "{busy} % busy at {kilobytes_per_second} kB/s");
        }
    }

    #[test]
    fn the_window_of_a_link_that_becomes_slow_shrinks_within_a_few_seconds() {
        let mut link = SimulatedLink::new(50_000, 10);
        link.run(2_000, u64::MAX);
        link.bytes_per_ms = 500;
        link.run(40_000, u64::MAX);
        link.run(10_000, u64::MAX);
        let drained = link.under_way_max / 500;
        assert!(drained <= DELAY_MAX * 5 / 4, "{drained} ms");
    }

    #[test]
    fn the_window_of_a_lightly_used_link_does_not_grow() {
        let mut link = SimulatedLink::new(125, 5);
        for _ in 0..1_000 {
            link.run(500, PIECE);
        }
        assert_eq!(link.window.limit(), FLOOR);
    }

    #[test]
    fn an_acknowledgement_of_unsent_bytes_does_not_count() {
        let mut window = Window::new(FLOOR, MAX, DELAY_MAX);
        window.sent(10, 0);
        window.acked(u64::MAX, 1);
        assert_eq!((window.under_way(), window.room()), (0, FLOOR));
        window.sent(FLOOR, 2);
        assert_eq!(window.room(), 0);
    }
}
