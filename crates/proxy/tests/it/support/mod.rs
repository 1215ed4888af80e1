pub mod authorize;
pub mod authorizer;
pub mod client;
pub mod proxy;
pub mod upstream;

use std::time::{Duration, Instant};

/// Polls a condition, and tells the last state when it gives up.
pub async fn eventually<T: std::fmt::Debug>(
    what: &str,
    mut state: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let begin = Instant::now();
    loop {
        let now = state();
        if good(&now) {
            return now;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{what}: still {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nothing in these tests may take longer.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing within 20 s"),
    }
}
