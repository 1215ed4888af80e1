//! OneLogin. Its two versions have fixed scopes: as in Pomerium, `idp_scopes` has no effect.

use super::{Flavor, PLAIN};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "onelogin",
    default_url: Some("https://openid-connect.onelogin.com/oidc"),
    scopes: |issuer| {
        if issuer.contains("/oidc/2") {
            &["openid", "profile", "email", "groups"]
        } else {
            &["openid", "profile", "email", "groups", "offline_access"]
        }
    },
    scopes_configurable: false,
    ..PLAIN
};
