//! Makes handles. Labels are assembled once, when a handle is made.

use std::marker::PhantomData;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};

use crate::labels::Closed;

static METADATA: Metadata<'static> = Metadata::new("towline", Level::INFO, Some(module_path!()));

pub(crate) struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    labels: Vec<Label>,
    gauges: bool,
}

impl<'a> Registrar<'a> {
    pub(crate) fn new(recorder: &'a dyn Recorder) -> Self {
        Self { recorder, labels: Vec::new(), gauges: true }
    }

    /// Returns a registrar with one more label.
    pub(crate) fn with(&self, label: &'static str, value: impl Into<SharedString>) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::new(label, value));
        Self { recorder: self.recorder, labels, gauges: self.gauges }
    }

    /// Turns gauges off. Several owners can add to one counter, but a gauge would show the value of the last owner.
    pub(crate) fn without_gauges(self) -> Self {
        Self { gauges: false, ..self }
    }

    fn key(&self, name: &'static str) -> Key {
        Key::from_parts(name, self.labels.clone())
    }
}

/// A handle that registers itself under a name.
pub(crate) trait Handle {
    fn register(with: &Registrar<'_>, name: &'static str) -> Self;
}

impl Handle for Counter {
    fn register(with: &Registrar<'_>, name: &'static str) -> Self {
        with.recorder.register_counter(&with.key(name), &METADATA)
    }
}

impl Handle for Gauge {
    fn register(with: &Registrar<'_>, name: &'static str) -> Self {
        if with.gauges { with.recorder.register_gauge(&with.key(name), &METADATA) } else { Self::noop() }
    }
}

impl Handle for Histogram {
    fn register(with: &Registrar<'_>, name: &'static str) -> Self {
        with.recorder.register_histogram(&with.key(name), &METADATA)
    }
}

impl<L: Closed, H: Handle> Handle for PerLabel<L, H> {
    fn register(with: &Registrar<'_>, name: &'static str) -> Self {
        let handle = |value: &L| H::register(&with.with(L::LABEL, value.value()), name);
        Self { handles: L::VALUES.iter().map(handle).collect(), label: PhantomData }
    }
}

/// Declares a struct of handles and the names that they register. A word before a field adds a method of the same name:
/// `add` and `count` for counters, `set` for gauges, `time` for histograms; `only` adds none. With `for $owner`, the methods
/// belong to `$owner`, which has the struct in its field `handles`.
macro_rules! handles {
    (
        $(#[$outer:meta])*
        $vis:vis struct $name:ident $(for $owner:ident)? {
            $($(#[doc = $doc:literal])* $how:ident $field:ident: $kind:ty = $metric:ident;)+
        }
    ) => {
        $(#[$outer])*
        #[derive(Debug)]
        $vis struct $name {
            $($field: $kind,)+
        }

        impl $name {
            pub(crate) fn register(with: &$crate::handles::Registrar<'_>) -> Self {
                Self { $($field: $crate::handles::Handle::register(with, $crate::names::$metric),)+ }
            }
        }

        handles!(@methods [$name $(for $owner)?] $($(#[doc = $doc])* $how $field)+);
    };
    (@methods [$name:ident] $($rest:tt)+) => {
        impl $name {
            handles!(@each [] $($rest)+);
        }
    };
    (@methods [$name:ident for $owner:ident] $($rest:tt)+) => {
        impl $owner {
            handles!(@each [.handles] $($rest)+);
        }
    };
    (@each $path:tt $($(#[doc = $doc:literal])* $how:ident $field:ident)+) => {
        $(handles!(@$how $path $(#[doc = $doc])* $field);)+
    };
    (@only $path:tt $(#[doc = $doc:literal])* $field:ident) => {};
    (@add [$($path:tt)*] $(#[doc = $doc:literal])* $field:ident) => {
        $(#[doc = $doc])*
        pub fn $field(&self, n: u64) {
            self $($path)*.$field.increment(n);
        }
    };
    (@count [$($path:tt)*] $(#[doc = $doc:literal])* $field:ident) => {
        $(#[doc = $doc])*
        pub fn $field(&self) {
            self $($path)*.$field.increment(1);
        }
    };
    (@set [$($path:tt)*] $(#[doc = $doc:literal])* $field:ident) => {
        $(#[doc = $doc])*
        pub fn $field(&self, value: u64) {
            self $($path)*.$field.set($crate::handles::float(value));
        }
    };
    (@time [$($path:tt)*] $(#[doc = $doc:literal])* $field:ident) => {
        $(#[doc = $doc])*
        pub fn $field(&self, elapsed: std::time::Duration) {
            self $($path)*.$field.record(elapsed.as_secs_f64());
        }
    };
}

pub(crate) use handles;

/// A handle for each value of the label `L`.
#[derive(Debug)]
pub(crate) struct PerLabel<L, H> {
    handles: Box<[H]>,
    label: PhantomData<fn(L)>,
}

impl<L: Closed, H> PerLabel<L, H> {
    /// Always `Some`: the table is built from the same list that gives the positions.
    pub(crate) fn of(&self, value: L) -> Option<&H> {
        self.handles.get(value.position())
    }
}

impl<L: Closed> PerLabel<L, Counter> {
    pub(crate) fn add(&self, value: L, n: u64) {
        if let Some(counter) = self.of(value) {
            counter.increment(n);
        }
    }
}

/// Gauges and histograms hold `f64`: values above 2^53 lose their last digits, which a graph does not show.
pub(crate) fn float(n: u64) -> f64 {
    n as f64
}
