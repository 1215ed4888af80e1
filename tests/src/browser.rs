//! Chromium, driven through chromedriver.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::ports;
use crate::process::Process;
use crate::wait;

pub struct Browser {
    pub page: Client,
    // Dropped after the client: closing needs the driver.
    _driver: Process,
    _home: tempfile::TempDir,
}

impl Browser {
    /// A fresh profile that trusts `certificate` and looks for every name on this machine.
    pub async fn start(certificate: &Path) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let port = ports::row(1);
        let mut command = Command::new("chromedriver");
        command
            .arg(format!("--port={port}"))
            .env("HOME", home.path());
        let driver = Process::start("chromedriver", home.path(), command);
        let capabilities = serde_json::json!({
            "goog:chromeOptions": {
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--host-resolver-rules=MAP * 127.0.0.1",
                    format!("--ignore-certificate-errors-spki-list={}", public_key_hash(certificate)),
                    format!("--user-data-dir={}", home.path().join("profile").display()),
                ]
            }
        });
        let serde_json::Value::Object(capabilities) = capabilities else {
            unreachable!("a JSON object is an object")
        };
        let page = wait::until("chromedriver", Duration::from_secs(30), async || {
            ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
                .capabilities(capabilities.clone())
                .connect(&format!("http://127.0.0.1:{port}"))
                .await
        })
        .await;
        Self {
            page,
            _driver: driver,
            _home: home,
        }
    }

    pub async fn open(&self, url: &str) {
        self.page.goto(url).await.expect("the page loads");
    }

    pub async fn url(&self) -> String {
        self.page
            .current_url()
            .await
            .expect("a page has a URL")
            .to_string()
    }

    /// The first element that `css` selects, once it is there.
    pub async fn find(&self, css: &str) -> Element {
        self.page
            .wait()
            .at_most(Duration::from_secs(15))
            .for_element(Locator::Css(css))
            .await
            .unwrap_or_else(|error| panic!("no element {css}: {error}"))
    }

    /// Waits until the first element that `css` selects shows `text`. Between two pages the old
    /// one may still be there, or its elements be gone: neither is an answer.
    pub async fn shows(&self, css: &str, text: &str) {
        let what = format!("{css} to show {text:?}");
        wait::until(&what, Duration::from_secs(15), async || {
            let element = self.page.find(Locator::Css(css)).await;
            let shown = match element {
                Ok(element) => element.text().await,
                Err(error) => Err(error),
            };
            match shown {
                Ok(shown) if shown.contains(text) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    pub async fn click(&self, css: &str) {
        self.find(css)
            .await
            .click()
            .await
            .expect("it can be clicked");
    }

    pub async fn close(self) {
        self.page.close().await.expect("the browser closes");
    }
}

/// What `--ignore-certificate-errors-spki-list` wants of the leaf.
fn public_key_hash(certificate: &Path) -> String {
    let der = CertificateDer::from_pem_file(certificate).expect("a PEM certificate");
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
    STANDARD.encode(Sha256::digest(parsed.public_key().raw))
}
