//! What is measured, a file each.

mod body;
mod idle;
mod latency;
mod rate;
pub mod records;
mod reload;
mod scale;
mod scrape;
mod start;
mod websocket;

use crate::Effort;
use crate::stage::Stage;
use crate::table::Table;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    Http1,
    Http2,
    NewConnections,
    Latency,
    Body,
    Idle,
    Websocket,
    Start,
    Scale,
    Reload,
    Scrape,
    Records,
}

impl Section {
    pub const ALL: [Self; 12] = [
        Self::Http1,
        Self::Http2,
        Self::NewConnections,
        Self::Latency,
        Self::Body,
        Self::Idle,
        Self::Websocket,
        Self::Start,
        Self::Scale,
        Self::Reload,
        Self::Scrape,
        Self::Records,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::NewConnections => "a new TLS connection per request",
            Self::Latency => "latency at a quarter and at half of nginx's peak",
            Self::Body => "1 GiB body",
            Self::Idle => "10,000 idle connections",
            Self::Websocket => "WebSocket round trips",
            Self::Start => "start and size",
            Self::Scale => "with routes, sessions, idle connections and cores",
            Self::Reload => "10,000 routes reloaded under load",
            Self::Scrape => "metrics of 2,000 routes and 1,000 people",
            Self::Records => "databroker",
        }
    }

    pub async fn run(self, stage: &mut Stage, effort: Effort) -> Table {
        let title = self.title();
        let rows = match self {
            Self::Http1 => rate::run(stage, effort, rate::Kind::Http1).await,
            Self::Http2 => rate::run(stage, effort, rate::Kind::Http2).await,
            Self::NewConnections => rate::run(stage, effort, rate::Kind::NewConnections).await,
            Self::Latency => latency::run(stage, effort),
            Self::Body => body::run(stage, effort),
            Self::Idle => idle::run(stage),
            Self::Websocket => websocket::run(stage, effort),
            Self::Start => start::run(stage, effort).await,
            Self::Scale => scale::run(stage, effort).await,
            Self::Reload => reload::run(stage, effort).await,
            Self::Scrape => scrape::run(stage, effort).await,
            Self::Records => records::run(stage, effort).await,
        };
        Table::new(title, rows)
    }
}
