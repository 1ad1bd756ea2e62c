//! Waits while the process lacks file descriptors. The store opens files all the time; the lack is no damage of its files.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::StoreError;

const RETRY: Duration = Duration::from_millis(20);
/// Pauses of all stores of the process.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// The number of pauses of [`RETRY`].
pub(crate) fn descriptor_waits() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

fn is_shortage(error: &StoreError) -> bool {
    // EMFILE of the process, ENFILE of the system.
    const NUMBERS: [i32; 2] = [24, 23];
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if number.is_some_and(|number| NUMBERS.contains(&number)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Repeats `act` while file descriptors are missing. `act` must leave nothing behind when it fails. For threads that apply
/// and write; readers get the error.
pub(super) fn patiently<T>(mut act: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut waits = false;
    loop {
        match act() {
            Err(error) if is_shortage(&error) => {
                if !waits {
                    waits = true;
                    tracing::error!(%error, "the key-value store waits for a file descriptor");
                }
                WAITS.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(RETRY);
            }
            done => {
                if waits {
                    tracing::info!("the key-value store has a file descriptor again");
                }
                return done;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_descriptors_is_retried() {
        let (before, mut tries) = (descriptor_waits(), 0);
        let done = patiently(|| {
            tries += 1;
            let error = if tries < 3 { 24 } else { 5 };
            Err::<(), _>(StoreError::Fjall(io::Error::from_raw_os_error(error).into()))
        });
        assert!(done.is_err());
        assert_eq!(tries, 3);
        assert_eq!(descriptor_waits() - before, 2);
    }
}
