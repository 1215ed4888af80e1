//! Cognito. Sign-out and revocation lie on the host of the authorization endpoint, and sign-out
//! comes back to the registered signed-out page only.

use url::Url;

use super::{Flavor, PLAIN};
use crate::discovery::Metadata;
use crate::provider::{EndSession, SignOut};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "cognito",
    scopes: |_| &["openid", "email", "profile"],
    sign_out,
    revocation,
    ..PLAIN
};

fn sign_out(metadata: &Metadata, client: &str, ask: EndSession<'_>) -> Option<SignOut> {
    let mut url = metadata.authorization_endpoint().join("/logout").ok()?;
    url.query_pairs_mut()
        .append_pair("client_id", client)
        .append_pair("logout_uri", ask.signed_out.as_str());
    Some(SignOut {
        url,
        returns_to_target: ask.target.is_none(),
    })
}

fn revocation(metadata: &Metadata) -> Option<Url> {
    metadata.revocation_endpoint().cloned().or_else(|| {
        metadata
            .authorization_endpoint()
            .join("/oauth2/revoke")
            .ok()
    })
}
