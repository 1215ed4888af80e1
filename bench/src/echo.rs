//! What nginx as an upstream cannot be: a WebSocket server that sends back what it gets, and a
//! reader of bodies that answers after the last byte.

use axum::Router;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, post};
use futures::StreamExt as _;
use postern_tests::site::Server;

pub async fn start() -> Server {
    let upgrade = async |upgrade: WebSocketUpgrade| -> Response { upgrade.on_upgrade(echo) };
    let router = Router::new()
        .route("/ws", any(upgrade))
        .route("/upload", post(read));
    Server::start(router).await
}

async fn read(body: Body) -> StatusCode {
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        if chunk.is_err() {
            return StatusCode::BAD_REQUEST;
        }
    }
    StatusCode::OK
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_data = matches!(message, Message::Binary(_) | Message::Text(_));
        if is_data && socket.send(message).await.is_err() {
            return;
        }
    }
}
