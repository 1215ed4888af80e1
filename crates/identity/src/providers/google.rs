//! Google. Gives a refresh token only for `access_type=offline`; has no groups.

use super::{Flavor, ONLINE, PLAIN};
use crate::discovery::IssuerRule;

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "google",
    default_url: Some("https://accounts.google.com"),
    issuer_rule: IssuerRule::Google,
    scopes: |_| ONLINE,
    params: &[
        ("prompt", "select_account consent"),
        ("access_type", "offline"),
    ],
    ..PLAIN
};
