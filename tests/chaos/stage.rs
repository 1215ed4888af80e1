//! What every line plays on: two of each service, Postgres, a provider, and an upstream that
//! watches.

use std::time::{Duration, Instant};

use postern_tests::cluster::Layout;
use postern_tests::load::{Load, Report, Witness};
use postern_tests::person::Answer;
use postern_tests::postgres::Postgres;
use postern_tests::sign_ins::{SignIn, SignIns};
use postern_tests::sockets::{self, Sockets};
use postern_tests::wait;
use postern_tests::world::{Setting, World, sign_in};

/// What a line is told.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Of the line.
    pub name: &'static str,
    /// Requests a second.
    pub rate: u32,
    /// Whether times count: a machine that runs all tests has other things to do.
    pub timed: bool,
}

/// How long nothing happens before a fault, so that it meets a fleet at rest.
pub const BEFORE: Duration = Duration::from_secs(3);

/// Requests a second, in earnest: two cores do it in an optimised build, beside all the services.
pub const FULL: u32 = 200;

/// And as part of all tests, without optimisation.
pub const GENTLE: u32 = 40;

/// What a line reached.
pub struct Figure {
    pub text: String,
    pub reached: bool,
    /// What went wrong, in detail.
    pub notes: Vec<String>,
    /// Whether times count.
    timed: bool,
}

impl Figure {
    /// A line that did not come to its end.
    pub fn broken(reason: String) -> Self {
        Self {
            text: format!("broke off: {}", reason.lines().next().unwrap_or_default()),
            reached: false,
            notes: vec![reason],
            timed: true,
        }
    }

    /// Another condition of the same line.
    pub fn and(mut self, text: impl Into<String>, reached: bool) -> Self {
        self.text = format!("{}; {}", self.text, text.into());
        self.reached &= reached;
        self
    }

    /// How long something took, which may be as long as `limit`.
    pub fn within(self, what: &str, took: Duration, limit: Duration) -> Self {
        let good = took <= limit || !self.timed;
        self.and(format!("{what} after {} ms", took.as_millis()), good)
    }

    /// No request of `report` may have taken longer.
    pub fn none_over(self, report: &Report, limit: Duration) -> Self {
        let over = report.answers.iter().filter(|it| it.took > limit).count();
        let good = over == 0 || !self.timed;
        self.and(format!("{over} over {} ms", limit.as_millis()), good)
    }

    /// Every sign-in has to have completed.
    pub fn all_signed_in(mut self, sign_ins: &[SignIn]) -> Self {
        let failures: Vec<_> = sign_ins
            .iter()
            .filter_map(|it| it.failure.clone())
            .collect();
        self.notes.extend(failures.iter().take(5).cloned());
        let slowest = sign_ins.iter().map(|it| it.took).max().unwrap_or_default();
        let text = format!(
            "{} of {} sign-ins failed, slowest {} ms",
            failures.len(),
            sign_ins.len(),
            slowest.as_millis()
        );
        self.and(text, failures.is_empty() && !sign_ins.is_empty())
    }

    /// No WebSocket may have ended.
    pub fn all_open(mut self, sockets: &sockets::Outcome) -> Self {
        self.notes.extend(sockets.broken.iter().take(3).cloned());
        let text = format!(
            "{} of {} WebSockets broke in {} echoes",
            sockets.broken.len(),
            sockets.count,
            sockets.echoes
        );
        self.and(text, sockets.broken.is_empty() && sockets.echoes > 0)
    }

    /// A sign-in is a handful of requests; none may have had to wait for long.
    pub fn signed_in_within(self, sign_ins: &[SignIn], limit: Duration) -> Self {
        let over = sign_ins.iter().filter(|it| it.took > limit).count();
        let good = over == 0 || !self.timed;
        self.and(
            format!("{over} sign-ins over {} ms", limit.as_millis()),
            good,
        )
    }
}

/// How long it takes until `probe` says yes; no longer than is worth waiting for.
pub async fn time_until(mut probe: impl AsyncFnMut() -> bool) -> Duration {
    const PATIENCE: Duration = Duration::from_secs(20);
    let from = Instant::now();
    while !probe().await && from.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    from.elapsed()
}

/// The surroundings of one line.
pub struct Stage {
    pub terms: Terms,
    pub world: World,
    pub witness: Witness,
    pub postgres: Postgres,
}

impl Stage {
    pub async fn set(terms: Terms) -> Self {
        let postgres = Postgres::start().expect("Postgres");
        let uri = postgres.uri("postgres");
        Self::set_on(terms, postgres, &uri, &[]).await
    }

