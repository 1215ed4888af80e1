//! Over real sockets, with the program's own HTTP client.

use postern_common::config::{DnsOptions, ProviderKind};
use postern_common::http_client::HttpsClient;
use postern_common::net::Resolver;
use postern_common::tls::Trust;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::idp::{Idp, authorization_query};
use crate::{HttpClient, MAX_BODY, ProviderError, Providers, UserInfoRequest};

fn http() -> HttpClient {
    let resolver = Resolver::new(DnsOptions::default()).unwrap();
    HttpsClient::new(resolver, &Trust::system()).unwrap().into()
}

/// Serves a discovery document, and `/userinfo` with more than is read.
async fn serve(listener: TcpListener, issuer: String) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let issuer = issuer.clone();
        tokio::spawn(async move {
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let body = if head.starts_with("GET /.well-known/") {
                json!({
                    "issuer": issuer, "jwks_uri": format!("{issuer}/jwks"),
                    "authorization_endpoint": format!("{issuer}/authorize"),
                    "token_endpoint": format!("{issuer}/token"),
                    "userinfo_endpoint": format!("{issuer}/userinfo"),
                })
                .to_string()
            } else {
                json!({"sub": "x".repeat(MAX_BODY)}).to_string()
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

#[tokio::test]
async fn s47_a_real_server_is_read_and_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, issuer.clone()));
    let settings = Idp::settings(ProviderKind::Oidc, &issuer);
    let provider = Providers::new([settings], &http(), None).global().unwrap();
    let (url, _) = authorization_query(&*provider).await;
    assert!(url.as_str().starts_with(&format!("{issuer}/authorize?")));
    let ask = UserInfoRequest {
        access_token: "a",
        expected_subject: None,
    };
    let error = provider.user_info(ask).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Invalid(m) if m.contains("more than")),
        "{error}"
    );
}

#[tokio::test]
async fn c16_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let settings = Idp::settings(ProviderKind::Oidc, &issuer);
    let provider = Providers::new([settings], &http(), None).global().unwrap();
    let error = super::idp::sign_in(&*provider).await.unwrap_err();
    assert!(
        matches!(error, ProviderError::Unreachable { .. }),
        "{error}"
    );
}
