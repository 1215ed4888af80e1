//! Auth0. Its issuer ends with a slash; signing out is its own `/v2/logout`.

use url::Url;

use super::{Flavor, PLAIN};
use crate::discovery::Metadata;
use crate::provider::{EndSession, SignOut};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "auth0",
    issuer: |url| format!("{}/", url.trim_end_matches('/')),
    sign_out,
    ..PLAIN
};

fn sign_out(metadata: &Metadata, client: &str, ask: EndSession<'_>) -> Option<SignOut> {
    let mut url = Url::parse(metadata.issuer())
        .ok()?
        .join("/v2/logout")
        .ok()?;
    url.query_pairs_mut()
        .append_pair("client_id", client)
        .append_pair("returnTo", ask.target.unwrap_or(ask.signed_out).as_str());
    Some(SignOut {
        url,
        returns_to_target: true,
    })
}
