//! The task of one HTTP/2 stream, to end it from outside.
//!
//! hyper asks for more of an answer only while the client has room for it. If the client leaves
//! none, nothing in the answer can end it; dropping the stream's task resets the stream, and the
//! others of the connection go on.

use std::cell::OnceCell;
use std::future::Future;
use std::rc::Rc;

use tokio::task::AbortHandle;

tokio::task_local! {
    static CURRENT: Rc<Stream>;
}

/// A stream of a client.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    task: OnceCell<AbortHandle>,
}

impl Stream {
    /// The one that this code runs for; `None` on HTTP/1.1.
    pub(crate) fn current() -> Option<Rc<Self>> {
        CURRENT.try_with(Rc::clone).ok()
    }

    /// Resets it.
    pub(crate) fn reset(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Runs the streams of a client's connection on this core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamExecutor;

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        let stream = Rc::new(Stream::default());
        let scoped = CURRENT.scope(Rc::clone(&stream), task);
        let running = tokio::task::spawn_local(async move {
            scoped.await;
        });
        // Set once, here.
        let _ = stream.task.set(running.abort_handle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor as _;

    #[tokio::test]
    async fn a_reset_ends_one_task_and_no_other() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (sender, mut streams) = tokio::sync::mpsc::unbounded_channel();
                for _ in 0..2 {
                    let sender = sender.clone();
                    StreamExecutor.execute(async move {
                        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
                        sender.send((Stream::current().unwrap(), ended)).unwrap();
                        std::future::pending::<()>().await;
                        drop(alive);
                    });
                }
                let (first, first_ended) = streams.recv().await.unwrap();
                let (_second, mut second_ended) = streams.recv().await.unwrap();
                first.reset();
                assert!(first_ended.await.is_err());
                assert!(second_ended.try_recv().is_err_and(|error| {
                    error == tokio::sync::oneshot::error::TryRecvError::Empty
                }));
                assert!(Stream::current().is_none());
            })
            .await;
    }
}
