//! Times and sizes in settings files: `"100ms"`, `"64MiB"`. Both need a unit.
//!
//! ```
//! use std::time::Duration;
//! use towline_engine::config::Config;
//! use towline_engine::units::ByteSize;
//!
//! let (heartbeat_interval, snapshot_bytes_max) = (Duration::from_millis(50), ByteSize::gib(2));
//! let config = Config { heartbeat_interval, snapshot_bytes_max, ..Config::default() };
//! let read: Config = toml::from_str("heartbeat_interval = '50ms'\nsnapshot_bytes_max = '2GiB'")?;
//! assert_eq!(read, config);
//! # Ok::<_, toml::de::Error>(())
//! ```

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. As text it is a whole number and a unit: B, KiB, MiB, GiB or TiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// The largest size.
    pub const MAX: Self = Self(u64::MAX);

    /// A size in bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in KiB (1,024 bytes), or [`MAX`](Self::MAX) if that is too large.
    pub const fn kib(kib: u64) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// A size in MiB (1,024 KiB), or [`MAX`](Self::MAX) if that is too large.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// A size in GiB (1,024 MiB), or [`MAX`](Self::MAX) if that is too large.
    pub const fn gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes, or `usize::MAX` if this machine cannot address as many.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&text(*self))
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize(None, from)
    }
}

/// For `#[serde(with = "towline::engine::units::duration")]`: a [`Duration`] as a whole number and a unit: ns, us, ms, s,
/// m, h or d.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    /// Writes the time exactly, in the largest unit that allows it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        super::serialize(time, to)
    }

    /// Reads a time.
    ///
    /// # Errors
    /// The text is no whole number with a known unit, or exceeds [`Duration::MAX`].
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        super::deserialize(None, from)
    }
}

/// A text that is no time or no size. Its display names the text and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// A value that is written with a unit.
pub(crate) trait Quantity: Copy {
    const EXAMPLE: &'static str;
    /// From the largest unit to the one that a number counts.
    const UNITS: &'static [(&'static str, u128)];
    const MAX: u128;

    fn from_number(number: u128) -> Self;
    fn number(self) -> u128;
}

impl Quantity for ByteSize {
    const EXAMPLE: &'static str = "64MiB";
    const UNITS: &'static [(&'static str, u128)] =
        &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    const MAX: u128 = u64::MAX as u128;

    fn from_number(number: u128) -> Self {
        Self(number as u64)
    }

    fn number(self) -> u128 {
        self.0.into()
    }
}

const SECOND: u128 = 1_000_000_000;

impl Quantity for Duration {
    const EXAMPLE: &'static str = "100ms";
    const UNITS: &'static [(&'static str, u128)] = &[
        ("d", 24 * 3_600 * SECOND),
        ("h", 3_600 * SECOND),
        ("m", 60 * SECOND),
        ("s", SECOND),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    const MAX: u128 = Duration::MAX.as_nanos();

    fn from_number(number: u128) -> Self {
        Self::new((number / SECOND) as u64, (number % SECOND) as u32)
    }

    fn number(self) -> u128 {
        self.as_nanos()
    }
}

/// The exact value, in the largest unit that allows it.
pub(crate) fn text<T: Quantity>(value: T) -> String {
    let number = value.number();
    let unit = T::UNITS.iter().find(|(_, scale)| number != 0 && number % scale == 0).or(T::UNITS.last());
    unit.map(|(unit, scale)| format!("{}{unit}", number / scale)).unwrap_or_default()
}

fn parse<T: Quantity>(text: &str) -> Result<T, UnitError> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = unit.trim_start();
    if digits.is_empty() || unit.starts_with(|c: char| !c.is_alphabetic()) {
        let example = T::EXAMPLE;
        return Err(UnitError(format!("{text:?} is not a whole number and a unit, as in {example:?}")));
    }
    if unit.is_empty() {
        return Err(UnitError(needs_unit::<T>(format_args!("{text:?}"))));
    }
    let Some((_, scale)) = T::UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError(format!("{text:?} has an unknown unit; use {}", units::<T>())));
    };
    let number = digits.parse().ok().and_then(|number: u128| number.checked_mul(*scale));
    let number = number.filter(|number| *number <= T::MAX);
    number.map(T::from_number).ok_or_else(|| {
        let (unit, scale) = T::UNITS.first().unwrap_or(&("", 1));
        UnitError(format!("{text:?} is too large; the limit is {}{unit}", T::MAX / scale))
    })
}

fn units<T: Quantity>() -> String {
    let names: Vec<_> = T::UNITS.iter().rev().map(|(name, _)| *name).collect();
    names.join(", ")
}

fn needs_unit<T: Quantity>(value: impl fmt::Display) -> String {
    format!("{value} needs a unit: {}; as in {:?}", units::<T>(), T::EXAMPLE)
}

pub(crate) fn serialize<T: Quantity, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(*value))
}

/// Errors start with the name of the `field`.
pub(crate) fn deserialize<'de, T: Quantity, D: Deserializer<'de>>(
    field: Option<&'static str>,
    from: D,
) -> Result<T, D::Error> {
    let visitor = Reading { field, value: PhantomData };
    // `deserialize_any` shows a number to the visitor, which names the units. Binary formats cannot do that.
    if from.is_human_readable() { from.deserialize_any(visitor) } else { from.deserialize_str(visitor) }
}

struct Reading<T> {
    field: Option<&'static str>,
    value: PhantomData<T>,
}

impl<T: Quantity> Reading<T> {
    fn error<E: de::Error>(&self, what: impl fmt::Display) -> E {
        match self.field {
            Some(field) => E::custom(format_args!("{field}: {what}")),
            None => E::custom(what),
        }
    }
}

impl<T: Quantity> Visitor<'_> for Reading<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field.map(|field| format!(" for {field}")).unwrap_or_default();
        write!(f, "text with a unit{field}, as in {:?}", T::EXAMPLE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        parse(text).map_err(|error| self.error(error))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        Err(self.error(needs_unit::<T>(number)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Err(self.error(needs_unit::<T>(number)))
    }
}
