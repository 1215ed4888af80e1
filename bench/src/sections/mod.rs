//! What is measured, a file each.

mod body;
mod idle;
mod latency;
mod rate;
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
}

impl Section {
    pub const ALL: [Self; 8] = [
        Self::Http1,
        Self::Http2,
        Self::NewConnections,
        Self::Latency,
        Self::Body,
        Self::Idle,
        Self::Websocket,
        Self::Start,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::NewConnections => "a new TLS connection per request",
            Self::Latency => "latency at a quarter of nginx's peak",
            Self::Body => "1 GiB body",
            Self::Idle => "10,000 idle connections",
            Self::Websocket => "WebSocket round trips",
            Self::Start => "start and size",
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
        };
        Table::new(title, rows)
    }
}
