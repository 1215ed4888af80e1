//! How the pool connects. Its manager knows the errors of tokio-postgres only, so ours travel inside of one.

use std::error::Error;
use std::io;

use deadpool_postgres::{Connect, Manager, ManagerConfig, RecyclingMethod};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_util::io::StreamReader;

use super::connect::{ConnectError, Connector};

pub(super) fn manager(connector: Connector) -> Manager {
    let config = ManagerConfig {
        // No trip to the server before each use: a connection that fails is thrown away and the caller told.
        recycling_method: RecyclingMethod::Fast,
    };
    // The connector makes a configuration for each address itself.
    Manager::from_connect(Config::new(), connector, config)
}

impl Connect for Connector {
    fn connect(
        &self,
        _: &Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(async move {
            match Self::connect(self).await {
                Ok(connection) => Ok(driven(connection)),
                Err(error) => {
                    // Errors of tokio-postgres cannot be made, only met: on a stream that fails with ours.
                    let failing = futures::stream::iter([Err::<&[u8], _>(io::Error::other(error))]);
                    let stream = tokio::io::join(StreamReader::new(failing), tokio::io::sink());
                    let mut config = Config::new();
                    config.user("nobody");
                    config.connect_raw(stream, NoTls).await.map(driven)
                }
            }
        })
    }
}

fn driven<S, T>((client, driver): (Client, Connection<S, T>)) -> (Client, JoinHandle<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let driving = tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(
                reason = crate::causes(&error),
                "a connection to Postgres ended"
            );
        }
    });
    (client, driving)
}

/// Why there is no connection, as [`Connector`] told it.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    let ours = error
        .source()
        .and_then(|it| it.downcast_ref::<io::Error>())
        .and_then(io::Error::get_ref)
        .and_then(|it| it.downcast_ref::<ConnectError>());
    ours.map_or_else(|| crate::causes(error), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use postern_common::config::DnsOptions;
    use postern_common::net::resolver::Resolver;

    use super::*;
    use crate::storage::postgres::settings::Settings;
    use crate::storage::postgres::tls;

    #[tokio::test]
    async fn the_reason_arrives_as_it_was_told() {
        let settings =
            Settings::parse("postgres://u@127.0.0.1:1/d?sslmode=disable", &|_| None).unwrap();
        let tls = tls::connector(&settings.tls).unwrap();
        let resolver = Resolver::new(DnsOptions::default()).unwrap();
        let connector = Connector::new(settings, tls, resolver);
        let told = connector.connect().await.err().unwrap().to_string();
        let error = Connect::connect(&connector, &Config::new())
            .await
            .unwrap_err();
        assert!(told.contains("127.0.0.1:1: "), "{told}");
        assert_eq!(reason(&error), told);
    }
}
