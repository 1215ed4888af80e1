//! What the kernel knows about processes: CPU time and memory.

use std::fs;
use std::time::Duration;

/// A process and its children, as nginx has them.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|it| it.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// User and system time of a process and its children so far.
pub fn cpu(pid: u32) -> Duration {
    family(pid).into_iter().map(cpu_of_threads).sum()
}

/// Nanoseconds on a core, of every thread that lives: threads of servers do.
fn cpu_of_threads(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let nanoseconds = threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
    Duration::from_nanos(nanoseconds.sum())
}

/// The kernel's unit of time where it tells no finer one (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// User and system time of this process so far, with that of threads that have ended.
pub fn own_cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before it may hold anything.
    let (_, fields) = text.rsplit_once(") ").unwrap_or_default();
    let times = fields.split(' ').skip(11).take(2);
    let ticks: u32 = times.filter_map(|it| it.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// What all cores did so far.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    idle: u64,
    all: u64,
}

impl Cores {
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in the first.
        let ticks = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.filter_map(|it| it.parse().ok()).collect();
        Self {
            idle: ticks.iter().skip(3).take(2).sum(),
            all: ticks.iter().sum(),
        }
    }

    /// The share of the time since then in which they had nothing to do.
    pub fn idle_since(self, before: Self) -> f64 {
        (self.idle - before.idle) as f64 / (self.all - before.all) as f64
    }
}

/// Resident memory in KiB of a process and its children.
pub fn rss(pid: u32) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    family(pid).into_iter().filter_map(of).sum()
}

/// How many files a process may have open.
pub fn open_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok())
        .unwrap_or(1024)
}
