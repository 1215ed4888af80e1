//! `postern kubernetes-secrets`: makes the Secrets that all pods of a deployment share, unless they
//! are there.
//!
//! A chart that rendered them would either hold secrets or render something else each time. So
//! this runs in the cluster, once, and nobody outside of it ever sees them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode, header};
use postern_common::config::DnsOptions;
use postern_common::crypto::random;
use postern_common::http_client::{HttpClientError, HttpsClient, Limits};
use postern_common::net::{LookupError, Resolver};
use postern_common::tls::{PemError, TlsError, Trust, pem};
use serde_json::{Value, json};

use crate::authority::issue;

/// Where Kubernetes puts what a pod needs to talk to it.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct SecretsArgs {
    /// The Secret with shared-secret and cookie-secret
    #[arg(long, value_name = "NAME")]
    secrets: Option<String>,
    /// The Secret with a certificate for the services and the authority that issued it
    #[arg(long, value_name = "NAME", requires = "host")]
    internal_tls: Option<String>,
    /// A name that the certificate holds; as often as needed
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("{path} cannot be read: this command works inside of a pod whose token is mounted")]
    Account {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this command works inside of a pod"
    )]
    NoApi,
    #[error("the authority of the Kubernetes API")]
    Authority(#[from] PemError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("names cannot be resolved")]
    Resolver(#[from] LookupError),
    #[error("cannot make a certificate for {names:?}")]
    Certificate {
        names: Vec<String>,
        #[source]
        source: rcgen::Error,
    },
    #[error("`{0}` is no name of a Secret")]
    Name(String),
    #[error("the Kubernetes API does not answer")]
    Call(#[from] HttpClientError),
    #[error("the Kubernetes API refuses to {act} Secret {name} with {status}: {reason}")]
    Refused {
        act: &'static str,
        name: String,
        status: StatusCode,
        reason: String,
    },
    #[error(
        "Secret {name} is there, but has no key `{key}`: add it, or delete the Secret to have it made anew"
    )]
    Incomplete { name: String, key: String },
}

/// What became of one Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Made,
    Kept,
}

/// Makes what is missing and says so.
#[expect(clippy::print_stdout, reason = "this is the output of the command")]
pub async fn run(args: SecretsArgs) -> Result<(), SecretsError> {
    let cluster = Cluster::of_this_pod()?;
    for secret in wanted(&args)? {
        let outcome = cluster.ensure(&secret).await?;
        let word = match outcome {
            Outcome::Made => "made",
            Outcome::Kept => "there already, kept",
        };
        println!("Secret {}: {word}", secret.name);
    }
    Ok(())
}

struct Secret {
    name: String,
    kind: &'static str,
    data: BTreeMap<&'static str, Vec<u8>>,
}

fn wanted(args: &SecretsArgs) -> Result<Vec<Secret>, SecretsError> {
    let mut secrets = Vec::new();
    if let Some(name) = &args.secrets {
        let secret = || STANDARD.encode(random::bytes::<32>()).into_bytes();
        secrets.push(Secret {
            name: name.clone(),
            kind: "Opaque",
            data: BTreeMap::from([("shared-secret", secret()), ("cookie-secret", secret())]),
        });
    }
    if let Some(name) = &args.internal_tls {
        let issued =
            issue("Postern services", &args.host).map_err(|source| SecretsError::Certificate {
                names: args.host.clone(),
                source,
            })?;
        secrets.push(Secret {
            name: name.clone(),
            kind: "kubernetes.io/tls",
            data: BTreeMap::from([
                ("ca.crt", issued.authority.into_bytes()),
                ("tls.crt", issued.certificate.into_bytes()),
                ("tls.key", issued.key.into_bytes()),
            ]),
        });
    }
    Ok(secrets)
}

/// The API of Kubernetes, for one namespace.
struct Cluster {
    client: HttpsClient,
    /// `https://host:port/api/v1/namespaces/NAMESPACE/secrets`
    secrets: String,
    token: String,
}

impl Cluster {
    fn of_this_pod() -> Result<Self, SecretsError> {
        let variable = |name| std::env::var(name).map_err(|_| SecretsError::NoApi);
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        // An IPv6 address comes without its brackets.
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Self::at(&format!("https://{host}:{port}"), Path::new(ACCOUNT))
    }

    fn at(url: &str, account: &Path) -> Result<Self, SecretsError> {
        let read = |file: &str| {
            let path = account.join(file);
            std::fs::read_to_string(&path).map_err(|source| SecretsError::Account {
                path: path.display().to_string(),
                source,
            })
        };
        let authority = pem::certificates(read("ca.crt")?.as_bytes(), "ca.crt")?;
        let trust = Trust::nobody().and(&authority, "the pod's ca.crt")?;
        Ok(Self {
            client: HttpsClient::new(Resolver::new(DnsOptions::default())?, &trust)?,
            secrets: format!(
                "{url}/api/v1/namespaces/{}/secrets",
                read("namespace")?.trim()
            ),
            token: read("token")?.trim().to_owned(),
        })
    }

