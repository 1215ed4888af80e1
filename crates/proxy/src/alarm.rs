//! A timer for deadlines that move: it is armed only while somebody waits, and moved only when it
//! must ring earlier.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// At most one timer, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready once `deadline` has passed. Call it again whenever the deadline may have moved.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // It rang for an earlier deadline that has moved on since.
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test]
    async fn rings_at_the_last_deadline_given() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut alarm = Alarm::default();
        assert!(
            poll_fn(|cx| Poll::Ready(alarm.poll(cx, after(60_000))))
                .await
                .is_pending()
        );
        poll_fn(|cx| alarm.poll(cx, after(20))).await;
        assert!((after(20)..after(20_000)).contains(&Instant::now()));
        poll_fn(|cx| alarm.poll(cx, after(50))).await;
        assert!(Instant::now() >= after(50));
    }
}
