//! An authorize that starts and copies everything: how long that takes, how much memory it needs,
//! and what requests notice while records arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postern_tests::cluster::Layout;
use postern_tests::databroker::Databroker;

use crate::Effort;
use crate::people::{self, Pattern};
use crate::postern::{self, Postern};
use crate::procfs;
use crate::sections::start::restart;
use crate::stage::Stage;
use crate::table::{Row, median};

/// Sessions of one person.
const SESSIONS_EACH: usize = 10;

/// Between two requests of whoever watches.
const PAUSE: Duration = Duration::from_millis(1);

pub async fn run(
    stage: &Stage,
    effort: Effort,
    many: usize,
    storage: &str,
    settings: &str,
) -> Vec<Row> {
    let config = postern::with_routes(stage.ports, settings, "");
    let mut postern = Postern::start_with(Layout::Split, &stage.issuer, config).await;
    let (empty, memory_empty) = restarts(&mut postern, effort).await;

    let pattern = Pattern::of(&postern.allowed);
    let databroker = Databroker::connect(&postern.cluster).await;
    let watch = Watch::start(&postern);
    let begun = Instant::now();
    let users = many / SESSIONS_EACH;
    let version = people::write_of(&databroker, pattern.idp_id(), 0..many, users).await;
    let written = begun.elapsed().as_secs_f64();
    people::caught_up(&postern.cluster, "authorize", version).await;
    let (slowest, wrong) = watch.stop();

    let (full, memory_full) = restarts(&mut postern, effort).await;
    let bytes = people::session("session-1", "user-1", pattern.idp_id());
    let bytes = bytes.data.map_or(0, |data| data.value.len());
    vec![
        Row::new(&format!("{storage}: {many} sessions written, s")).found(written),
        Row::new(&format!("{storage}: slowest request meanwhile, ms"))
            .found(slowest.as_secs_f64() * 1e3)
            .goal(50.0)
            .wrong(wrong),
        Row::new(&format!("{storage}: authorize ready with them, s"))
            .found(full / 1e3)
            .goal(2.0),
        Row::new(&format!("{storage}: and with none, s")).found(empty / 1e3),
        Row::new(&format!("{storage}: authorize, KiB for each"))
            .found((memory_full - memory_empty) / many as f64)
            .goal(1.5),
        Row::new(&format!("{storage}: the record of each, KiB")).found(bytes as f64 / 1024.0),
    ]
}

/// Starts authorize again and again: milliseconds until it is ready, and its memory then, in KiB.
async fn restarts(postern: &mut Postern, effort: Effort) -> (f64, f64) {
    let (mut took, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        took.push(restart(&mut postern.cluster, "authorize").await);
        let process = postern.cluster.process_id("authorize");
        memory.push(procfs::rss(process) as f64);
    }
    (median(took), median(memory))
}

/// Somebody who asks all the while.
struct Watch {
    stop: Arc<AtomicBool>,
    asking: thread::JoinHandle<(Duration, u64)>,
}

impl Watch {
    fn start(postern: &Postern) -> Self {
        let subject = postern.subject();
        let mut connection = postern
            .connector()
            .connect(subject.port, &subject.authority)
            .expect("a connection");
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let asking = thread::spawn(move || {
            let head = subject.request("GET", "/") + "\r\n";
            let (mut slowest, mut wrong) = (Duration::ZERO, 0);
            while !until.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = connection.exchange(&head);
                slowest = slowest.max(begun.elapsed());
                wrong += u64::from(!answer.is_ok_and(|answer| answer.status == 200));
                thread::sleep(PAUSE);
            }
            (slowest, wrong)
        });
        Self { stop, asking }
    }

    /// The slowest answer, and how many were not 200.
    fn stop(self) -> (Duration, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking
            .join()
            .expect("it asks until it is told to stop")
    }
}
