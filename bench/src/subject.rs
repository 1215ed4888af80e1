//! One of those who are measured: where it listens, who signed in there, which processes it is.

use std::fmt;

use crate::procfs;

/// What is measured against what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Who {
    Nginx,
    NginxAuth,
    Haproxy,
    Envoy,
    EnvoyYes,
    EnvoyPostern,
    AllInOne,
    Split,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::NginxAuth => "nginx, auth_request",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::EnvoyYes => "Envoy, ext_authz: yes",
            Self::EnvoyPostern => "Envoy, ext_authz: Postern",
            Self::AllInOne => "Postern, all-in-one",
            Self::Split => "Postern, split",
        })
    }
}

#[derive(Debug, Clone)]
pub struct Subject {
    pub who: Who,
    /// On loopback, TLS.
    pub port: u16,
    /// `Host` of every request.
    pub authority: String,
    /// Of somebody who may pass; peers ignore it.
    pub cookie: String,
    /// Of somebody who may not, where there is such a thing.
    pub refused: Option<String>,
    /// What the parts are called, and their processes.
    pub processes: Vec<(&'static str, u32)>,
}

impl Subject {
    pub fn is(&self, who: &[Who]) -> bool {
        who.contains(&self.who)
    }

    /// CPU time of each process so far, in microseconds.
    pub fn cpu(&self) -> Vec<(&'static str, f64)> {
        let of = |(name, pid): &(&'static str, u32)| (*name, procfs::cpu(*pid).as_secs_f64() * 1e6);
        self.processes.iter().map(of).collect()
    }

    /// Resident memory of all processes in KiB.
    pub fn rss(&self) -> u64 {
        self.processes
            .iter()
            .map(|(_, pid)| procfs::rss(*pid))
            .sum()
    }

    /// The head of a request that a blocking client sends.
    pub fn request(&self, method: &str, path: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nUser-Agent: bench\r\nAccept: */*\r\n",
            self.authority, self.cookie
        )
    }
}
