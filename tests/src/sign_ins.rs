//! One sign-in after the other, by somebody new each time.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::task::{JoinHandle, JoinSet};

use crate::person::Person;
use crate::world::{World, sign_in};

/// What became of one.
#[derive(Debug, Clone)]
pub struct SignIn {
    /// When it began, from the start of all.
    pub at: Duration,
    pub took: Duration,
    /// What went wrong.
    pub failure: Option<String>,
}

/// Sign-ins that go on until they are stopped.
pub struct SignIns {
    done: Arc<Mutex<Vec<SignIn>>>,
    stop: tokio::sync::watch::Sender<bool>,
    driver: JoinHandle<()>,
}

impl SignIns {
    /// One each `every`, by ann, at `url`.
    pub fn start(world: &World, url: &str, every: Duration) -> Self {
        let authority = world.cluster.site.certificates.authority.clone();
        let (issuer, url): (Arc<str>, Arc<str>) = (world.issuer.as_str().into(), url.into());
        let done: Arc<Mutex<Vec<SignIn>>> = Arc::default();
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let begun = Instant::now();
        let driver = tokio::spawn({
            let done = Arc::clone(&done);
            async move {
                let mut ticks = tokio::time::interval(every);
                let mut under_way = JoinSet::new();
                loop {
                    tokio::select! {
                        biased;
                        _ = stopped.wait_for(|stop| *stop) => break,
                        _ = ticks.tick() => {}
                    }
                    let done = Arc::clone(&done);
                    let (issuer, url) = (Arc::clone(&issuer), Arc::clone(&url));
                    let browser = Person::browser(&authority);
                    under_way.spawn(async move {
                        let (at, from) = (begun.elapsed(), Instant::now());
                        let failure = once(&issuer, &browser, &url).await.err();
                        done.lock().expect("no test panics here").push(SignIn {
                            at,
                            took: from.elapsed(),
                            failure,
                        });
                    });
                }
                under_way.join_all().await;
            }
        });
        Self { done, stop, driver }
    }

    /// Begins no more, waits for those under way, and tells of all.
    pub async fn stop(self) -> Vec<SignIn> {
        self.stop.send_replace(true);
        self.driver.await.expect("the driver does not panic");
        std::mem::take(&mut *self.done.lock().expect("no test panics here"))
    }
}

async fn once(issuer: &str, browser: &Person, url: &str) -> Result<(), String> {
    let page = sign_in(issuer, browser, url, "ann").await?;
    if page.status == StatusCode::OK {
        return Ok(());
    }
    Err(format!("{} at {}", page.status, page.url.path()))
}
