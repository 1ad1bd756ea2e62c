//! The tasks that the library spawns for one call.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// The tasks of one dialled connection: connection and request body. Dropping it ends them, which closes the connection.
///
/// Otherwise the tasks of a dropped link could wait for flow control for ever.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Executor {
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    pub(crate) fn executor(&self) -> Executor {
        Executor { started: Arc::clone(&self.started) }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        let handle = tokio::spawn(task).abort_handle();
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.retain(|task| !task.is_finished());
        started.push(handle);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let started = std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        started.iter().for_each(AbortHandle::abort);
    }
}
