//! WebSockets that stay open and are used all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::person::{Person, WebSocket};

/// How often each of them asks for an echo, and how long that may take.
const EVERY: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Sockets {
    stop: watch::Sender<bool>,
    echoes: Arc<AtomicUsize>,
    open: JoinSet<Result<(), String>>,
}

/// What became of them.
#[derive(Debug)]
pub struct Outcome {
    pub count: usize,
    pub echoes: usize,
    /// Why those ended that did not last.
    pub broken: Vec<String>,
}

impl Sockets {
    /// Opens `count` of them to `url`, which echoes.
    pub async fn open(person: &Person, url: &str, count: usize) -> Self {
        let stop = watch::Sender::new(false);
        let echoes = Arc::<AtomicUsize>::default();
        let mut open = JoinSet::new();
        for _ in 0..count {
            let socket = person.websocket(url).await;
            let socket = socket.unwrap_or_else(|answer| panic!("{url}: {}", answer.status()));
            open.spawn(use_it(socket, Arc::clone(&echoes), stop.subscribe()));
        }
        Self { stop, echoes, open }
    }

    /// Closes what is still open.
    pub async fn stop(self) -> Outcome {
        self.stop.send_replace(true);
        let ended = self.open.join_all().await;
        Outcome {
            count: ended.len(),
            echoes: self.echoes.load(Ordering::Relaxed),
            broken: ended.into_iter().filter_map(Result::err).collect(),
        }
    }
}

async fn use_it(
    mut socket: WebSocket,
    echoes: Arc<AtomicUsize>,
    stop: watch::Receiver<bool>,
) -> Result<(), String> {
    for number in 0_u64.. {
        if *stop.borrow() {
            break;
        }
        let message = Message::text(format!("message {number}"));
        let sent = socket.send(message.clone()).await;
        sent.map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, socket.next()).await {
            Ok(Some(Ok(echo))) if echo == message => {}
            Ok(other) => return Err(format!("instead of an echo: {other:?}")),
            Err(_) => return Err(format!("no echo within {PATIENCE:?}")),
        }
        echoes.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}
