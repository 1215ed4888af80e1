//! An upstream that remembers what reached it, and holds requests until it is told to go on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use http::{HeaderMap, Method};
use serde_json::json;
use tokio::sync::watch;

use crate::site::Server;
use crate::wait;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
}

pub struct Upstream {
    pub server: Server,
    memory: Memory,
}

#[derive(Clone)]
struct Memory {
    seen: Arc<Mutex<Vec<Seen>>>,
    released: watch::Sender<bool>,
}

impl Upstream {
    pub async fn start() -> Self {
        let memory = Memory {
            seen: Arc::default(),
            released: watch::Sender::new(false),
        };
        let router = Router::new().fallback(remember).with_state(memory.clone());
        Self {
            server: Server::start(router).await,
            memory,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.memory
            .seen
            .lock()
            .expect("no test panics here")
            .clone()
    }

    /// What reached it since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.memory.seen.lock().expect("no test panics here"))
    }

    pub async fn until_seen(&self, target: &str) {
        wait::until(target, Duration::from_secs(10), async || {
            let seen = self.seen();
            if seen.iter().any(|it| it.target == target) {
                Ok(())
            } else {
                Err(seen)
            }
        })
        .await;
    }

    /// Lets the requests for `/hold` go on.
    pub fn release(&self) {
        self.memory.released.send_replace(true);
    }
}

async fn remember(State(memory): State<Memory>, request: Request) -> Response {
    let (head, _body) = request.into_parts();
    let target = head
        .uri
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    memory.seen.lock().expect("no test panics here").push(Seen {
        method: head.method,
        target: target.clone(),
        headers: head.headers,
    });
    if target.starts_with("/hold") {
        let mut released = memory.released.subscribe();
        // The sender lives in the router's state.
        let _ = released.wait_for(|released| *released).await;
    }
    Json(json!({ "upstream": "reached", "target": target })).into_response()
}