    /// With another way to reach the database; `names` are this machine.
    pub async fn set_on(terms: Terms, postgres: Postgres, uri: &str, names: &[&str]) -> Self {
        let witness = Witness::start().await;
        let config = format!(
            "databroker_storage_type: postgres\ndatabroker_storage_connection_string: '{uri}'\n"
        );
        let setting = Setting::new(Layout::Fleet)
            .config(config)
            .names(names)
            .routes(witness.routes());
        Self {
            terms,
            world: World::start_with(setting).await,
            witness,
            postgres,
        }
    }

    pub async fn load(&self) -> Load {
        Load::start(&self.world, self.terms.rate).await
    }

    /// The route of the load.
    pub fn url(&self) -> String {
        self.world.cluster.url("load", "/ann/person")
    }

    /// Sign-ins, two a second.
    pub fn sign_ins(&self) -> SignIns {
        SignIns::start(&self.world, &self.url(), Duration::from_millis(500))
    }

    /// Ten WebSockets of somebody who may.
    pub async fn sockets(&self) -> Sockets {
        let ann = self.world.cluster.browser();
        let page = self.world.cluster.url("app", "/");
        self.world.sign_in(&ann, &page, "ann").await;
        let url = self
            .world
            .cluster
            .url("app", "/ws")
            .replace("https:", "wss:");
        Sockets::open(&ann, &url, 10).await
    }

    /// Waits until every proxy counts so many ready endpoints of a service.
    pub async fn until_ready(&self, service: &str, count: usize, limit: Duration) {
        let what = format!("proxies to have {count} of {service}");
        wait::until(&what, limit, async || {
            for proxy in ["proxy-1", "proxy-2"] {
                let ready = self.endpoints_ready(proxy, service).await;
                if ready != Some(count) {
                    return Err(format!("{proxy}: {ready:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// How many endpoints of `service` a process takes for ready.
    pub async fn endpoints_ready(&self, process: &str, service: &str) -> Option<usize> {
        let name = format!("postern_rpc_endpoints_ready{{service=\"pomerium-{service}\"}}");
        let value = self.metric(process, &name).await?;
        format!("{value}").parse().ok()
    }

    /// The sum of the samples whose name and labels begin so.
    pub async fn metric(&self, process: &str, name: &str) -> Option<f64> {
        let text = self.world.cluster.metrics(process).await;
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        (!samples.is_empty()).then(|| samples.iter().sum())
    }

    /// How many questions an authorize has decided.
    pub async fn decided(&self, authorize: &str) -> f64 {
        self.metric(authorize, "pomerium_authorize_evaluator_evaluations_total")
            .await
            .unwrap_or_default()
    }

    /// Somebody new tries to sign in; what they end up with.
    pub async fn visit(&self) -> Result<Answer, String> {
        let browser = self.world.cluster.browser();
        sign_in(&self.world.issuer, &browser, &self.url(), "ann").await
    }

    /// From now until somebody new can sign in.
    pub async fn until_sign_in_works(&self) -> Duration {
        time_until(async || self.visit().await.is_ok_and(|page| page.status == 200)).await
    }

    /// What somebody without a session is told: a page, to come back later.
    pub fn is_clear_503(page: &Answer) -> bool {
        page.status == 503 && page.header("retry-after").is_some() && page.text().contains("<html")
    }

    /// Nothing may have failed, nothing may have been wrong, here or at the upstream.
    pub fn flawless(&self, report: &Report) -> Figure {
        self.judged(report, report.failed() == 0)
    }

    /// The figure of a load; that nothing was wrong is a condition of every line.
    pub fn judged(&self, report: &Report, good: bool) -> Figure {
        let reached_upstream = self.witness.wrong();
        let mut notes = report.problems();
        notes.truncate(12);
        notes.extend(reached_upstream.iter().take(5).cloned());
        if report.stall > Duration::from_millis(200) {
            let stall = report.stall.as_millis();
            notes.push(format!(
                "the machine was busy: a request was sent {stall} ms late"
            ));
        }
        let wrong = report.wrong() + reached_upstream.len();
        Figure {
            text: format!(
                "{} of {} failed, {wrong} wrong, p99 {} ms, slowest {} ms",
                report.failed(),
                report.sent(),
                report.percentile(99).as_millis(),
                report.slowest().as_millis()
            ),
            reached: good && wrong == 0 && report.sent() > 0,
            notes,
            timed: self.terms.timed,
        }
    }
}

impl Drop for Stage {
    /// The logs outlive the line, for whoever wants to know why.
    fn drop(&mut self) {
        let kept = postern_tests::binaries::binary("postern")
            .with_file_name("chaos")
            .join(self.terms.name);
        let _ = std::fs::remove_dir_all(&kept);
        let _ = std::fs::create_dir_all(&kept);
        let site = self.world.cluster.site.directory.path();
        for file in std::fs::read_dir(site).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|it| it == "log") {
                let _ = std::fs::copy(file.path(), kept.join(file.file_name()));
            }
        }
    }
}
