//! Conformance suites for implementations of the seams.

pub mod log_store;
pub mod snapshot_store;
pub mod state_machine;
pub mod transport;

#[doc(hidden)]
pub use state_machine::files as state_machine_files;

/// The module of one suite: a `#[test]` for each case.
#[doc(hidden)]
#[macro_export]
macro_rules! __suite {
    ($suite:ident, $module:ident, $argument:expr; $($case:ident)*) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $case() {
                    $crate::suites::$suite::$case($argument);
                }
            )*
        }
    };
}
