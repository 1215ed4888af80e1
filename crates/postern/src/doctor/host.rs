//! Limits of the host.

use postern_common::config::{Config, Service};
use postern_common::lifecycle::descriptors;

use super::code;
use super::finding::{Cause, Check, Finding};

/// Fewer than this many connections at a time is no proxy.
const FEW: usize = 1000;

pub fn check(config: &Config) -> Vec<Finding> {
    let connections = descriptors::possible();
    let subject = "file descriptors";
    let message = match connections {
        Some(connections) => format!("suffice for {connections} connections at a time"),
        None => "have no limit".to_owned(),
    };
    if config.services.contains(Service::Proxy) && connections.is_some_and(|number| number < FEW) {
        let cause = Cause::new(code::FEW_DESCRIPTORS, message)
            .help("raise the hard limit: `LimitNOFILE=` in systemd, `--ulimit nofile=` in Docker");
        return vec![Finding::warning(Check::Host, subject, cause)];
    }
    vec![Finding::ok(Check::Host, subject, message)]
}
