//! Calls and answers of each key. No network, no clock: times are arguments.

use std::fmt;

/// The data type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// SET and GET; every value is written once.
    Register,
    /// APPEND and GET; every element is appended once.
    Log,
    /// INCR and GET.
    Counter,
}

/// A key: its position in the order of creation, and its data type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) kind: Kind,
}

/// The width of a log element: a length in bytes gives the number of elements.
const ELEMENT_BYTES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Set(u32),
    Append(u32),
    Increment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The new value of a counter, or the length of a log after an append.
    Number(i64),
    Value(Option<u32>),
    Elements(Vec<u32>),
    /// An answer that no key of this kind can give.
    Foreign(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered(Answer),
    /// It never takes effect.
    Failed,
    /// It took effect, takes effect at any later time, or never does.
    Uncertain,
}

/// Times are nanoseconds on one clock that all clients share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) client: u16,
    pub(crate) invoked: u64,
    pub(crate) returned: u64,
    pub(crate) call: Call,
    pub(crate) outcome: Outcome,
}

impl Key {
    pub(crate) fn name(self) -> String {
        let kind = match self.kind {
            Kind::Register => "register",
            Kind::Log => "log",
            Kind::Counter => "number",
        };
        format!("linear:{kind}:{}", self.index)
    }

    /// The Redis command of a call.
    pub(crate) fn request(self, call: Call) -> Vec<Vec<u8>> {
        let key = self.name().into_bytes();
        match call {
            Call::Read => vec![b"GET".to_vec(), key],
            Call::Set(value) => vec![b"SET".to_vec(), key, value.to_string().into_bytes()],
            Call::Append(element) => vec![b"APPEND".to_vec(), key, element_text(element).into_bytes()],
            Call::Increment => vec![b"INCR".to_vec(), key],
        }
    }

    /// The answer to a GET.
    pub(crate) fn read(self, text: Option<&str>) -> Answer {
        let foreign = || Answer::Foreign(format!("{text:?}"));
        match (self.kind, text) {
            (Kind::Register, None) => Answer::Value(None),
            (Kind::Register, Some(text)) => {
                text.parse().map_or_else(|_| foreign(), |value| Answer::Value(Some(value)))
            }
            (Kind::Log, text) => elements(text.unwrap_or_default()).map_or_else(foreign, Answer::Elements),
            (Kind::Counter, text) => text.unwrap_or("0").parse().map_or_else(|_| foreign(), Answer::Number),
        }
    }

    /// The answer to a write that returned a number.
    pub(crate) fn written(self, call: Call, number: i64) -> Answer {
        let element_bytes = ELEMENT_BYTES as i64;
        match call {
            Call::Increment => Answer::Number(number),
            Call::Append(_) if number % element_bytes == 0 => Answer::Number(number / element_bytes),
            _ => Answer::Foreign(number.to_string()),
        }
    }
}

fn element_text(element: u32) -> String {
    format!("{element:0width$},", width = ELEMENT_BYTES - 1)
}

fn elements(text: &str) -> Option<Vec<u32>> {
    text.as_bytes()
        .chunks(ELEMENT_BYTES)
        .map(|bytes| {
            let element = std::str::from_utf8(bytes).ok()?.strip_suffix(',')?.parse().ok()?;
            (element_text(element).as_bytes() == bytes).then_some(element)
        })
        .collect()
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.invoked as f64 / 1e9, self.returned as f64 / 1e9);
        write!(f, "client {} [{from:.6}, {to:.6}] {:?}: ", self.client, self.call)?;
        match &self.outcome {
            // The alternate form prints all elements, for a file.
            Outcome::Answered(Answer::Elements(elements)) if !f.alternate() => {
                write!(f, "{}", Shortened(elements))
            }
            Outcome::Answered(answer) => write!(f, "{answer:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Prints the number of elements, and the last ones.
pub(super) struct Shortened<'a>(pub(super) &'a [u32]);

const SHOWN_ELEMENTS: usize = 4;

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.get(self.0.len().saturating_sub(SHOWN_ELEMENTS)..).unwrap_or_default();
        write!(f, "{} elements to {last:?}", self.0.len())
    }
}