    async fn ensure(&self, secret: &Secret) -> Result<Outcome, SecretsError> {
        let data: BTreeMap<_, _> = secret
            .data
            .iter()
            .map(|(key, value)| (key, STANDARD.encode(value)))
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": secret.name,
                "labels": {"app.kubernetes.io/part-of": "postern"},
            },
            "type": secret.kind,
            "data": data,
        });
        let (status, answer) = self
            .call(Method::POST, &self.secrets, object.to_string(), secret)
            .await?;
        match status {
            StatusCode::CREATED => Ok(Outcome::Made),
            // Whoever was first has won; what is there is never changed.
            StatusCode::CONFLICT => self.complete(secret).await,
            status => Err(refused("make", secret, status, &answer)),
        }
    }

    /// What is there already must be whole, or pods would wait for it without a word.
    async fn complete(&self, secret: &Secret) -> Result<Outcome, SecretsError> {
        let url = format!("{}/{}", self.secrets, secret.name);
        let (status, answer) = self.call(Method::GET, &url, String::new(), secret).await?;
        if status != StatusCode::OK {
            return Err(refused("read", secret, status, &answer));
        }
        let there = |key: &str| answer.pointer(&format!("/data/{key}")).is_some();
        match secret.data.keys().find(|key| !there(key)) {
            None => Ok(Outcome::Kept),
            Some(key) => Err(SecretsError::Incomplete {
                name: secret.name.clone(),
                key: (*key).to_owned(),
            }),
        }
    }

    async fn call(
        &self,
        method: Method,
        url: &str,
        body: String,
        secret: &Secret,
    ) -> Result<(StatusCode, Value), SecretsError> {
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(|_| SecretsError::Name(secret.name.clone()))?;
        let answer = self.client.send(request, Limits::default()).await?;
        let value = serde_json::from_slice(answer.body()).unwrap_or_default();
        Ok((answer.status(), value))
    }
}

fn refused(act: &'static str, secret: &Secret, status: StatusCode, answer: &Value) -> SecretsError {
    let reason = answer.get("message").and_then(Value::as_str);
    SecretsError::Refused {
        act,
        name: secret.name.clone(),
        status,
        reason: reason.unwrap_or("it does not say why").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::extract::{Path as Segment, State};
    use axum::http::HeaderMap;
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::{get, post};
    use axum::{Json, Router};

    use super::*;

    type Store = Arc<Mutex<BTreeMap<String, Value>>>;

    /// What the API does with Secrets of one namespace, and nothing else.
    async fn api(store: Store) -> String {
        async fn make(
            State(store): State<Store>,
            headers: HeaderMap,
            Json(object): Json<Value>,
        ) -> Response {
            let mut store = store.lock().unwrap();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            if headers["authorization"] != "Bearer the-token" || name == "forbidden" {
                let why = json!({"message": "secrets is forbidden"});
                return (StatusCode::FORBIDDEN, Json(why)).into_response();
            }
            if store.contains_key(&name) {
                return StatusCode::CONFLICT.into_response();
            }
            store.insert(name, object.clone());
            (StatusCode::CREATED, Json(object)).into_response()
        }
        async fn read(State(store): State<Store>, Segment(name): Segment<String>) -> Response {
            Json(store.lock().unwrap()[&name].clone()).into_response()
        }
        let path = "/api/v1/namespaces/access/secrets";
        let router = Router::new()
            .route(path, post(make))
            .route(&format!("{path}/{{name}}"), get(read))
            .with_state(store);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    async fn cluster(store: Store) -> Cluster {
        let account = tempfile::tempdir().unwrap();
        let issued = issue("cluster", &["kubernetes".to_owned()]).unwrap();
        for (file, text) in [
            ("ca.crt", issued.authority.as_str()),
            ("namespace", "access"),
            ("token", "the-token\n"),
        ] {
            std::fs::write(account.path().join(file), text).unwrap();
        }
        Cluster::at(&api(store).await, account.path()).unwrap()
    }

    fn both() -> Vec<Secret> {
        wanted(&SecretsArgs {
            secrets: Some("postern-secrets".to_owned()),
            internal_tls: Some("postern-internal-tls".to_owned()),
            host: vec!["postern-authorize.access.svc.cluster.local".to_owned()],
        })
        .unwrap()
    }

    #[tokio::test]
    async fn c50_secrets_are_made_once_and_kept() {
        let store = Store::default();
        let cluster = cluster(Arc::clone(&store)).await;
        for secret in both() {
            assert_eq!(cluster.ensure(&secret).await.unwrap(), Outcome::Made);
        }
        let first = store.lock().unwrap().clone();
        let shared = first["postern-secrets"]["data"]["shared-secret"].as_str();
        let shared = STANDARD.decode(shared.unwrap()).unwrap();
        assert_eq!(STANDARD.decode(shared).unwrap().len(), 32);
        let authority = first["postern-internal-tls"]["data"]["ca.crt"].as_str();
        let authority = STANDARD.decode(authority.unwrap()).unwrap();
        assert_eq!(pem::certificates(&authority, "ca.crt").unwrap().len(), 1);

        for secret in both() {
            assert_eq!(cluster.ensure(&secret).await.unwrap(), Outcome::Kept);
        }
        assert_eq!(*store.lock().unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_wrong_is_told() {
        let store = Store::default();
        let half = json!({"data": {"shared-secret": "eA=="}});
        store
            .lock()
            .unwrap()
            .insert("postern-secrets".to_owned(), half);
        let cluster = cluster(store).await;
        let mut secret = both().remove(0);
        let told = cluster.ensure(&secret).await.unwrap_err().to_string();
        assert!(told.contains("no key `cookie-secret`"), "{told}");
        secret.name = "forbidden".to_owned();
        let told = cluster.ensure(&secret).await.unwrap_err().to_string();
        assert!(told.contains("403"), "{told}");
        assert!(told.contains("secrets is forbidden"), "{told}");
    }
}
