//! Options that lead to a test's own name server.

use std::time::Duration;

use postern_test_dns::TestDns;

use crate::config::{DnsOptions, DnsServer, DnsTransport};

/// Everything is asked of `dns`, once, and it answers soon or never.
pub(crate) fn options(dns: &TestDns) -> DnsOptions {
    DnsOptions {
        resolvers: vec![DnsServer {
            transport: DnsTransport::Udp,
            address: dns.address,
        }],
        query_timeout: Duration::from_millis(200),
        query_tries: 1,
        ..DnsOptions::default()
    }
}
