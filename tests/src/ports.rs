//! Ports that no two tests of one run share.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that the kernel hands out by itself.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// `count` free ports in a row, on loopback.
pub fn row(count: u16) -> u16 {
    // Test binaries run one after another, tests of one binary beside each other.
    let base = 20_000 + u16::try_from(std::process::id() % 400).expect("below 400") * 20;
    for _ in 0..200 {
        let first = 20_000 + (base - 20_000 + NEXT.fetch_add(count, Ordering::Relaxed)) % 11_000;
        let free =
            (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        if free {
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}
