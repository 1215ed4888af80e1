//! Tasks that stay on their thread.

use std::future::Future;

/// Runs the tasks of a connection on the `LocalSet` of who opened it.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
